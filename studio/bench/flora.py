"""FLoRA's cost model, checked on the layers of diffusion models: time against rank, and where LoRA overtakes.

    python -m studio.bench.flora [--device cuda] [--layers full] [--json FILE] [--plot FILE]

For developers: it is no command of `lora-studio`.

One layer in -> out, b lanes of l tokens, an adapter of its own for every lane. Ways, timed in turns in one run:

    base       x W^T, no adapters
    LoRA       x W^T + (x down_n^T) up_n, the two batched products of the paper's appendix B.1
    products   FLoRA by equation 5: R passes through the shared W
    weights    FLoRA by equation 4: every lane through W * M_n, which is made anew in every call

The model (Wen and Chaudhuri 2024, arXiv 2312.05677, section 3.2), with c2 and c1 the seconds of a multiplication in
the shared product and in the batched small ones, here for in = d and out = k:

    base  c2 b l d k        LoRA  c1 b l r (d + k) + c2 b l d k        products  c2 r b l d k

so that products win where c1 (d + k) / (c2 d k) + 1 / r >= 1, which for d = k is the paper's
2 c1 / (d c2) + 1 / r >= 1. c2 is the base's time over its multiplications, c1 the slope of LoRA's extra time over the
ranks (least squares through the origin). Beside the crossover that this predicts stand the measured one, and the one
that r passes through W, without scaling and summing up, would have against LoRA as measured.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.adapters import Hadamard
from pipelines.engine.products import multiplied
from pipelines.engine.products.graphs import CudaGraphs
from pipelines.record import device_name
from studio.bench.speed.timing import Captured, Timing, take_turns

WAYS = ("base", "LoRA", "products", "weights")
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
CALLS = 10
"""Calls in one CUDA graph."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of a model. tokens: of each lane, at the model's own picture size."""

    name: str
    inputs: int
    outputs: int
    tokens: int


LAYERS: Mapping[str, tuple[Layer, ...]] = {
    "tiny": (
        Layer("tiny-sdxl attention, 64 tokens", 128, 128, 64),
        Layer("tiny-sdxl attention, 256 tokens", 96, 96, 256),
        Layer("tiny-sdxl cross-attention key", 256, 128, 77),
        Layer("tiny-sdxl time embedding", 256, 256, 1),
    ),
    "full": (
        Layer("SDXL attention, 1024 tokens", 1280, 1280, 1024),
        Layer("SDXL attention, 4096 tokens", 640, 640, 4096),
        Layer("SDXL cross-attention key", 2048, 1280, 77),
        Layer("SDXL feed-forward", 1280, 10240, 1024),
        Layer("SDXL time embedding", 1280, 1280, 1),
        Layer("one token, width 4096", 4096, 4096, 1),
    ),
}
"""The last of each is the paper's own regime, one token a sample."""


@dataclass(frozen=True)
class FloraFinding:
    """One layer's figures. seconds: way -> rank -> median; spread: the largest (max - min) / median.

    c1, c2: seconds of one multiplication. predicted, measured: the largest rank at which products are no slower than
    LoRA (inf: at all ranks that were tried, 0: at none; interpolated between ranks).
    difference: largest relative difference of the two FLoRA forms from merged weights, over all ranks.
    """

    layer: Layer
    seconds: Mapping[str, Mapping[int, float]]
    spread: float
    c1: float
    c2: float
    predicted: float
    measured: float
    difference: float

    @property
    def ideal(self) -> float:
        """The rank at which r base products alone would take as long as LoRA as measured. It differs from `measured`
        by the element-wise work, which the model leaves out."""
        passes = {rank: rank * base for rank, base in self.seconds["base"].items()}
        return measured_crossover(passes, self.seconds["LoRA"])

    def left_side(self, rank: int) -> float:
        """c1 (d + k) / (c2 d k) + 1 / r: where this is at least 1, products should win."""
        return advantage(self.layer, self.c1, self.c2) + 1 / rank


def advantage(layer: Layer, c1: float, c2: float) -> float:
    """The cost of one rank of LoRA relative to one pass through W: c1 (d + k) / (c2 d k)."""
    return c1 * (layer.inputs + layer.outputs) / (c2 * layer.inputs * layer.outputs)


def predicted_crossover(layer: Layer, c1: float, c2: float) -> float:
    """The largest rank with advantage + 1 / r >= 1."""
    left = advantage(layer, c1, c2)
    return math.inf if left >= 1 else 1 / (1 - left)


def measured_crossover(products: Mapping[int, float], lora: Mapping[int, float]) -> float:
    """The rank from which on products are slower than LoRA, interpolated linearly between measured ranks."""
    behind = 0
    for rank in sorted(products):
        gap = products[rank] - lora[rank]
        if gap > 0:
            if not behind:
                return 0.0
            before = products[behind] - lora[behind]
            return behind + (rank - behind) * -before / (gap - before)
        behind = rank
    return math.inf


@torch.inference_mode()
def measure(
    layer: Layer, lanes: int, ranks: Sequence[int], repeats: int, device: torch.device, dtype: torch.dtype
) -> FloraFinding:
    """Times all ways at all ranks."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    linear = nn.Linear(layer.inputs, layer.outputs, bias=False, device=device, dtype=dtype)
    linear.weight.copy_(noise(layer.outputs, layer.inputs) / layer.inputs**0.5)
    x = noise(lanes, layer.tokens, layer.inputs)
    seconds: dict[str, dict[int, float]] = {way: {} for way in WAYS}
    spread, difference = 0.0, 0.0
    for rank in ranks:
        down = noise(lanes, rank, layer.inputs) / layer.inputs**0.5
        up = noise(lanes, rank, layer.outputs) * 0.2
        rows = {
            f"a{lane}": multiplied.RankRows.of(
                Hadamard(1 + 0.2 * noise(rank, layer.inputs), 1 + 0.2 * noise(layer.outputs, rank), 1 / rank),
                x,
            )
            for lane in range(lanes)
        }
        factors = multiplied.gather(rows, [[(name, 1.0)] for name in rows])
        assert factors is not None
        ways = _ways(linear, x, down, up, factors)
        expected = torch.bmm(x.float(), (linear.weight.float() * _products_of(factors)).mT)
        for way in ("products", "weights"):
            off = (ways[way]().float() - expected).norm() / expected.norm()
            difference = max(difference, float(off))
        del expected
        times = timed(ways, repeats, device)
        for way, timing in times.items():
            seconds[way][rank] = timing.median
            spread = max(spread, timing.spread)
    base = statistics.median(seconds["base"].values())
    samples = lanes * layer.tokens
    c2 = base / (samples * layer.inputs * layer.outputs)
    work = {rank: samples * rank * (layer.inputs + layer.outputs) for rank in ranks}
    extra = {rank: seconds["LoRA"][rank] - seconds["base"][rank] for rank in ranks}
    c1 = sum(extra[rank] * work[rank] for rank in ranks) / sum(work[rank] ** 2 for rank in ranks)
    return FloraFinding(
        layer,
        seconds,
        spread,
        c1,
        c2,
        predicted_crossover(layer, c1, c2),
        measured_crossover(seconds["products"], seconds["LoRA"]),
        difference,
    )


def _ways(
    linear: nn.Linear, x: Tensor, down: Tensor, up: Tensor, factors: multiplied.Multiplied
) -> dict[str, Callable[[], Tensor]]:
    def base() -> Tensor:
        return F.linear(x, linear.weight)

    def lora() -> Tensor:
        return F.linear(x, linear.weight).baddbmm_(torch.bmm(x, down.mT), up)

    return {
        "base": base,
        "LoRA": lora,
        "products": lambda: multiplied.linear(linear, x, factors, "products"),
        "weights": lambda: multiplied.linear(linear, x, factors, "weights"),
    }


def _products_of(factors: multiplied.Multiplied) -> Tensor:
    """M_n of every lane, [lanes, out, in] float32."""
    return torch.bmm(factors.outer.float().mT, factors.inner.float())


def timed(ways: Mapping[str, Callable[[], Tensor]], repeats: int, device: torch.device) -> dict[str, Timing]:
    """The timing of each way, taken in turns. On a GPU, a CUDA graph of ten calls is replayed, so that launches do not
    count."""
    if device.type != "cuda":
        for way in ways.values():
            way()
        return take_turns(ways, device, repeats)
    recorder = CudaGraphs(device)
    replays = {name: Captured.by(recorder, partial(_often, way)) for name, way in ways.items()}
    return {
        name: Timing(tuple(seconds / CALLS for seconds in timing.seconds))
        for name, timing in take_turns(replays, device, repeats).items()
    }


def _often(way: Callable[[], Tensor]) -> Tensor:
    for _ in range(CALLS - 1):
        way()
    return way()


def table(finding: FloraFinding) -> str:
    """One layer's figures as text; times are multiples of the base's."""
    layer = finding.layer
    lines = [
        f"{layer.name}: {layer.inputs} -> {layer.outputs}, {layer.tokens} tokens a lane; base "
        f"{1000 * statistics.median(finding.seconds['base'].values()):.3f} ms, c1/c2 {finding.c1 / finding.c2:.1f}, "
        f"spread {finding.spread:.0%}, difference {finding.difference:.1e}",
        f"{'rank':>6}{'LoRA':>9}{'products':>10}{'weights':>9}{'model':>8}",
    ]
    for rank, base in finding.seconds["base"].items():
        lora, products, weights = (finding.seconds[way][rank] / base for way in WAYS[1:])
        lines.append(f"{rank:6}{lora:9.2f}{products:10.2f}{weights:9.2f}{finding.left_side(rank):8.2f}")
    lines.append(
        f"products are no slower than LoRA up to rank {_rank(finding.measured)}; "
        f"the model says {_rank(finding.predicted)}, and {_rank(finding.ideal)} with LoRA as measured"
    )
    return "\n".join(lines)


def _rank(value: float) -> str:
    return "any" if math.isinf(value) else "none" if value == 0 else f"{value:.1f}"


def as_json(findings: Sequence[FloraFinding], lanes: int, device: torch.device, dtype: torch.dtype) -> str:
    """All figures as JSON; an infinite crossover becomes null."""

    def finite(value: float) -> float | None:
        return None if math.isinf(value) else value

    return json.dumps(
        {
            "device": device_name(device),
            "dtype": str(dtype).removeprefix("torch."),
            "lanes": lanes,
            "layers": [
                asdict(found)
                | {
                    "predicted": finite(found.predicted),
                    "measured": finite(found.measured),
                    "ideal": finite(found.ideal),
                    "left side": {rank: found.left_side(rank) for rank in found.seconds["base"]},
                }
                for found in findings
            ],
        },
        indent=1,
    )


def plot(findings: Sequence[FloraFinding], title: str, file: Path) -> None:
    """Time against rank, one panel a layer, with the measured and the predicted crossover."""
    from matplotlib.figure import Figure

    columns = min(len(findings), 3)
    lines = -(-len(findings) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * lines), layout="constrained")
    for place, finding in enumerate(findings, start=1):
        axes = figure.add_subplot(lines, columns, place)
        base = finding.seconds["base"]
        for way, label in (("LoRA", "bmm LoRA"), ("products", "FLoRA, eq. 5"), ("weights", "FLoRA, eq. 4")):
            ranks = list(finding.seconds[way])
            axes.plot(
                ranks, [finding.seconds[way][r] / base[r] for r in ranks], marker="o", ms=3, label=label
            )
        for value, style, label in (
            (finding.measured, "-", "measured crossover"),
            (finding.predicted, ":", "predicted: $c_1(d+k)/(c_2dk) + 1/r = 1$"),
            (finding.ideal, "--", "predicted, LoRA as measured"),
        ):
            if 0 < value <= max(base):
                axes.axvline(value, ls=style, color="gray", label=label)
        axes.set(xscale="log", yscale="log", xlabel="rank", ylabel="time / base", title=finding.layer.name)
        axes.set_xticks(list(base), [str(rank) for rank in base])
        axes.minorticks_off()
        axes.title.set_fontsize(9)
        axes.legend(fontsize=6)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studio.bench.flora",
        description="For developers of the studio. " + (__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="", help="default: float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument(
        "--layers", choices=tuple(LAYERS), default="", help="default: tiny on the CPU, full on a GPU"
    )
    parser.add_argument("--lanes", type=int, default=16, help="rows a call, each with an adapter of its own")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="write the picture here")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    dtype = getattr(torch, options.dtype or ("bfloat16" if gpu else "float32"))
    findings = []
    for layer in LAYERS[options.layers or ("full" if gpu else "tiny")]:
        findings.append(
            measure(layer, options.lanes, sorted(set(options.ranks)), options.repeats, device, dtype)
        )
        print(table(findings[-1]), flush=True)
    title = f"{options.lanes} lanes, {str(dtype).removeprefix('torch.')}, {device_name(device)}"
    if options.json:
        options.json.write_text(as_json(findings, options.lanes, device, dtype), encoding="utf-8")
    if options.plot:
        plot(findings, title, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
