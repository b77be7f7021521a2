"""LoKr: a Kronecker product, dW = scale * kron(w1, w2), where either half may be a product of two low-rank factors.

From LyCORIS (arXiv 2309.14859). w1 [o1, i1], or w1_a w1_b; w2 [o2, i2(, kh, kw)], or w2_a w2_b with w2_b flat
[rank, i2 * kernel]; with a Tucker core t2 [rank, rank, kh, kw], w2_a is [rank, o2] and w2_b [rank, i2]. out is o1 * o2,
in is i1 * i2. scale is alpha / rank; where both halves are whole it is 1, whatever alpha says (PEFT's settings differ,
and win).

kron(w1, a b) = kron(w1, a) kron(1, b), so a factored w2 makes a change of rank i1 * rank at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer, Written
from pipelines.adapters.kinds.loha import TWICE
from pipelines.adapters.kinds.parts import misfit, scale_of, scaled, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole
from pipelines.errors import AdapterFormatError

_FACTORS = (-1, *range(2, 129))
"""PEFT's `decompose_factor`, as people choose it."""
PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


class Lokr(AdapterKind):
    """LoKr."""

    name = "LoKr"
    leaves: Mapping[str, Leaf] = {part: Leaf(part, "") for part in (*PARTS, "lokr_t1")}
    peft_types = ("LOKR",)
    has_alpha = True
    rank_parts = ("lokr_w2_b", "lokr_w1_b")
    ends: Mapping[Format, Mapping[str, str]] = {
        "kohya": {part: part for part in PARTS},
        "peft": {part: part for part in PARTS},
    }
    terms = "low rank, or a whole difference where the second half is whole"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        if "lokr_t1" in layer.parts:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys['lokr_t1']!r} is in no layout of LoKr that is known here; fetch another "
                "edition"
            )
        first = self._matrix(layer, target, "lokr_w1")
        scale = self._scale(layer)
        if "lokr_w2" in layer.parts or "lokr_t2" in layer.parts:
            second = self._second(layer, target)
            self._check(layer, target, first, second)
            first = first.reshape(*first.shape, *(1 for _ in second.shape[2:]))
            return scaled(torch.kron(first, second).reshape(target.shape), scale, target)
        a, b = whole(layer, "lokr_w2_a", "lokr_w2_b")
        if a.ndim != 2 or a.shape[1] != len(b):
            raise misfit(layer, target, "lokr_w2_a", "lokr_w2_b")
        kernel = target.kernel
        flat = b.flatten(1)
        if flat.shape[1] % kernel:
            raise misfit(layer, target, "lokr_w2_b")
        self._check(layer, target, first, a[:, :1].expand(-1, flat.shape[1] // kernel))
        inner = flat.view(len(b), -1, kernel)  # [rank, i2, kernel]
        eye = torch.eye(first.shape[1])
        down = torch.einsum("ij,rqk->irjqk", eye, inner).flatten(0, 1).flatten(1)  # [i1 * rank, in * kernel]
        return smaller(down, torch.kron(first, a), scale, target)

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        if to == "peft":
            return self._for_peft(layer, target)
        found = super().write(layer, target, to)
        if self.rank_of(layer) is None and layer.scale not in (None, 1.0):
            whole_half = layer.parts["lokr_w1"].float() * layer.scale  # two whole halves have no scale there
            return replace(found, tensors={**found.tensors, "lokr_w1": whole_half})
        return found

    def _for_peft(self, layer: RawLayer, target: Target) -> Written:
        """PEFT splits all layers by one factor, and makes a half whole where the rank is large. Raises AdapterError."""
        tensors = {part: tensor for part, tensor in layer.parts.items() if part in PARTS}
        if layer.settings:
            return Written(tensors, settings=layer.settings)
        first, second = self._matrix(layer, target, "lokr_w1"), "lokr_w2" in tensors
        both, (out, width) = "lokr_w1_a" in tensors, target.shape[:2]
        parts = ((len(first), out // len(first)), (first.shape[1], width // first.shape[1]))
        factors = frozenset(f for f in _FACTORS if (_split(out, f), _split(width, f)) == parts)
        least = -(-max(parts[0][1], parts[1][1]) // 2)  # from this rank on the second half is whole
        rank = least if second else len(layer.parts["lokr_w2_b"])
        if (
            not factors
            or (both and second)
            or (rank < least) == second
            or (both and rank * 2 >= max(parts[0][0], parts[1][0]))
        ):
            raise self.unwritable(layer, "peft", "split in a way that PEFT's settings cannot state")
        settings: dict[str, object] = {"peft_type": "LOKR", "decompose_factor": factors}
        if both or rank * 2 < max(parts[0][0], parts[1][0]):
            settings["decompose_both"] = both
        if target.kernel > 1 and not second:
            settings["use_effective_conv2d"] = "lokr_t2" in tensors
        return Written(tensors, rank, self._scale(layer) * rank, settings)

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return (TWICE,)

    def _scale(self, layer: RawLayer) -> float:
        factored = next((part for part in self.rank_parts if part in layer.parts), None)
        if factored is not None:
            return scale_of(layer, len(layer.parts[factored]))
        return 1.0 if layer.scale is None else layer.scale

    def _matrix(self, layer: RawLayer, target: Target, name: str) -> Tensor:
        """A half that is whole, or the product of two factors: a matrix. Raises AdapterError."""
        if name in layer.parts:
            [found] = whole(layer, name)
        else:
            a, b = whole(layer, f"{name}_a", f"{name}_b")
            if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
                raise misfit(layer, target, f"{name}_a", f"{name}_b")
            found = a @ b
        if found.ndim != 2:
            raise misfit(layer, target, name)
        return found

    def _second(self, layer: RawLayer, target: Target) -> Tensor:
        """w2 as a whole, [o2, i2(, kh, kw)]. Raises AdapterError."""
        if "lokr_t2" not in layer.parts:
            [found] = whole(layer, "lokr_w2")
            return found
        core, a, b = whole(layer, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
        if core.ndim < 2 or a.ndim != 2 or b.ndim != 2 or tuple(core.shape[:2]) != (len(a), len(b)):
            raise misfit(layer, target, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
        return torch.einsum("ij...,ip,jq->pq...", core, a, b)

    def _check(self, layer: RawLayer, target: Target, first: Tensor, second: Tensor) -> None:
        """Raises AdapterMismatchError where the product has not the shape of the layer's weight."""
        widths = (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1])
        kernel = second[0, 0].numel() if second.ndim > 2 else target.kernel
        if widths != tuple(target.shape[:2]) or kernel != target.kernel:
            raise misfit(layer, target, *PARTS)


def _split(width: int, factor: int) -> tuple[int, int]:
    """A width as two factors, as PEFT and LyCORIS choose them.

    The first is `factor`, or, where that does not divide the width, the next smaller one; -1: the most even two.
    """
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    most = math.isqrt(width) if factor < 0 else min(factor, math.isqrt(width))
    first = next(one for one in range(most, 0, -1) if width % one == 0)
    return first, width // first
