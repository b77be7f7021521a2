"""DeLoRA: a low-rank change of bounded size, dW = (lambda / rank) B diag(1 / (|a| |b|)) A, times a length per input.

Bini et al. 2025 (arXiv 2503.18225), as PEFT writes it: `delora_A` [rank, in], `delora_B` [out, rank], `delora_lambda`
[1], `delora_w_norm` [in], the norms of the base weight's columns at the start. |a| and |b| of each rank are 1e-4 at
least.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, number, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

PARTS = ("delora_A", "delora_B")
BOUND, NORMS = "delora_lambda", "delora_w_norm"


class Delora(AdapterKind):
    """DeLoRA."""

    name = "DeLoRA"
    leaves = peft_leaves(*PARTS, BOUND, NORMS)
    input_axes: Mapping[str, int] = {"delora_A": 1}
    peft_types = ("DELORA",)
    terms = "low rank"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        down, up, _, lengths = whole(layer, *PARTS, BOUND, NORMS)
        out, width = target.shape[:2]
        rank = len(down)
        fits = tuple(down.shape) == (rank, width) and tuple(up.shape) == (out, rank)
        if not fits or lengths.numel() != width or target.kernel > 1:
            raise misfit(layer, target, *PARTS, NORMS)
        norms = down.norm(dim=1).clamp(min=1e-4) * up.norm(dim=0).clamp(min=1e-4)
        down = down * lengths.view(1, width) / norms.view(rank, 1)
        return smaller(down, up, number(layer, BOUND) / rank, target)
