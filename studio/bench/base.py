"""Which of torch's ways make the model itself faster, without adapters: attention kernels, compilation, layout.

    python -m studio.bench.base [--model sdxl] [--size 1024 512] [--device cuda] [--profile] [--json FILE]

For developers: it is no command of `lora-studio`.

One denoising step with guidance for several pictures in one call, as a CUDA graph where there are any. Ways:

    plain          as the model comes
    blocks         the transformer blocks through torch.compile, diffusers' regional compile
    compiled       as the engine compiles: residual blocks, the ends of transformer stacks, resampling and the norms
                   between them too; on CUDA norms keep rows of SDXL's length in registers
    short rows     compiled, norms keeping rows of up to 1024 numbers alone, as inductor does by itself
    stacks apart   compiled, the ends of transformer stacks as they come but for their norms
    samplers apart compiled, up- and downsampling as they come
    channels last  compiled, weights and latents of convolutions laid out by channels
    projections    compiled, query, key and value (of text: key and value) as one product, diffusers' own way
    whole          the whole UNet through torch.compile, whose norms can join what lies between blocks
    tiles          compiled, inductor timing how its kernels are cut
    tuned          tiles, and inductor timing its own products against torch's (slow to compile)

each with one of torch's attention kernels (auto is torch's choice). All ways give the same predictions but for
rounding; how far each is from the first one stands beside its time.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pipelines.engine.backends import AttentionChoice, attention_by
from pipelines.engine.compiling import BLOCKS, Backend, arguments, compile_blocks
from pipelines.engine.engine import cuda_graphs
from pipelines.home import Home
from pipelines.record import device_name
from studio.bench.speed.bed import Bed, Inputs, load_unet
from studio.bench.speed.profile import TimeProfile, profiled
from studio.bench.speed.timing import Captured, Timing, seconds_of, take_turns
from studio.bench.speed.ways import relative
from studio.bench.speed.workload import Workload

Build = Literal[
    "plain",
    "blocks",
    "compiled",
    "short rows",
    "stacks apart",
    "samplers apart",
    "channels last",
    "projections",
    "whole",
    "tiles",
    "tuned",
]

_OPTIONS: dict[Build, dict[str, Any]] = {
    "tiles": {"coordinate_descent_tuning": True},
    "tuned": {"coordinate_descent_tuning": True, "max_autotune_gemm": True},
}
"""Settings of inductor for each build, besides the engine's own."""
_APART: dict[Build, frozenset[str]] = {
    "stacks apart": frozenset({"Transformer2DModel"}),
    "samplers apart": frozenset({"Upsample2D", "Downsample2D"}),
}
"""For each build, the blocks in `BLOCKS` that it does not compile."""


@dataclass(frozen=True)
class BaseWay:
    """How the model is built and which attention kernel comes first."""

    build: Build
    attention: AttentionChoice

    @property
    def label(self) -> str:
        return f"{self.build}, {self.attention}"


@dataclass(frozen=True)
class BaseFinding:
    """What was measured of one way. ready: seconds until it could run. difference: of its predictions from those of the
    first way, relative to these."""

    way: BaseWay
    timing: Timing
    ready: float
    difference: float
    profile: TimeProfile | None


def built(unet: Any, build: Build, backend: str) -> Any:
    """A copy of the model, built that way."""
    if build == "plain":
        return unet
    own = copy.deepcopy(unet)
    if build == "blocks":
        own.compile_repeated_blocks(**arguments(_plain(backend)))
        return own
    if build == "whole":
        own.compile(**arguments(backend))
        return own
    if build == "channels last":
        own.to(memory_format=torch.channels_last)
    if build == "projections":
        own.fuse_qkv_projections()
    classes = set(BLOCKS) - _APART.get(build, set())
    compile_blocks(own, _plain(backend) if build == "short rows" else backend, _OPTIONS.get(build), classes)
    return own


def _plain(backend: str) -> Backend:
    """Torch's own settings of a backend, in place of the engine's heuristics."""
    found: Backend = torch._dynamo.lookup_backend(backend)
    return found


def measure(
    unet: Any,
    pictures: int,
    cells: int,
    ways: Sequence[BaseWay],
    repeats: int,
    *,
    profile: bool,
    backend: str,
) -> list[BaseFinding]:
    """Measures all ways on one model, one after another, each in turns with the first.

    pictures: with guidance, so two rows each. cells: latent cells on each side.
    """
    bed = Bed("", unet, "attention", 1)
    work = Workload(cells, pictures)
    inputs = Inputs(unet, pictures, cells).of(work.steps()[0])
    recorder = cuda_graphs(bed.device)
    first: Callable[[], Tensor] | None = None
    expected: Tensor | None = None
    findings = []
    for way in ways:
        torch.compiler.reset()
        gc.collect()
        own: list[Callable[[], Tensor]] = []

        def prepare(way: BaseWay = way, own: list[Callable[[], Tensor]] = own) -> None:
            call = partial(_predictions, built(unet, way.build, backend), inputs, way.attention)
            call()  # compiles, where the way compiles
            own.append(Captured.by(recorder, call) if recorder else call)

        ready = seconds_of(prepare, bed.device)
        first = first or own[0]
        expected = own[0]().clone() if expected is None else expected
        turns = take_turns({"first": first, "own": own[0]}, bed.device, repeats)
        findings.append(
            BaseFinding(
                way,
                turns["own"],
                ready,
                relative(own[0](), expected),
                profiled(own[0], 1, bed.device) if profile else None,
            )
        )
        print(line(findings[-1], findings[0]), flush=True)
    return findings


def _predictions(unet: Any, inputs: dict[str, Any], attention: AttentionChoice) -> Tensor:
    with torch.inference_mode(), attention_by(attention):
        found: Tensor = unet(**inputs, return_dict=False)[0]
    return found


def line(finding: BaseFinding, first: BaseFinding) -> str:
    """A line of text for a way, with the lines of its profile below."""
    median = finding.timing.median
    text = (
        f"  {finding.way.label:28}{1000 * median:10.2f} ms  spread {finding.timing.spread:6.1%}  x first "
        f"{median / first.timing.median:6.3f}  difference {finding.difference:8.1e}  ready {finding.ready:6.1f} s"
    )
    return "\n".join([text, *(finding.profile.lines(median) if finding.profile else ())])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studio.bench.base",
        description="For developers of the studio. " + (__doc__ or "").split("\n")[0],
    )
    parser.add_argument(
        "--model", default="tiny-sdxl", help="sdxl and sd15 are made here, with random weights"
    )
    parser.add_argument("--size", type=int, nargs="+", default=[128], help="pixels a side")
    parser.add_argument("--images", type=int, default=8, help="pictures in the call, two rows each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="", help="default: float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument("--builds", nargs="+", choices=get_args(Build), default=["plain", "compiled"])
    parser.add_argument("--attention", nargs="+", choices=get_args(AttentionChoice), default=["auto"])
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="also where the time of every way goes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    unet = load_unet(options.model, Home.resolve(), device, dtype)
    ways = [BaseWay(build, attention) for build in options.builds for attention in options.attention]
    found = {}
    print(
        f"{options.model}, {options.images} pictures, {device_name(device)}, torch {torch.__version__}, {dtype}"
    )
    for size in options.size:
        print(f"{size} x {size}")
        findings = measure(
            unet,
            options.images,
            size // 8,
            ways,
            options.repeats,
            profile=options.profile,
            backend=options.backend,
        )
        found[size] = [asdict(finding) for finding in findings]
    if options.json:
        options.json.write_text(
            json.dumps({"device": device_name(device), "found": found}, indent=1), encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
