"""HiRA: the weight times a low-rank product, element by element, W' = W * (1 + B A).

Huang et al. 2025 (ICLR), as PEFT writes it: `hira_A` [rank, in(, kh, kw)], `hira_B` [out, rank(, 1, 1)]. There is no
alpha. A kernel's taps have factors of their own, so a convolution's change is kept whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, whole
from pipelines.adapters.terms import Hadamard, Target, Whole

PARTS = ("hira_A", "hira_B")


class Hira(AdapterKind):
    """HiRA."""

    name = "HiRA"
    leaves = peft_leaves(*PARTS)
    input_axes: Mapping[str, int] = {"hira_A": 1}
    peft_types = ("HIRA",)
    terms = "the base weight times low-rank factors"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> Hadamard | Whole:
        inner, outer = (part.flatten(1) for part in whole(layer, *PARTS))
        out, rank = target.shape[0], len(inner)
        if inner.shape[1] != target.inputs or tuple(outer.shape) != (out, rank):
            raise misfit(layer, target, *PARTS)
        if target.kernel > 1 or 2 * rank > min(out, target.inputs):
            return Whole(target.weight() * (outer @ inner).view(target.shape))
        one, each = torch.ones(1, target.inputs), torch.ones(out, 1)
        return Hadamard(torch.cat([one, inner]), torch.cat([each, outer], dim=1))
