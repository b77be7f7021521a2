"""SURM: changes of full rank with few numbers: a Kronecker product, a circulant or a Toeplitz matrix.

Sehanobish et al. 2024 (arXiv 2406.17740). One of

    surm.first, surm.second   dW = kron(first, second)
    surm.circulant [n]        dW[p, q] = c[(p - q) mod n], n at least the larger of out and in
    surm.toeplitz [out + in - 1]   dW[p, q] = t[p - q + in - 1]
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.papers import Paper, Sheet, kron
from pipelines.adapters.terms import LowRank, Whole


class Surm(Paper):
    """SURM."""

    name, word, parts = "SURM", "surm", ("first", "second", "circulant", "toeplitz")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        found = [part for part in self.parts[1:] if sheet.has(part)]
        if len(found) > 1 or (sheet.has("first") and found != ["second"]):
            raise sheet.misfit(*self.parts)
        if not found or found == ["second"]:
            return sheet.dense(kron(sheet, "first", "second"), sheet.scale())
        apart = torch.arange(sheet.out)[:, None] - torch.arange(sheet.width)
        if found == ["toeplitz"]:
            numbers = sheet.get("toeplitz", sheet.out + sheet.width - 1)
            return sheet.dense(numbers[apart + sheet.width - 1], sheet.scale())
        numbers = sheet.get("circulant", None)
        if len(numbers) < max(sheet.out, sheet.width):
            raise sheet.misfit("circulant")
        return sheet.dense(numbers[apart % len(numbers)], sheet.scale())
