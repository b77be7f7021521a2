"""Layers in which each row of the batch (each lane) has its own adapters.

A lane layer is the model's own Linear or Conv2d with its class exchanged. It keeps its parameters, names and hooks, and
its base weight is never touched. Its `Slot` holds what acts on it in a call: low-rank factors or whole weights
(`factors.py`), factors that multiply its weight (`multiplied.py`), or changes of whole weights and biases
(`reshaped.py`). A norm becomes a lane layer when an adapter first changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from pipelines.adapters.terms import LayerFactors
from pipelines.engine.products import autotune
from pipelines.engine.products.factors import (
    Acting,
    Dense,
    Factors,
    Geometry,
    add_linear,
    conv2d,
    dense_linear,
    in_one_pass,
    linears,
)
from pipelines.engine.products.multiplied import Multiplied
from pipelines.engine.products.reshaped import Reshaped, Standing


class Slot:
    """What acts on one layer in the present call.

    acting: low-rank factors or whole weights; the lanes of the call divide evenly into its groups. own: how the call's
    lanes change the layer's own weight and bias. standing: adapter -> what it does besides low-rank terms, for all
    resident adapters.
    """

    def __init__(self) -> None:
        self.acting: Acting | None = None
        self.own: Multiplied | Reshaped | None = None
        self.standing: dict[str, Standing] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing acts on the layer now."""
        return self.acting is None and self.own is None

    @property
    def bytes(self) -> int:
        return sum(own.bytes for own in self.standing.values())

    def insert(self, adapter: str, factors: LayerFactors, like: Tensor) -> None:
        """Keep what an adapter does besides low-rank terms, if that is anything."""
        found = Standing.of(factors, like)
        if found is not None:
            self.standing[adapter] = found

    def remove(self, adapter: str) -> None:
        self.standing.pop(adapter, None)

    def to(self, like: Tensor) -> None:
        """Move everything to the device and the dtype of `like`."""
        self.standing = {name: own.to(like) for name, own in self.standing.items()}


class LaneLinear(nn.Linear):
    """A Linear with a Slot. Input [lanes, …, in], output [lanes, …, out]. kernels: see `use_kernels`."""

    slot: Slot
    kernels = False

    def forward(self, x: Tensor) -> Tensor:
        acting, own = self.slot.acting, self.slot.own
        if acting is None:
            return super().forward(x) if own is None else own.linear(self, x)
        if isinstance(acting, Dense):
            return dense_linear(x, acting.weight, self.bias)
        if own is None:
            return linears(x, [self.weight], [self.bias], [acting], self.kernels)[0]
        y = own.linear(self, x).contiguous()
        add_linear(x, y, acting)
        return y


class LaneConv2d(nn.Conv2d):
    """A Conv2d with a Slot. Input [lanes, in, h, w], output [lanes, out, h', w']."""

    slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        acting, own = self.slot.acting, self.slot.own
        y = None if own is None else own.conv2d(self, x)
        if acting is None:
            return super().forward(x) if y is None else y
        geometry = Geometry(self.stride, self.padding, self.dilation)
        if isinstance(acting, Dense):
            return geometry.conv_groups(x, acting.weight, self.bias)
        return conv2d(x, self.weight, self.bias, geometry, acting, y)


LaneLayer = LaneLinear | LaneConv2d


class LaneLayerNorm(nn.LayerNorm):
    """A LayerNorm over the last axis, with a Slot. Input and output [lanes, …, channels]."""

    slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        own = self.slot.own
        if own is None:
            return super().forward(x)
        assert isinstance(own, Reshaped)
        return own.affine(self, F.layer_norm(x, self.normalized_shape, eps=self.eps), -1)


class LaneGroupNorm(nn.GroupNorm):
    """A GroupNorm with a Slot. Input and output [lanes, channels, …]."""

    slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        own = self.slot.own
        if own is None:
            return super().forward(x)
        assert isinstance(own, Reshaped)
        return own.affine(self, F.group_norm(x, self.num_groups, eps=self.eps), 1)


LaneNorm = LaneLayerNorm | LaneGroupNorm


LANE_LAYERS = (LaneLinear, LaneConv2d, LaneLayerNorm, LaneGroupNorm)


def wrap_norm(module: nn.Module) -> LaneNorm:
    """Turn a LayerNorm over one axis, or a GroupNorm, into a lane layer, in place, unless it is one."""
    if not isinstance(module, LaneNorm):
        assert type(module) in (nn.LayerNorm, nn.GroupNorm), type(module)
        module.__class__ = LaneLayerNorm if isinstance(module, nn.LayerNorm) else LaneGroupNorm
        cast(LaneNorm, module).slot = Slot()
    return cast(LaneNorm, module)


class KernelGEGLU(GEGLU):
    """diffusers' GEGLU, run together with its Linear (lane layer or plain) where kernels can serve it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        proj = self.proj
        slot = proj.slot if type(proj) is LaneLinear else None
        if (
            args
            or kwargs
            or not autotune.usable(hidden_states)
            or type(proj) not in (LaneLinear, nn.Linear)
            or (slot is not None and slot.own is not None)
            or proj._forward_hooks
            or proj._forward_pre_hooks
        ):
            found: Tensor = super().forward(hidden_states, *args, **kwargs)
            return found
        acting = None if slot is None else slot.acting
        own = [acting] if isinstance(acting, Factors) else acting or ()
        return in_one_pass(hidden_states, [proj.weight], proj.bias, own, geglu=True)


def use_kernels(model: nn.Module, on: bool) -> None:
    """Turn kernels on or off for the low-rank products of `model`'s lane layers and for every GEGLU, in place.

    With kernels on, they run by the fastest way that was measured (`autotune.py`). Without Triton they stay off.
    """
    on = on and autotune.available()
    for module in model.modules():
        if isinstance(module, LaneLinear):
            module.kernels = on
        elif type(module) is (GEGLU if on else KernelGEGLU):
            module.__class__ = KernelGEGLU if on else GEGLU


def together(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """The outputs of several layers over one input x [lanes, …, in], each [lanes, …, out].

    They run as one product where what acts on them lies in one stack.
    """
    plain = all(type(layer) is LaneLinear and layer.slot.own is None for layer in layers)
    if not plain:
        return [layer(x) for layer in layers]
    lanes = cast(Sequence[LaneLinear], layers)
    acting = [layer.slot.acting for layer in lanes]
    low_rank = [each for each in acting if isinstance(each, Factors)]
    if len(low_rank) == len(layers):
        weights, biases = [layer.weight for layer in lanes], [layer.bias for layer in lanes]
        return linears(x, weights, biases, low_rank, lanes[0].kernels)
    dense = [each for each in acting if isinstance(each, Dense)]
    if len(dense) == len(layers) and all(layer.bias is None for layer in lanes):
        stack = dense[0].stack
        if all(each.stack is stack and each.place == place for place, each in enumerate(dense)):
            return list(dense_linear(x, stack, None).chunk(len(layers), dim=-1))
    return [layer(x) for layer in layers]


def wrap(model: nn.Module) -> dict[str, LaneLayer]:
    """Turn every Linear, and every Conv2d without groups and with zero padding, into a lane layer, in place.

    Returns name -> layer.
    """
    wrapped: dict[str, LaneLayer] = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.__class__ = LaneLinear
        elif type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
            module.__class__ = LaneConv2d
        else:
            continue
        layer = cast(LaneLayer, module)
        layer.slot = Slot()
        wrapped[name] = layer
    return wrapped


def unwrap(model: nn.Module) -> None:
    """Give `model` its own layers back, in place: undoes `wrap` and `use_kernels`."""
    use_kernels(model, False)
    for module in model.modules():
        if isinstance(module, LANE_LAYERS):
            module.__dict__.pop("kernels", None)
            del module.slot
            module.__class__ = module.__class__.__base__  # type: ignore[assignment]
