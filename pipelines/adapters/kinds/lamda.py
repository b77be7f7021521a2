"""LaMDA: a small matrix between two projections that training freezes one after the other, dW = scale B S A.

Azizi et al. 2024 (arXiv 2406.12832). `lamda.first` [r, in] = A, `lamda.core` [r, r] = S, `lamda.second` [out, r] = B.
"""

from __future__ import annotations

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class Lamda(Paper):
    """LaMDA."""

    name, word, parts = "LaMDA", "lamda", ("first", "core", "second")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        first = sheet.get("first", None, sheet.width)
        core = sheet.get("core", len(first), len(first))
        return sheet.low_rank(
            core @ first, sheet.get("second", sheet.out, len(first)), sheet.scale(len(first))
        )
