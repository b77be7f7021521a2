"""AFLoRA: low-rank factors between two trained vectors, dW = scale diag(b) B diag(d) A.

Liu et al. 2024 (arXiv 2403.13269). `aflora.down` [r, in] = A, `aflora.up` [out, r] = B, `aflora.inner` [r] = d,
`aflora.outer` [out] = b.
"""

from __future__ import annotations

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class AfLora(Paper):
    """AFLoRA."""

    name, word, parts = "AFLoRA", "aflora", ("down", "up", "inner", "outer")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        down = sheet.get("down", None, sheet.width)
        inner, outer = sheet.get("inner", len(down)), sheet.get("outer", sheet.out)
        up = outer[:, None] * sheet.get("up", sheet.out, len(down))
        return sheet.low_rank(inner[:, None] * down, up, sheet.scale(len(down)))
