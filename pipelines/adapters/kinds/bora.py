"""BoRA: DoRA on both axes in turn. V = W + scale B A; V' = m_in V / |V| for each input; W' = m_out V' / |V'| for each
output.

Wang et al. 2024 (arXiv 2412.06441). `bora.down` [r, in], `bora.up` [out, r], `bora.in` [in], `bora.out` [out]. In a
convolution `bora.in` has one length for each input channel, over all taps, and `bora.down` all of them.
"""

from __future__ import annotations

from pipelines.adapters.kinds.dora import weighed
from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import Several


class Bora(Paper):
    """BoRA."""

    name, word, parts = "BoRA", "bora", ("down", "up", "in", "out")
    needs_base = True

    def change(self, sheet: Sheet) -> Several:
        down = sheet.get("down", None, sheet.width)
        own = sheet.low_rank(down, sheet.get("up", sheet.out, len(down)), sheet.scale(len(down)))
        inputs, outputs = sheet.get("in", sheet.target.shape[1]), sheet.get("out", sheet.out)
        return weighed(sheet.target, own, {1: inputs, 0: outputs})
