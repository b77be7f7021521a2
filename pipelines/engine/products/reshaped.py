"""Changes of whole weights, of biases and of norms, lane by lane: what no low-rank product can say.

    W_n = W + sum_i s_ni D_i(W)        b_n = b + sum_i s_ni d_i

D_i is a whole difference, or W * (M_i - 1) for factors that multiply (`multiplied.py`). Lanes of one mix form a group.
A group's weight is made when its layer runs, in float32, and dropped after it; so a call holds one layer's weights at a
time. A norm is computed once without its affine part; then each lane has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.adapters.terms import LayerFactors
from pipelines.engine.products.multiplied import RankRows, Strengths


@dataclass(frozen=True)
class Standing:
    """What one resident adapter does to a layer besides low-rank terms, on the layer's device.

    rows: the factors that multiply its weight. delta: what is added to its weight. shift: what is added to its bias.
    """

    rows: RankRows | None = None
    delta: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def of(cls, factors: LayerFactors, like: Tensor) -> Standing | None:
        """None where all terms are low-rank."""
        if not factors.reshapes:
            return None
        rows, delta, shift = factors.multiplier, factors.whole, factors.shift
        return cls(
            None if rows is None else RankRows.of(rows, like),
            None if delta is None else delta.to(like),
            None if shift is None else shift.to(like),
        )

    @property
    def multiplies_only(self) -> bool:
        return self.delta is None and self.shift is None

    def to(self, like: Tensor) -> Standing:
        return Standing(
            None if self.rows is None else self.rows.to(like),
            None if self.delta is None else self.delta.to(like),
            None if self.shift is None else self.shift.to(like),
        )

    @property
    def device(self) -> torch.device:
        parts = (None if self.rows is None else self.rows.inner, self.delta, self.shift)
        return next(part.device for part in parts if part is not None)

    @property
    def bytes(self) -> int:
        rows = 0 if self.rows is None else self.rows.bytes
        return rows + sum(part.nbytes for part in (self.delta, self.shift) if part is not None)


@dataclass(frozen=True)
class LaneGroup:
    """Lanes that share a mix. index: of the lanes; None for all. changes: what acts on them, with its strength."""

    index: Tensor | None
    changes: tuple[tuple[Standing, float], ...]

    def weight(self, base: Tensor) -> Tensor:
        """The group's weight, in the dtype of the base weight."""
        found = plain = base.float()
        for own, strength in self.changes:
            if own.rows is not None:
                scale = own.rows.outer.float().mT @ own.rows.inner.float() - 1  # [out, in]
                found = found + strength * plain * scale.reshape(*scale.shape, *(1,) * (base.ndim - 2))
            if own.delta is not None:
                found = found + strength * own.delta.float().reshape(base.shape)
        return found.to(base.dtype)

    def bias(self, base: Tensor | None) -> Tensor | None:
        """The group's bias; None where there is none."""
        found = None if base is None else base.float()
        like = base
        for own, strength in self.changes:
            if own.shift is not None:
                like = own.shift if like is None else like
                change = strength * own.shift.float()
                found = change if found is None else found + change
        return None if found is None or like is None else found.to(like.dtype)


@dataclass(frozen=True)
class Reshaped:
    """What changes one layer's own weight and bias in one call. lanes: how many the call has."""

    lanes: int
    groups: tuple[LaneGroup, ...]

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """x [lanes, …, in] -> [lanes, …, out]."""
        return self._by_group(
            x, lambda rows, own: F.linear(rows, own.weight(layer.weight), own.bias(layer.bias))
        )

    def conv2d(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """x [lanes, in, h, w] -> [lanes, out, h', w']."""

        def convolved(rows: Tensor, own: LaneGroup) -> Tensor:
            weight, bias = own.weight(layer.weight), own.bias(layer.bias)
            return F.conv2d(rows, weight, bias, layer.stride, layer.padding, layer.dilation)

        return self._by_group(x, convolved)

    def affine(self, layer: Any, normalised: Tensor, channel: int) -> Tensor:
        """A norm's affine part, for each lane its own. normalised: [lanes, …]. channel: the axis of the channels."""

        def moved(rows: Tensor, own: LaneGroup) -> Tensor:
            shape = [1] * rows.ndim
            shape[channel] = -1
            bias = own.bias(layer.bias)
            found = rows * own.weight(layer.weight).reshape(shape)
            return found if bias is None else found + bias.reshape(shape)

        return self._by_group(normalised, moved)

    def _by_group(self, x: Tensor, run: Callable[[Tensor, LaneGroup], Tensor]) -> Tensor:
        assert x.shape[0] == self.lanes, f"{x.shape[0]} rows for {self.lanes} lanes"
        found: Tensor | None = None
        for own in self.groups:
            if own.index is None:
                return run(x, own)
            part = run(x[own.index], own)
            found = part.new_empty((self.lanes, *part.shape[1:])) if found is None else found
            found[own.index] = part
        assert found is not None
        return found


def gather(standing: Mapping[str, Standing], strengths: Strengths) -> Reshaped | None:
    """What the lanes need; None where no lane has any. standing: adapter -> what it does to the layer."""
    mixes: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for place, lane in enumerate(strengths):
        mix = tuple((name, weight) for name, weight in lane if name in standing and weight != 0)
        mixes.setdefault(mix, []).append(place)
    if not any(mixes):
        return None
    alone = len(mixes) == 1
    device = next(iter(standing.values())).device
    groups = (
        LaneGroup(
            None if alone else torch.tensor(places, device=device),
            tuple((standing[name], weight) for name, weight in mix),
        )
        for mix, places in mixes.items()
    )
    return Reshaped(len(strengths), tuple(groups))
