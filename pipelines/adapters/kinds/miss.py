"""MiSS: one small block, repeated over the weight. dW[o, i] = block[i mod rank, o].

Kang and Yin 2024 (arXiv 2409.15371), as PEFT writes it: `miss_block` [rank, out]; "mini" keeps [rank, mini], repeated
over the outputs; "bat" keeps [out / rank, rank, rank] = B, and each rank x rank tile of the weight changes by W B + B,
with the B of its rows. The shape tells which.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

PART = "miss_block"


class Miss(AdapterKind):
    """MiSS."""

    name = "MiSS"
    leaves = peft_leaves(PART)
    peft_types = ("MISS",)
    terms = "low rank: a block that is repeated"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        [block] = whole(layer, PART)
        if target.kernel > 1 or block.ndim not in (2, 3):
            raise misfit(layer, target, PART)
        out, width = target.shape[:2]
        if block.ndim == 3:
            return self._bat(layer, target, block)
        rank, kept = block.shape
        if out % kept or rank > width:
            raise misfit(layer, target, PART)
        down = torch.eye(rank).repeat(1, -(-width // rank))[:, :width]
        return smaller(down, block.repeat(1, out // kept).mT.contiguous(), 1.0, target)

    def _bat(self, layer: RawLayer, target: Target, block: torch.Tensor) -> Whole:
        out, width = target.shape[:2]
        count, rank = block.shape[:2]
        if block.shape[2] != rank or count * rank != out or width % rank:
            raise misfit(layer, target, PART)
        tiles = target.weight().view(count, rank, width // rank, rank).permute(2, 0, 1, 3)
        change = (tiles @ block + block).permute(1, 2, 0, 3)
        return Whole(change.reshape(target.shape))
