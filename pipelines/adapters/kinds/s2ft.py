"""S²FT: some rows or columns of the weight are trained, dW = scale * these, and 0 elsewhere.

Yang et al. 2024 (arXiv 2412.06289). `s2ft.rows` [n] and `s2ft.row_values` [n, in]; `s2ft.columns` [m] and
`s2ft.column_values` [out, m]; or both, whose changes add up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class S2ft(Paper):
    """S²FT."""

    name, word, parts = "S²FT", "s2ft", ("rows", "row_values", "columns", "column_values")
    indices = ("rows", "columns")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        downs, ups = [], []
        if sheet.has("rows") or sheet.has("row_values"):
            rows = sheet.once("rows", sheet.places("rows", sheet.out, None))
            downs.append(sheet.get("row_values", len(rows), sheet.width))
            ups.append(F.one_hot(rows, sheet.out).float().mT)
        if sheet.has("columns") or sheet.has("column_values"):
            columns = sheet.once("columns", sheet.places("columns", sheet.width, None))
            downs.append(F.one_hot(columns, sheet.width).float())
            ups.append(sheet.get("column_values", sheet.out, len(columns)))
        return sheet.low_rank(torch.cat(downs), torch.cat(ups, dim=1), sheet.scale())
