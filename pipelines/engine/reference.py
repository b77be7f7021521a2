"""The slow, obvious reference: one image's mix, merged into a copy of the weights.

The engine is tested against it, and `studio` times it as a rival that renders one image after another.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from composers.plan import Use
from pipelines.adapters.adapter import Adapter
from pipelines.engine.products.attention import restore_attention
from pipelines.engine.products.layers import LANE_LAYERS, unwrap


def merged(
    model: nn.Module, component: str, adapters: Mapping[str, Adapter], uses: Iterable[Use]
) -> nn.Module:
    """A copy of `model` with the weights W + sum_i weight_i * block_factor_i * dW_i, and biases likewise.

    model: a whole component, named `component` ("unet", "text_encoder", …). adapters: name -> adapter, those of the
    uses among them. dW_i is the change that adapter i makes to the base weight W. Schedules are ignored.
    """
    slots = [(module, module.slot) for module in model.modules() if isinstance(module, LANE_LAYERS)]
    twin = copy.deepcopy(model, {id(slot): slot for _, slot in slots})
    unwrap(twin)
    restore_attention(twin)
    layers = dict(twin.named_modules())
    base = dict(model.named_modules())
    with torch.no_grad():
        for use in uses:
            for path, factor in adapters[use.adapter].layers.items():
                owner, _, module = path.partition(".")
                if owner == component:
                    weight, own = layers[module].weight, base[module].weight
                    assert isinstance(weight, torch.Tensor)
                    assert isinstance(own, torch.Tensor)
                    strength = use.weight * use.block_factor(module)
                    change = factor.change(own)  # to the base weight, so that the order does not matter
                    weight += (strength * change).to(weight.dtype)
                    if factor.shift is not None:
                        _shift(layers[module], (strength * factor.shift).to(weight))
    return twin


def _shift(layer: nn.Module, change: torch.Tensor) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(change), requires_grad=False)
    assert isinstance(layer.bias, torch.Tensor)
    layer.bias += change
