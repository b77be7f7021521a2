"""Run by `test_kernels.py` as a program of its own: Triton takes its interpreter only where that is asked for before
it is imported. Prints a line for every case: what it is, and its relative distance from torch in float32."""

from __future__ import annotations

import itertools
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from pipelines.engine.products import kernels

GROUPS, TOKENS, OUT = 3, 21, 24  # none a multiple of the tile's side
RANK = 19
INNER = 150


def expected(
    x: Tensor, weights: Tensor, bias: Tensor | None, shrunk: Tensor | None, ups: Tensor | None, geglu: bool
) -> Tensor:
    parts = []
    for part, weight in enumerate(weights.float()):
        y = x.float() @ weight.mT
        if shrunk is not None and ups is not None:
            y += shrunk.float().chunk(len(weights), dim=-1)[part] @ ups[part].float()
        parts.append(y if bias is None else y + bias.float())
    y = torch.cat(parts, dim=-1)
    if geglu:
        value, gate = y.chunk(2, dim=-1)
        y = value * torch.nn.functional.gelu(gate)
    return y


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def main() -> None:
    torch.manual_seed(0)
    flags = list(itertools.product((False, True), repeat=5))
    for place, (own, bias, low_rank, geglu, persistent) in enumerate(flags):
        if sum(flags[place]) % 2:
            continue  # of every four flags, all combinations are left
        dtype = torch.float16 if place % 3 == 0 else torch.float32
        descriptors = (place + place // 2) % 2 == 1
        inner = 40 if descriptors else 37  # descriptors need rows of whole 16 bytes
        out = OUT * (2 if geglu else 1)
        parts = 1 if own or bias or geglu else 3  # query, key and value
        x = torch.randn(GROUPS, TOKENS, inner).to(dtype)
        weights = (torch.randn(parts, *((GROUPS,) if own else ()), out, inner) / inner**0.5).to(dtype)
        offset = torch.randn(out).to(dtype) if bias else None
        shrunk = torch.randn(GROUPS, TOKENS, parts * RANK).to(dtype) if low_rank else None
        ups = (torch.randn(parts, GROUPS, RANK, out) / RANK**0.5).to(dtype) if low_rank else None
        tile = kernels.Tile(16, 16, 16, 4, 2, persistent, descriptors)
        found = kernels.product(x, weights, offset, shrunk, ups, geglu, tile)
        difference = apart(found, expected(x, weights, offset, shrunk, ups, geglu))
        print(
            f"parts={parts} own={own} bias={bias} low_rank={low_rank} geglu={geglu} persistent={persistent} "
            f"descriptors={descriptors} {str(dtype).removeprefix('torch.')} {difference:.3e}"
        )
    y, bias = torch.randn(5, 2 * 37), torch.randn(2 * 37)
    for offset in (None, bias):
        value, gate = (y if offset is None else y + offset).chunk(2, dim=-1)
        difference = apart(kernels.geglu(y, offset), value * torch.nn.functional.gelu(gate))
        print(f"geglu alone bias={offset is not None} float32 {difference:.3e}")
    for parts, dtype in ((1, torch.float32), (3, torch.float32), (3, torch.float16)):
        weights = torch.randn(parts, OUT, INNER).to(dtype)
        down = torch.randn(GROUPS, parts * RANK, INNER).to(dtype)
        ups = (torch.randn(parts, GROUPS, RANK, OUT) / RANK**0.5).to(dtype)
        pieces = zip(weights.float(), down.float().chunk(parts, dim=1), ups.float(), strict=True)
        wanted = torch.cat([weight + up.mT @ own for weight, own, up in pieces], dim=1)
        difference = apart(kernels.merged(weights, down, ups), wanted)
        print(f"merged parts={parts} {str(dtype).removeprefix('torch.')} {difference:.3e}")


if __name__ == "__main__":
    main()
