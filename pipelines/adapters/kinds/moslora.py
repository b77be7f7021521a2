"""MoSLoRA: LoRA with a trained mixer between its halves, dW = scale B M A.

Wu et al. 2024 (arXiv 2406.11909). `moslora.down` [r, in] = A, `moslora.mixer` [r, r] = M, `moslora.up` [out, r] = B.
"""

from __future__ import annotations

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class MosLora(Paper):
    """MoSLoRA."""

    name, word, parts = "MoSLoRA", "moslora", ("down", "mixer", "up")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        down = sheet.get("down", None, sheet.width)
        mixer = sheet.get("mixer", len(down), len(down))
        return sheet.low_rank(mixer @ down, sheet.get("up", sheet.out, len(down)), sheet.scale(len(down)))
