"""OFT and BOFT: rotations of a layer's outputs, in blocks. W' = rescale * (the rotated W). Biases stay.

Qiu et al. 2023 (arXiv 2306.07280) and Liu et al. 2023 (arXiv 2311.06243), as LyCORIS writes them.

OFT:  `oft_blocks` [n, b, b], n * b outputs. Q = B - B^T, R = (I + Q)(I - Q)^-1, and each block of rows becomes R^T W.
BOFT: `oft_blocks` [m, n, b, b]. m stages; before stage j the rows (c, 2, k), k = 2^j b / 2, are put in the order
      (c, k, 2), and after it back. Each block of b rows then becomes R W: here R, not its transpose.

`rescale` [out, 1, …] multiplies the rows. `alpha` is a bound here, no scale: the norm of all Q together is at most
alpha * out, and 0, the usual value, means no bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer
from pipelines.adapters.kinds.parts import IN_ORDER, cayley, misfit, number, whole
from pipelines.adapters.terms import Target, Whole

PARTS = ("oft_blocks", "rescale")


class Oft(AdapterKind):
    """OFT and BOFT."""

    name = "(B)OFT"
    leaves: Mapping[str, Leaf] = {part: Leaf(part, "") for part in PARTS}
    ends: Mapping[Format, Mapping[str, str]] = {"kohya": {part: part for part in PARTS}}
    terms = "a whole difference: the turned base weight"
    needs_base = True

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        butterfly = len(shapes.get("oft_blocks", ())) == 4
        strength = (
            "LyCORIS, ComfyUI and A1111 apply a strength to each stage, which differs from ours at all but 0 and 1"
            if butterfly
            else "ComfyUI applies a strength twice (s²)"
        )
        return (
            f"diffusers refuses it; {strength}",
            "ComfyUI and kohya take an alpha above 0 for a smaller bound than LyCORIS, which trained it",
            *(("ComfyUI ignores rescale",) if "rescale" in shapes and not butterfly else ()),
            IN_ORDER,
        )

    def read(self, layer: RawLayer, target: Target) -> Whole:
        [blocks] = whole(layer, "oft_blocks")
        size, count = blocks.shape[-1], blocks.shape[-3] if blocks.ndim > 2 else 0
        square = blocks.ndim in (3, 4) and blocks.shape[-2] == size and size * count == target.shape[0]
        if not square or (
            blocks.ndim == 4 and (size % 2 or target.shape[0] % (2 ** (len(blocks) - 1) * size))
        ):
            raise misfit(layer, target, "oft_blocks")
        bound = number(layer, "alpha") * target.shape[0] if "alpha" in layer.parts else 0.0
        turns, base = cayley(blocks, bound), target.weight()
        rows = base.flatten(1)
        rows = _turned(turns.mT, rows) if blocks.ndim == 3 else _butterfly(turns, rows)
        if "rescale" in layer.parts:
            [factor] = whole(layer, "rescale")
            if factor.numel() != len(rows):
                raise misfit(layer, target, "rescale")
            rows = rows * factor.reshape(-1, 1)
        return Whole(rows.reshape(base.shape) - base)


def _turned(turns: Tensor, rows: Tensor) -> Tensor:
    """Each block of b rows [n * b, in] times its turn [n, b, b]."""
    return (turns @ rows.view(len(turns), turns.shape[-1], -1)).flatten(0, 1)


def _butterfly(stages: Tensor, rows: Tensor) -> Tensor:
    size = stages.shape[-1]
    for stage, turns in enumerate(stages):
        reach = 2**stage * size // 2
        order = torch.arange(len(rows)).view(-1, 2, reach).mT.flatten()
        turned = _turned(turns, rows[order])
        rows = torch.empty_like(rows).index_copy_(0, order, turned)
    return rows
