"""Layers in which each row of the batch (each lane) has its own adapters.

A lane layer is the model's own Linear or Conv2d with its class exchanged. It keeps its parameters, names and hooks, and
its base weight is never touched. Its `Slot` holds what acts on it in a call: low-rank factors or whole weights
(`factors.py`), and the factors by which true FLoRA multiplies its weight (`multiplied.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from pipelines.adapters.terms import Hadamard
from pipelines.engine.products import autotune
from pipelines.engine.products import multiplied as flora
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


class Slot:
    """What acts on one layer in the present call.

    acting: low-rank factors or whole weights; the lanes of the call divide evenly into its groups. multiplied: the
    FLoRA factors of the call's lanes. multiplying: adapter -> its FLoRA factors, for all resident adapters.
    """

    def __init__(self) -> None:
        self.acting: Acting | None = None
        self.multiplied: flora.Multiplied | None = None
        self.multiplying: dict[str, flora.RankRows] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing acts on the layer now."""
        return self.acting is None and self.multiplied is None

    @property
    def bytes(self) -> int:
        return sum(rows.bytes for rows in self.multiplying.values())

    def insert(self, adapter: str, factors: Hadamard, like: Tensor) -> None:
        self.multiplying[adapter] = flora.RankRows.of(factors, like)

    def remove(self, adapter: str) -> None:
        self.multiplying.pop(adapter, None)

    def to(self, like: Tensor) -> None:
        """Move everything to the device and the dtype of `like`."""
        self.multiplying = {name: rows.to(like) for name, rows in self.multiplying.items()}


class LaneLinear(nn.Linear):
    """A Linear with a Slot. Input [lanes, …, in], output [lanes, …, out]. kernels: see `use_kernels`."""

    slot: Slot
    kernels = False

    def forward(self, x: Tensor) -> Tensor:
        acting, multiplied = self.slot.acting, self.slot.multiplied
        if acting is None:
            return super().forward(x) if multiplied is None else flora.linear(self, x, multiplied)
        if isinstance(acting, Dense):
            return dense_linear(x, acting.weight, self.bias)
        if multiplied is None:
            return linears(x, [self.weight], [self.bias], [acting], self.kernels)[0]
        y = flora.linear(self, x, multiplied).contiguous()
        add_linear(x, y, acting)
        return y


class LaneConv2d(nn.Conv2d):
    """A Conv2d with a Slot. Input [lanes, in, h, w], output [lanes, out, h', w']."""

    slot: Slot

    def forward(self, x: Tensor) -> Tensor:
        acting, multiplied = self.slot.acting, self.slot.multiplied
        y = None if multiplied is None else flora.conv2d(self, x, multiplied)
        if acting is None:
            return super().forward(x) if y is None else y
        geometry = Geometry(self.stride, self.padding, self.dilation)
        if isinstance(acting, Dense):
            return geometry.conv_groups(x, acting.weight, self.bias)
        return conv2d(x, self.weight, self.bias, geometry, acting, y)


LaneLayer = LaneLinear | LaneConv2d


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
            or (slot is not None and slot.multiplied is not None)
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
    plain = all(type(layer) is LaneLinear and layer.slot.multiplied is None for layer in layers)
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
        if isinstance(module, LaneLinear | LaneConv2d):
            module.__dict__.pop("kernels", None)
            del module.slot
            module.__class__ = module.__class__.__base__  # type: ignore[assignment]
