"""VB-LoRA: low-rank factors put together from a bank of vectors that all layers share, dW = B A.

Li et al. 2024 (arXiv 2405.15179), as PEFT writes it: `vblora_logits_A` [rank, in / length, n], `vblora_logits_B`
[out / length, rank, n], and once `vblora_vector_bank` [n, length]. Each piece of a factor is the mean of the vectors
with the `topk` greatest logits, weighed by their softmax. Or the file holds these: `…_topk_indices` [.., .., k] and
`…_topk_weights` [.., .., k - 1], the last weight being what the others leave of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import common, misfit, numeric, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

BANK = "vblora_vector_bank"
HALVES = ("vblora_logits_A", "vblora_logits_B")
CHOSEN, WEIGHTS = "_topk_indices", "_topk_weights"


class VbLora(AdapterKind):
    """VB-LoRA."""

    name = "VB-LoRA"
    leaves = peft_leaves(
        *(half + end for half in HALVES for end in ("", CHOSEN, WEIGHTS)),
        integers=[half + CHOSEN for half in HALVES],
    )
    peft_types = ("VBLORA",)
    shared = (BANK,)
    terms = "low rank: vectors of a common bank"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        [bank] = common(layer, (BANK,), "its vector bank")
        inner, outer = (self._pieces(layer, target, half, bank) for half in HALVES)
        down, up = inner.flatten(1), outer.transpose(1, 2).flatten(0, 1)
        if (
            down.shape[1] != target.inputs
            or tuple(up.shape) != (target.shape[0], len(down))
            or target.kernel > 1
        ):
            raise misfit(layer, target, *(part for part in layer.parts))
        return smaller(down, up.contiguous(), 1.0, target)

    def _pieces(self, layer: RawLayer, target: Target, half: str, bank: Tensor) -> Tensor:
        """[.., .., length]: the vectors that a half is put together from. Raises AdapterError."""
        if half in layer.parts:
            [logits] = whole(layer, half)
            most = int(numeric(layer, "topk"))
            if (
                logits.ndim != 3
                or bank.ndim != 2
                or logits.shape[2] != len(bank)
                or not 1 <= most <= len(bank)
            ):
                raise misfit(layer, target, half)
            values, chosen = logits.topk(most, dim=-1)
            weights = values.softmax(dim=-1)
        else:
            [weights, _] = whole(layer, half + WEIGHTS, half + CHOSEN)
            chosen = layer.parts[half + CHOSEN].long()
            fits = weights.ndim == 3 and chosen.shape == (*weights.shape[:2], weights.shape[2] + 1)
            if not fits or bank.ndim != 2 or (chosen < 0).any() or (chosen >= len(bank)).any():
                raise misfit(layer, target, half + WEIGHTS, half + CHOSEN)
            weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
        return torch.einsum("abk,abkl->abl", weights, bank[chosen])
