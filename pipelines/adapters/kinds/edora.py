"""EDoRA: DoRA around a small matrix between singular vectors of the weight. V = W + scale U S R V^T, W' = m V / |V|.

Nasiri and Garraghan 2025 (arXiv 2501.12067). `edora.core` [r, r] = R; `edora.length` [out, 1], one for each output, or
[1, in], one for each input (channel); `edora.down`, `edora.up` in place of V^T and U S.
"""

from __future__ import annotations

from pipelines.adapters.kinds.dora import weighed
from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import Several


class Edora(Paper):
    """EDoRA."""

    name, word, parts = "EDoRA", "edora", ("core", "length", "down", "up")
    needs_base = True

    def change(self, sheet: Sheet) -> Several:
        core = sheet.square("core")
        down, up = sheet.outer(len(core), 1.0)
        own = sheet.low_rank(core @ down, up, sheet.scale(len(core)))
        length = sheet.get("length", None, None)
        axis = 0 if length.shape[1] == 1 and len(length) == sheet.out else 1
        wanted = (sheet.out, 1) if axis == 0 else (1, sheet.target.shape[1])
        if tuple(length.shape) != wanted:
            raise sheet.misfit("length")
        return weighed(sheet.target, own, {axis: length.flatten()})
