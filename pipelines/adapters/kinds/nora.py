"""NoRA: a trained LoRA within a frozen one, dW = scale B B' A' A, with B = U S^(1/2) and A = S^(1/2) V^T of the weight.

Lin et al. 2024 (arXiv 2408.10280). `nora.inner_up` [R, r] = B', `nora.inner_down` [r, R] = A'; `nora.down`, `nora.up`
in place of A and B. The scale is alpha / r.
"""

from __future__ import annotations

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class Nora(Paper):
    """NoRA."""

    name, word, parts = "NoRA", "nora", ("inner_down", "inner_up", "down", "up")
    needs_base = True

    def change(self, sheet: Sheet) -> LowRank | Whole:
        inner = sheet.get("inner_down", None, None)
        rank, most = inner.shape
        down, up = sheet.outer(most, 0.5)
        return sheet.low_rank(inner @ down, up @ sheet.get("inner_up", most, rank), sheet.scale(rank))
