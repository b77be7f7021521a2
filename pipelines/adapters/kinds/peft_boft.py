"""BOFT as PEFT writes it: rotations of a layer's inputs in stages, W' = s * (W M^T), with s for each output.

Liu et al. 2023 (arXiv 2311.06243). `boft_R` [m, n, b, b], n * b = in * kernel; `boft_s` [out, 1], a convolution's
[1, out]. Q = (B - B^T) / 2, each block's turn is (1 - Q)(1 + Q)^-1. Stage j acts on inputs in the order that puts, in
each run of 2^j b, the even halves of blocks before the odd ones. M is the last stage times … times the first.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, whole
from pipelines.adapters.terms import Target, Whole

TURNS, FACTORS = "boft_R", "boft_s"


class PeftBoft(AdapterKind):
    """PEFT's BOFT."""

    name = "BOFT"
    leaves = peft_leaves(TURNS, FACTORS)
    peft_types = ("BOFT",)
    terms = "a whole difference: the turned base weight"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> Whole:
        blocks, factors = whole(layer, TURNS, FACTORS)
        width = target.inputs
        stages, count, size = blocks.shape[:3] if blocks.ndim == 4 else (0, 0, 0)
        fits = blocks.shape[-1] == size and count * size == width and factors.numel() == target.shape[0]
        if not fits or (stages > 1 and (size % 2 or width % (2 ** (stages - 1) * size))):
            raise misfit(layer, target, TURNS, FACTORS)
        skewed = (blocks - blocks.mT) / 2
        eye = torch.eye(size)
        turns = (eye - skewed) @ torch.linalg.inv(eye + skewed)
        base = target.weight()
        columns = base.flatten(1).mT  # [in * kernel, out]
        for stage in range(stages):
            order = _order(width, stage, size) if stages > 1 else torch.arange(width)
            placed = torch.empty_like(columns).index_copy_(0, order, columns)
            turned = turns[stage] @ placed.view(count, size, -1)
            columns = turned.flatten(0, 1)[order]
        return Whole((columns.mT * factors.view(-1, 1)).reshape(base.shape) - base)


def _order(width: int, stage: int, size: int) -> torch.Tensor:
    """The order of the inputs at a stage, [width]."""
    halves = torch.arange(width).view(-1, 2 ** (stage + 1), size // 2)
    return torch.cat([halves[:, 0::2], halves[:, 1::2]], dim=1).flatten()
