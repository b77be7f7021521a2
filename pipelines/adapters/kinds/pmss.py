"""PMSS: a trained matrix between columns and rows that are picked from the weight, dW = scale C M R.

Wang et al. 2024 (arXiv 2409.16722). `pmss.columns` [c] and `pmss.rows` [r], the numbers of those picked:
C = W[:, columns], R = W[rows]. `pmss.core` [c, r] = M. The scale is alpha / c.
"""

from __future__ import annotations

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class Pmss(Paper):
    """PMSS."""

    name, word, parts = "PMSS", "pmss", ("columns", "rows", "core")
    needs_base = True
    indices = ("columns", "rows")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        columns, rows = sheet.places("columns", sheet.width, None), sheet.places("rows", sheet.out, None)
        core, weight = sheet.get("core", len(columns), len(rows)), sheet.weight()
        return sheet.low_rank(core @ weight[rows], weight[:, columns], sheet.scale(len(columns)))
