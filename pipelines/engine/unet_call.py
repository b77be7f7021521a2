"""What one UNet call reads, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from composers.plan import Use
from pipelines.families.family import Cut
from pipelines.families.unet import conditions, full_pass, shallow_pass


@dataclass(frozen=True)
class UNetCall:
    """The rows of one UNet call. All run in full, or all run on remembered features at one cut.

    latents: [rows, channels, h, w]. timesteps: [rows] float32. text: [rows, tokens, width]. mask: [rows, tokens] bool,
        None where every token counts. pooled: [rows, width] and sizes: [rows, 6], for SDXL only.
    uses: for each row, its adapters. texts: for each row, the tensor that its text came from. The same object means the
        same text.
    steady: how many consecutive calls, this one included, have the same uses.
    cut: where the rows on remembered features run; None for a full pass. deep: these features, [rows, *feature_shape].
    leaves: the cuts at which a full pass leaves features behind.
    """

    latents: Tensor
    timesteps: Tensor
    text: Tensor
    mask: Tensor | None
    pooled: Tensor | None
    sizes: Tensor | None
    uses: tuple[tuple[Use, ...], ...]
    texts: tuple[Tensor, ...] = field(repr=False)
    steady: int = 1
    cut: Cut | None = None
    deep: Tensor | None = None
    leaves: tuple[Cut, ...] = ()

    @property
    def rows(self) -> int:
        return self.latents.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """[channels, h, w] of the latents."""
        return tuple(self.latents.shape[1:])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it has, by field name."""
        named = ("latents", "timesteps", "text", "mask", "pooled", "sizes", "deep")
        return {name: value for name in named if (value := getattr(self, name)) is not None}

    def on(self, tensors: Mapping[str, Tensor]) -> UNetCall:
        """The same call with these tensors in place of its own. tensors: by field name."""
        fields: Any = dict(tensors)
        return replace(self, **fields)


@dataclass(frozen=True)
class UNetOutput:
    """What a UNet call gives. prediction: [rows, channels, h, w]. features: cut -> [rows, *feature_shape]."""

    prediction: Tensor
    features: Mapping[Cut, Tensor]


def forward(unet: Any, call: UNetCall) -> UNetOutput:
    """Run the call through the UNet, with whatever acts on its layers now."""
    reads = conditions(call.text, call.mask, call.pooled, call.sizes)
    with torch.inference_mode():
        if call.cut is None:
            return UNetOutput(*full_pass(unet, call.leaves, call.latents, call.timesteps, reads))
        assert call.deep is not None
        return UNetOutput(shallow_pass(unet, call.cut, call.deep, call.latents, call.timesteps, **reads), {})
