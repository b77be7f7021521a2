"""HRA: a chain of reflections of a layer's inputs, W' = W (1 - 2 u1 u1^T)(1 - 2 u2 u2^T) …, of rank r exactly.

Yuan et al. 2024 (arXiv 2405.17484), as PEFT writes it: `hra_u` [in * kernel, rank], each column made a unit vector;
with the setting `apply_GS` they are made orthogonal first. The product is 1 - U T U^T with T^-1 = 1/2 + the strict
upper triangle of U^T U (the compact WY form), so dW = -(W U T) U^T.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, setting, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

PART = "hra_u"


class Hra(AdapterKind):
    """HRA."""

    name = "HRA"
    leaves = peft_leaves(PART)
    peft_types = ("HRA",)
    terms = "low rank: reflections of the base weight"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        [vectors] = whole(layer, PART)
        if vectors.ndim != 2 or len(vectors) != target.inputs or vectors.shape[1] > target.inputs:
            raise misfit(layer, target, PART)
        if setting(layer, "apply_GS"):
            vectors = torch.linalg.qr(vectors)[0]
        units = (vectors / vectors.norm(dim=0).clamp(min=1e-30)).double()
        gram = units.mT @ units
        triangle = torch.linalg.inv(torch.eye(len(gram), dtype=gram.dtype) / 2 + gram.triu(1))
        up = -(target.weight().flatten(1).double() @ units @ triangle)
        return smaller(units.mT.float().contiguous(), up.float(), 1.0, target)
