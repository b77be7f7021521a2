"""GLoRA: a low-rank change and a low-rank change times the base weight, dW = (alpha / rank) (W a1 a2 + b1 b2).

Chavan et al. 2023 (arXiv 2306.07967), as LyCORIS writes it: a1 [in, rank], a2 [rank, in], b1 [out, rank],
b2 [rank, in(, kh, kw)]; a's product acts on every tap of a kernel alike. Old files have a1 [rank, in], a2 [in, rank],
b1 [rank, in] and b2 [out, rank], and mean W a2 a1 + b2 b1; the shapes tell.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer
from pipelines.adapters.kinds.parts import IN_ORDER, misfit, scale_of, scaled, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

PARTS = ("glora_a1", "glora_a2", "glora_b1", "glora_b2")


class Glora(AdapterKind):
    """GLoRA."""

    name = "GLoRA"
    leaves: Mapping[str, Leaf] = {f"{part[-2:]}.weight": Leaf(part, "kohya") for part in PARTS}
    input_axes: Mapping[str, int] = {"glora_a2": 1}
    has_alpha = True
    rank_parts = ("glora_a2",)
    ends: Mapping[Format, Mapping[str, str]] = {"kohya": {part: f"{part[-2:]}.weight" for part in PARTS}}
    terms = "low rank, and low rank times the base weight"
    needs_base = True

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return (f"diffusers refuses it; {IN_ORDER}",)

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        a1, a2, b1, b2 = whole(layer, *PARTS)
        out, inner = target.shape[:2]
        if a1.shape[0] != inner or b1.shape[0] != out:  # an old file
            a1, a2, b1, b2 = a2, a1, b2, b1
        a1, a2, b1 = a1.flatten(1), a2.flatten(1), b1.flatten(1)
        rank = len(a2)
        fits = (
            tuple(a1.shape) == (inner, rank)
            and a2.shape[1] == inner
            and b1.shape[0] == out
            and b1.shape[1] == len(b2)
            and b2.flatten(1).shape[1] == target.inputs
        )
        if not fits:
            raise misfit(layer, target, *PARTS)
        scale, weight = scale_of(layer, rank), target.weight()
        if target.kernel == 1:
            up = torch.cat([weight.flatten(1) @ a1, b1], dim=1)
            return smaller(torch.cat([a2, b2.flatten(1)]), up, scale, target)
        change = torch.einsum("oikl,ij->ojkl", weight, a1 @ a2) + (b1 @ b2.flatten(1)).view(target.shape)
        return scaled(change, scale, target)
