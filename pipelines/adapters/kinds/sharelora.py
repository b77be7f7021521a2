"""ShareLoRA: LoRA of which all layers share one half, dW = scale B A.

Song et al. 2024 (arXiv 2406.10785). `sharelora_down` [r, widest in] is shared, of which a layer uses the first columns,
beside its own `sharelora.up` [out, r]; or `sharelora_up` [widest out, r] beside its own `sharelora.down` [r, in].
"""

from __future__ import annotations

from torch import Tensor

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class ShareLora(Paper):
    """ShareLoRA."""

    name, word, parts = "ShareLoRA", "sharelora", ("down", "up")
    pools = parts

    def change(self, sheet: Sheet) -> LowRank | Whole:
        down = (
            sheet.get("down", None, sheet.width) if sheet.has("down") else _part(sheet, "down", sheet.width)
        )
        up = sheet.get("up", sheet.out, None) if sheet.has("up") else _part(sheet, "up", sheet.out)
        return sheet.low_rank(down, up, sheet.scale(len(down)))


def _part(sheet: Sheet, half: str, width: int) -> Tensor:
    """The first columns of the shared half, or its first rows. Raises AdapterError."""
    pool = sheet.pool(half)
    return pool[:, :width] if half == "down" else pool[:width]
