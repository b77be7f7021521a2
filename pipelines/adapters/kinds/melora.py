"""MELoRA: many small LoRAs side by side, dW = scale diag(B1 A1, …, Bn An).

Ren et al. 2024 (arXiv 2402.17263). `melora.down` [n, r, in / n], `melora.up` [n, out / n, r]. The scale is alpha / r.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class Melora(Paper):
    """MELoRA."""

    name, word, parts = "MELoRA", "melora", ("down", "up")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        down, up = sheet.get("down", None, None, None), sheet.get("up", None, None, None)
        count, rank, _ = down.shape
        if len(up) != count or up.shape[2] != rank or rank > down.shape[2]:
            raise sheet.misfit("down", "up")
        if count * down.shape[2] != sheet.width or count * up.shape[1] != sheet.out:
            raise sheet.misfit("down", "up")
        joined = (torch.block_diag(*down), torch.block_diag(*up))  # type: ignore[no-untyped-call]
        return sheet.low_rank(*joined, sheet.scale(rank))
