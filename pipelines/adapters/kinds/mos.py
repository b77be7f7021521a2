"""MoS: low-rank factors put together from shards of pools that all layers share, dW = scale B A.

Wang et al. 2024 (arXiv 2410.00938). `mos_down` [n, k] and `mos_up` [m, l] are the pools; `mos.down` [r, in / k] and
`mos.up` [r, out / l] are the shards of which each row of A, and each column of B, is made, in order.
"""

from __future__ import annotations

from torch import Tensor

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class Mos(Paper):
    """MoS."""

    name, word, parts = "MoS", "mos", ("down", "up")
    indices, pools = parts, parts

    def change(self, sheet: Sheet) -> LowRank | Whole:
        down = _joined(sheet, "down", sheet.width)
        return sheet.low_rank(down, _joined(sheet, "up", sheet.out).mT, sheet.scale(len(down)))


def _joined(sheet: Sheet, part: str, width: int) -> Tensor:
    """The rows [r, width] that shards of a pool make. Raises AdapterError."""
    pool = sheet.pool(part)
    if width % pool.shape[1]:
        raise sheet.misfit(part)
    return pool[sheet.places(part, len(pool), None, width // pool.shape[1])].flatten(1)
