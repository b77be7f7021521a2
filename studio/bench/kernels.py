"""Times products of real layers by the library and by each kernel, among which `pipe.optimize(kernels=True)` chooses.

    python -m studio.bench.kernels [--device cuda] [--json FILE]

For developers: it is no command of `lora-studio`.

Shapes are those of 8 pictures with guidance, 16 lanes in 8 groups, with rank 48 (3 adapters of 16) where low-rank parts
act. A way's time is the median of five replays of a CUDA graph of 20 calls.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipelines.engine.products.autotune import Choice, available, clock, measured
from pipelines.engine.products.factors import merging_product
from pipelines.engine.products.operands import IN_PASSING, LIBRARY, Operands
from pipelines.errors import SetupError
from pipelines.record import device_name

GROUPS, RANK = 8, 48


@dataclass(frozen=True)
class Product:
    """The product of one layer, or of several in one. tokens: of a group, which is a picture's two lanes. outputs: of
    one layer."""

    name: str
    tokens: int
    inputs: int
    outputs: int
    rank: int = 0
    parts: int = 1
    own: bool = False
    bias: bool = False
    geglu: bool = False

    @property
    def operations(self) -> float:
        """Floating-point operations of one call: the layers' own, shrinking, and the low-rank parts."""
        rank, tokens = self.parts * self.rank, GROUPS * self.tokens
        return 2.0 * tokens * (self.inputs * (self.parts * self.outputs + rank) + rank * self.outputs)

    def operands(self, device: torch.device, dtype: torch.dtype) -> Operands:
        def made(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        groups = GROUPS if self.rank or self.own else 1
        return Operands(
            made(groups, GROUPS // groups * self.tokens, self.inputs),
            made(self.parts, *((GROUPS,) if self.own else ()), self.outputs, self.inputs).unbind(),
            made(self.outputs) if self.bias else None,
            made(GROUPS, self.parts * self.rank, self.inputs) if self.rank else None,
            made(self.parts, GROUPS, self.rank, self.outputs).unbind() if self.rank else (),
            None,
            self.geglu,
        ).twin()


def products(name: str, tokens: int, width: int) -> list[Product]:
    """The products of one transformer level."""
    return [
        Product(f"{name} q/k/v", tokens, width, width, RANK, parts=3),
        Product(f"{name} query", tokens, width, width, RANK),
        Product(f"{name} attention out", tokens, width, width, RANK, bias=True),
        Product(f"{name} feed-forward out", tokens, 4 * width, width, RANK),
        Product(f"{name} dense q/k/v", tokens, width, 3 * width, own=True),
        Product(f"{name} GEGLU", tokens, width, 8 * width, bias=True, geglu=True),
        Product(f"{name} GEGLU low-rank", tokens, width, 8 * width, RANK, bias=True, geglu=True),
    ]


LAYERS = [
    *products("SDXL 1024 px, 1280", 2 * 1024, 1280),
    *products("SDXL 1024 px, 640", 2 * 4096, 640),
    *products("SDXL 512 px, 1280", 2 * 256, 1280),
    *products("SDXL 512 px, 640", 2 * 1024, 640),
    *products("SD1.5 512 px, 320", 2 * 4096, 320),
]


@torch.inference_mode()
def measure(product: Product, device: torch.device, dtype: torch.dtype) -> Choice:
    """Times all ways to compute one product, also those that the engine takes without kernels. Raises
    torch.OutOfMemoryError."""
    operands = product.operands(device, dtype)
    ways = operands.ways()
    if IN_PASSING in ways and product.parts == 1 and not product.geglu and operands.bias is None:
        assert operands.down is not None
        own = operands.weights[0], operands.down, operands.ups[0]
        ways[f"{IN_PASSING} by the library"] = lambda: merging_product(operands.x, *own)
    return measured(ways, clock(device))


def table(product: Product, choice: Choice) -> str:
    base = choice.microseconds[LIBRARY]
    lines = [f"{product.name}: {choice.name}, {choice.microseconds[choice.name] / base:.3f} of the library's"]
    for name, microseconds in sorted(choice.microseconds.items(), key=lambda item: item[1]):
        rate = product.operations / microseconds / 1e6
        lines.append(f"  {name:54}{microseconds:10.1f} us{microseconds / base:8.3f}{rate:8.0f} TFLOP/s")
    lines += [f"  {name:54}dropped: {why}" for name, why in choice.dropped.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studio.bench.kernels",
        description="For developers of the studio. " + (__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type != "cuda" or not torch.cuda.is_available() or not available():
        raise SetupError(
            "the kernels need a CUDA device and Triton; try --device cuda on a computer that has both"
        )
    found = []
    for product in LAYERS:
        choice = measure(product, device, getattr(torch, options.dtype))
        print(table(product, choice), flush=True)
        found.append(asdict(product) | {"operations": product.operations} | asdict(choice))
        if options.json:  # written after every product, in case the run is cut short
            figures = {"device": device_name(device), "torch": torch.__version__, "products": found}
            options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
