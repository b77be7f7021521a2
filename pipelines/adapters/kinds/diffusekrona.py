"""DiffuseKronA: a Kronecker product, dW = scale kron(A, B).

Marjit et al. 2024 (arXiv 2402.17412). `krona.first` [o1, i1] = A, `krona.second` [o2, i2] = B; out is o1 o2, in
is i1 i2.
"""

from __future__ import annotations

from pipelines.adapters.kinds.papers import Paper, Sheet, kron
from pipelines.adapters.terms import LowRank, Whole


class DiffuseKrona(Paper):
    """DiffuseKronA."""

    name, word, parts = "DiffuseKronA", "krona", ("first", "second")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        return sheet.dense(kron(sheet, "first", "second"), sheet.scale())
