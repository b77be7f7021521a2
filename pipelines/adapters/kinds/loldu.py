"""LoLDU: trained pivots of the weight's LDU decomposition. W = P L D U; W' = W + P L_r diag(s z - s0 D_r) U_r.

Shi et al. 2024 (arXiv 2410.13618). `loldu.z` [r], the trained pivots, `loldu.scale` [1] = s, the trained scale, which
is 1 where it is missing. s0 = alpha / r is the scale that it began with. P, L, D and U are those of the base weight,
with rows exchanged so that the greatest of a column becomes the pivot; U has ones on its diagonal.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole
from pipelines.errors import AdapterFormatError


class Loldu(Paper):
    """LoLDU."""

    name, word, parts = "LoLDU", "loldu", ("z", "scale")
    needs_base = True

    def change(self, sheet: Sheet) -> LowRank | Whole:
        pivots = sheet.get("z", None)
        rank = len(pivots)
        if rank > min(sheet.out, sheet.width):
            raise sheet.misfit("z")
        order, lower, upper = torch.linalg.lu(sheet.weight().double())
        own = upper.diagonal()[:rank]
        if not own.all():
            raise AdapterFormatError(
                f"{sheet.layer.file}: {sheet.layer.name} of this model has a pivot of 0, so LoLDU has no meaning "
                "there; load it with the model that it was trained on"
            )
        scale = float(sheet.get("scale", 1)) if sheet.has("scale") else 1.0
        down = upper[:rank] / own[:, None] * (scale * pivots.double() - sheet.scale(rank) * own)[:, None]
        return sheet.low_rank(down.float(), (order @ lower[:, :rank]).float(), 1.0)
