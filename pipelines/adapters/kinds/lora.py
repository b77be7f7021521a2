"""LoRA on linear layers and LoCon on convolutions: dW = (alpha / rank) * up . down.

Hu et al. 2021 (arXiv 2106.09685); LoCon and its Tucker form (`lora_mid`) from LyCORIS (arXiv 2309.14859).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import Leaf, RawLayer
from pipelines.adapters.terms import LowRank, Target
from pipelines.errors import AdapterFormatError, AdapterMismatchError

_LEAVES = {
    "lora_up.weight": Leaf("up", "kohya"),
    "lora_down.weight": Leaf("down", "kohya"),
    "lora_mid.weight": Leaf("mid", "kohya"),
    "lora_B.weight": Leaf("up", "peft"),
    "lora_A.weight": Leaf("down", "peft"),
    "lora.up.weight": Leaf("up", "old diffusers"),
    "lora.down.weight": Leaf("down", "old diffusers"),
    "lora_linear_layer.up.weight": Leaf("up", "old diffusers"),
    "lora_linear_layer.down.weight": Leaf("down", "old diffusers"),
    **{  # written without the layer inside, or without its weight
        end: Leaf(part, style)
        for part, style, ends in (
            ("up", "kohya", ("lora_up", "up.weight", "lora.lora_up.weight")),
            ("down", "kohya", ("lora_down", "down.weight", "lora.lora_down.weight")),
            ("mid", "kohya", ("lora_mid",)),
            ("up", "peft", ("lora_B", "lora.lora_B.weight")),
            ("down", "peft", ("lora_A", "lora.lora_A.weight")),
            ("up", "old diffusers", ("lora.up", "lora_linear_layer.up")),
            ("down", "old diffusers", ("lora.down", "lora_linear_layer.down")),
        )
        for end in ends
    },
    "alpha": Leaf("alpha", ""),
    "lora.alpha": Leaf("alpha", ""),
    "lora_linear_layer.alpha": Leaf("alpha", ""),
}


@dataclass(frozen=True)
class Lora:
    """Plain low-rank factors, with or without a Tucker core; as an `AdapterKind`."""

    name: str = "LoRA"
    leaves: Mapping[str, Leaf] = field(default_factory=lambda: dict(_LEAVES))
    input_axes: Mapping[str, int] = field(default_factory=lambda: {"down": 1})
    refusal: str = ""

    def claims(self, parts: Collection[str]) -> bool:
        return not {"up", "down", "mid"}.isdisjoint(parts)

    def read(self, layer: RawLayer, target: Target) -> LowRank:
        for half, other in (("up", "down"), ("down", "up")):
            if half not in layer.parts:
                key = layer.keys.get(other) or layer.keys["mid"]
                raise AdapterFormatError(
                    f"{layer.file}: {key!r} has no matching {half} half, so the file is incomplete; "
                    "download it again"
                )
        down, up = layer.parts["down"], layer.parts["up"]
        if down.ndim not in (2, 4) or up.ndim not in (2, 4):
            raise _misfit(layer, target)
        rank = int(down.shape[0])
        if rank == 0 or up.shape[1] == 0:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys['down']!r} has rank 0, so it holds nothing; fetch a whole file"
            )
        scale = self._scale(layer, rank)
        if "mid" in layer.parts:
            down = _folded(layer, target, layer.parts["mid"], down)
        return LowRank(*_fitted(layer, target, down, up), scale)

    def _scale(self, layer: RawLayer, rank: int) -> float:
        """alpha / rank if the layer has its own alpha, else the scale of the settings, else 1."""
        if "alpha" not in layer.parts:
            return 1.0 if layer.scale is None else layer.scale
        alpha = layer.parts["alpha"]
        if alpha.numel() != 1:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys['alpha']!r} must be one number, but its shape is "
                f"{list(alpha.shape)}; fetch a sound file"
            )
        return float(alpha.double().item()) / rank


def _folded(layer: RawLayer, target: Target, mid: Tensor, down: Tensor) -> Tensor:
    """The Tucker core [up rank, down rank, kh, kw] times down [down rank, in(, 1, 1)]: [up rank, in, kh, kw] float32.

    Three convolutions in a row (1x1 down, kh x kw core, 1x1 up) equal one whose kernel is their product, so nothing is
    approximated. Raises AdapterMismatchError.
    """
    out_width, in_width, *kernel = target.shape
    square = down.ndim == 2 or down.shape[2:] == (1, 1)
    fits = square and mid.ndim == 4 and mid.shape[1] == down.shape[0] and down.shape[1] == in_width
    fits = fits and tuple(layer.parts["up"].shape[:2]) == (out_width, mid.shape[0])
    if not fits or tuple(mid.shape[2:]) != (tuple(kernel) or (1, 1)):  # before a product of any size is made
        raise _misfit(layer, target)
    return torch.einsum("urhw,ri->uihw", mid.float(), down.flatten(1).float())


def _fitted(layer: RawLayer, target: Target, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(down, up) in the shapes that the target takes. Raises AdapterMismatchError where they do not fit.

    A linear layer and a 1x1 convolution are the same mathematics, and files are trained on either. So a trailing 1x1 is
    added or dropped as needed.
    """
    out_width, in_width, *kernel = target.shape
    rank = down.shape[0]
    same_kernel = tuple(down.shape[2:]) == tuple(kernel)
    pointwise = math.prod(kernel) == 1 and math.prod(down.shape[2:]) == 1
    if (
        tuple(up.flatten(1).shape) != (out_width, rank)
        or down.shape[1] != in_width
        or not (same_kernel or pointwise)
    ):
        raise _misfit(layer, target)
    if target.is_conv:
        return down.reshape(rank, in_width, *kernel), up.reshape(out_width, rank, 1, 1)
    return down.reshape(rank, in_width), up.reshape(out_width, rank)


def _misfit(layer: RawLayer, target: Target) -> AdapterMismatchError:
    shapes = " and ".join(
        f"{layer.keys[part]!r} {list(layer.parts[part].shape)}"
        for part in ("up", "mid", "down")
        if part in layer.parts
    )
    return AdapterMismatchError(
        f"{layer.file}: {shapes} do not fit {layer.name} {list(target.shape)} of this model; "
        "the file was made for a model of other sizes, load it with that one"
    )
