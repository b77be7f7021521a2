"""LoRA-XS: a small trained matrix between singular vectors of the weight, dW = scale U S R V^T.

Bałazy et al. 2024 (arXiv 2405.17604). `lora_xs.core` [r, r] = R; `lora_xs.down`, `lora_xs.up` in place of V^T and U S.
"""

from __future__ import annotations

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class LoraXs(Paper):
    """LoRA-XS."""

    name, word, parts = "LoRA-XS", "lora_xs", ("core", "down", "up")
    needs_base = True

    def change(self, sheet: Sheet) -> LowRank | Whole:
        core = sheet.square("core")
        down, up = sheet.outer(len(core), 1.0)
        return sheet.low_rank(core @ down, up, sheet.scale(len(core)))
