"""LoHa: the element-wise product of two low-rank changes, dW = (alpha / rank) (w1a w1b) * (w2a w2b).

From LyCORIS (arXiv 2309.14859), after FedPara (arXiv 2108.06098). A convolution's b is flat, [rank, in * kernel], or,
as OneTrainer writes it, [rank, in, kh, kw]. With a Tucker core t [rank, rank, kh, kw], a is [rank, out] and each half
is m[p, q] = sum_ij t[i, j] a[i, p] b[j, q].

The product of two matrices of rank r has rank r^2 at most: its rows are the products of their rows, pair by pair.
LyCORIS' own `get_diff_weight` applies alpha / rank twice; its forward, ComfyUI and PEFT apply it once, and so does
this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer, Written
from pipelines.adapters.kinds.parts import misfit, scale_of, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")

TWICE = "diffusers refuses it; LyCORIS, where it merges into a model, applies alpha / rank twice"


class Loha(AdapterKind):
    """LoHa."""

    name = "LoHa"
    leaves: Mapping[str, Leaf] = {part: Leaf(part, "") for part in PARTS}
    input_axes: Mapping[str, int] = {"hada_w1_b": 1, "hada_w2_b": 1}
    peft_types = ("LOHA",)
    has_alpha = True
    rank_parts = ("hada_w1_b",)
    ends: Mapping[Format, Mapping[str, str]] = {
        "kohya": {part: part for part in PARTS},
        "peft": {part: part for part in PARTS},
    }
    terms = "low rank (its rank squared)"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        tucker = "hada_t1" in layer.parts or "hada_t2" in layer.parts
        halves = [self._half(layer, target, number, tucker=tucker) for number in (1, 2)]
        (up1, down1), (up2, down2) = halves
        scale = scale_of(layer, len(layer.parts["hada_w1_b"]))
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)  # [out, rank * rank]
        down = (down1[:, None] * down2[None]).flatten(0, 1)  # [rank * rank, in * kernel]
        return smaller(down, up, scale, target)

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        tucker = "hada_t1" in layer.parts
        if not tucker:  # OneTrainer's convolutions have four axes, all others' two
            parts = {part: one.flatten(1) if part in PARTS else one for part, one in layer.parts.items()}
            layer = replace(layer, parts=parts)
        found = super().write(layer, target, to)
        if to == "peft" and target.kernel > 1:
            found = replace(found, settings={**found.settings, "use_effective_conv2d": tucker})
        return found

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return (TWICE,)

    def _half(self, layer: RawLayer, target: Target, number: int, *, tucker: bool) -> tuple[Tensor, Tensor]:
        """(up [out, rank], down [rank, in * kernel]) of one half. Raises AdapterError."""
        names = (f"hada_w{number}_a", f"hada_w{number}_b")
        a, b = whole(layer, *names)
        if tucker:
            [core] = whole(layer, f"hada_t{number}")
            if core.ndim < 2 or a.ndim != 2 or b.ndim != 2 or tuple(core.shape[:2]) != (len(a), len(b)):
                raise misfit(layer, target, *names, f"hada_t{number}")
            up, down = a.mT, torch.einsum("ij...,jq->iq...", core, b).flatten(1)
        else:
            up, down = a.flatten(1), b.flatten(1)
        if up.shape[0] != target.shape[0] or down.shape[1] != target.inputs or up.shape[1] != down.shape[0]:
            raise misfit(layer, target, *names)
        return up, down
