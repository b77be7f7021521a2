"""SMT: some square blocks of the weight are trained, dW = scale * these blocks, and 0 elsewhere.

He et al. 2024 (arXiv 2405.15525). `smt.blocks` [n, h, w], `smt.places` [n, 2]: the block (a, b) changes the rows a h to
(a + 1) h and the columns b w to (b + 1) w.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class Smt(Paper):
    """SMT."""

    name, word, parts = "SMT", "smt", ("blocks", "places")
    indices = ("places",)

    def change(self, sheet: Sheet) -> LowRank | Whole:
        blocks = sheet.get("blocks", None, None, None, most=sheet.out * sheet.width)
        count, high, wide = blocks.shape
        rows, columns = sheet.out // high, sheet.width // wide
        if rows * high != sheet.out or columns * wide != sheet.width:
            raise sheet.misfit("blocks")
        places = sheet.once("places", sheet.places("places", max(rows, columns), count, 2))
        if (places >= torch.tensor([rows, columns])).any():
            raise sheet.misfit("blocks", "places")
        change = torch.zeros(rows, columns, high, wide)
        change[places[:, 0], places[:, 1]] = blocks
        return sheet.dense(change.transpose(1, 2).reshape(sheet.out, sheet.width), sheet.scale())
