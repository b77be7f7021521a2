"""Layers whose every batch row (lane) has adapters of its own.

A lane layer is the model's own Linear or Conv2d with its class exchanged: same parameters, same
names, same hooks, and the base weight is never touched. What it adds comes from its `Slot`.
With N lanes, T tokens a lane and R rank rows:

    lane-packed  y_n = W x_n + up_n  (g_n * (down_n x_n))     down_n [R, in], packed per lane
    pool         y_n = W x_n + up    (g_n * (down   x_n))     one set of factors, g zero where unused

after FLoRA's batched per-sample adapters (arXiv 2312.05677, appendix B.1, the additive form). Adapters that multiply
the weight (true FLoRA) take W's place in that, see `flora.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.adapters.adapter import Hadamard, LayerFactors
from pipelines.engine import flora

Form = Literal["lane-packed", "pool"]


@dataclass
class Factors:
    """The factors one layer works with in one call.

    pool: down [R, in(, kh, kw)], up [R, out]; lane-packed: the same with a leading [lanes].
    gate: [lanes, R].
    """

    form: Form
    down: Tensor
    up: Tensor
    gate: Tensor


class Slot:
    """One layer's part of the bank: the rank rows of every resident adapter that touches the layer.

    Row 0 of `down` and `up` is zero; it pads lanes of lower rank. `multiplying`: the rows of those that multiply
    the weight.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        weight = layer.weight
        self.down = weight.new_zeros((1, *weight.shape[1:]))  # [1 + rows, in(, kh, kw)]
        self.up = weight.new_zeros((1, weight.shape[0]))  # [1 + rows, out]
        self.spans: dict[str, tuple[int, int]] = {}  # adapter -> (first row, rank)
        self.multiplying: dict[str, flora.Rows] = {}
        self.factors: Factors | None = None
        self.multiplied: flora.Multiplied | None = None

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes + sum(rows.bytes for rows in self.multiplying.values())

    def insert(self, adapter: str, factors: LayerFactors) -> None:
        """Take in the factors as they stand in the file; the scale is multiplied in, in float32."""
        if isinstance(factors, Hadamard):
            self.multiplying[adapter] = flora.Rows.of(factors, self.down)
            return
        down = factors.down.reshape(-1, *self.down.shape[1:]).to(self.down)
        up = (factors.up.flatten(1).float() * factors.scale).T.to(self.up)
        self.spans[adapter] = (self.down.shape[0], down.shape[0])
        self.down = torch.cat([self.down, down])
        self.up = torch.cat([self.up, up])

    def remove(self, adapter: str) -> None:
        if self.multiplying.pop(adapter, None):
            return
        first, rank = self.spans.pop(adapter)
        self.down = torch.cat([self.down[:first], self.down[first + rank :]])
        self.up = torch.cat([self.up[:first], self.up[first + rank :]])
        for other, (start, count) in self.spans.items():
            if start > first:
                self.spans[other] = (start - rank, count)

    def to(self, like: Tensor) -> None:
        """Move everything to the device and the dtype of `like`."""
        self.down, self.up = self.down.to(like), self.up.to(like)
        self.multiplying = {name: rows.to(like) for name, rows in self.multiplying.items()}

    def factors_for(self, x: Tensor) -> Factors | None:
        """What acts on the input x [lanes, …] in this call; None where no adapter does."""
        if self.factors is not None:
            lanes = self.factors.gate.shape[0]
            assert x.shape[0] == lanes, f"{x.shape[0]} rows for {lanes} lanes"
        return self.factors


class LaneLinear(nn.Linear):
    """A Linear with a Slot. Input [lanes, …, in], output [lanes, …, out]."""

    slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        multiplied = self.slot.multiplied
        y = super().forward(x) if multiplied is None else flora.linear(self, x, multiplied)
        factors = self.slot.factors_for(x)
        if factors is None:
            return y
        lanes = x.shape[0]
        tokens = x.reshape(lanes, -1, x.shape[-1])  # [lanes, T, in]
        out = y.view(lanes, -1, y.shape[-1])  # [lanes, T, out], the memory of y
        if factors.form == "pool":
            shrunk = F.linear(tokens, factors.down) * factors.gate[:, None]  # [lanes, T, R]
            out.flatten(0, 1).addmm_(shrunk.flatten(0, 1), factors.up)
        else:
            shrunk = torch.bmm(tokens, factors.down.mT) * factors.gate[:, None]
            out.baddbmm_(shrunk, factors.up)
        return y


class LaneConv2d(nn.Conv2d):
    """A Conv2d with a Slot. Input [lanes, in, h, w], output [lanes, out, h', w']."""

    slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        multiplied = self.slot.multiplied
        y = super().forward(x) if multiplied is None else flora.conv2d(self, x, multiplied)
        factors = self.slot.factors_for(x)
        if factors is None:
            return y
        lanes = x.shape[0]
        if factors.form == "pool":
            shrunk = F.conv2d(
                x, factors.down, None, self.stride, self.padding, self.dilation
            )  # [lanes, R, h', w']
        else:
            grouped = factors.down.flatten(0, 1)  # [lanes * R, in, kh, kw]
            side_by_side = x.reshape(1, -1, *x.shape[2:])  # [1, lanes * in, h, w]
            shrunk = F.conv2d(
                side_by_side, grouped, None, self.stride, self.padding, self.dilation, groups=lanes
            )
            shrunk = shrunk.view(lanes, -1, *shrunk.shape[2:])
        shrunk = shrunk * factors.gate[:, :, None, None]
        up = factors.up.mT  # [out, R] or [lanes, out, R]
        return y + torch.matmul(up, shrunk.flatten(2)).view_as(y)


LaneLayer = LaneLinear | LaneConv2d


def wrap(model: nn.Module) -> dict[str, LaneLayer]:
    """Turn every Linear and ungrouped Conv2d of `model` into a lane layer, in place; name -> layer."""
    wrapped: dict[str, LaneLayer] = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.__class__ = LaneLinear
        elif type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
            module.__class__ = LaneConv2d
        else:
            continue
        layer = cast(LaneLayer, module)
        layer.slot = Slot(layer)
        wrapped[name] = layer
    return wrapped


def unwrap(model: nn.Module) -> None:
    """Give `model` its own layers back, in place."""
    for module in model.modules():
        if isinstance(module, LaneLinear | LaneConv2d):
            del module.slot
            module.__class__ = module.__class__.__base__  # type: ignore[assignment]
