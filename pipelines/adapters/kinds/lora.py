"""LoRA on linear layers and LoCon on convolutions: dW = (alpha / rank) * up . down.

Hu et al. 2021 (arXiv 2106.09685); LoCon and its Tucker form (`lora_mid`) from LyCORIS (arXiv 2309.14859).
PEFT's `lora_bias=True` adds (alpha / rank) * `lora_B.bias` to the layer's bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer, Written
from pipelines.adapters.kinds.parts import misfit, scale_of
from pipelines.adapters.terms import LowRank, Several, Shift, Target, shift_of, terms_of
from pipelines.errors import AdapterFormatError

UP_BIAS = "up_bias"

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
    "lora_B.bias": Leaf(UP_BIAS, "peft"),
    "lora_up.bias": Leaf(UP_BIAS, "kohya"),
    **{end: Leaf("alpha", "", integers=True) for end in ("alpha", "lora.alpha", "lora_linear_layer.alpha")},
}


class Lora(AdapterKind):
    """Plain low-rank factors, with or without a Tucker core."""

    name = "LoRA"
    leaves = _LEAVES
    input_axes: Mapping[str, int] = {"down": 1}
    peft_types = ("LORA",)
    has_alpha = True
    rank_parts = ("down",)
    ends: Mapping[Format, Mapping[str, str]] = {
        "kohya": {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"},
        "peft": {"up": "lora_B.weight", "down": "lora_A.weight", UP_BIAS: "lora_B.bias"},
        "diffusers": {"up": "lora_B.weight", "down": "lora_A.weight", UP_BIAS: "lora_B.bias"},
    }
    terms = "low rank"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Several:
        for half, other in (("up", "down"), ("down", "up")):
            if half not in layer.parts:
                key = layer.keys.get(other) or layer.keys.get("mid") or layer.keys[UP_BIAS]
                raise AdapterFormatError(
                    f"{layer.file}: {key!r} has no matching {half} half, so the file is incomplete; "
                    "download it again"
                )
        down, up = layer.parts["down"], layer.parts["up"]
        if down.ndim not in (2, 4) or up.ndim not in (2, 4):
            raise misfit(layer, target, "up", "mid", "down")
        rank = int(down.shape[0])
        if rank == 0 or up.shape[1] == 0:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys['down']!r} has rank 0, so it holds nothing; fetch a whole file"
            )
        scale = scale_of(layer, rank)
        if "mid" in layer.parts:
            down = _folded(layer, target, layer.parts["mid"], down)
        change = LowRank(*_fitted(layer, target, down, up), scale)
        if UP_BIAS not in layer.parts:
            return change
        bias = layer.parts[UP_BIAS]
        if bias.shape != target.shape[:1]:
            raise misfit(layer, target, UP_BIAS)
        return Several((change, Shift(bias.float() * scale)))

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        if to == "kohya" and UP_BIAS not in layer.parts:
            return super().write(layer, target, to)
        found = self.read(layer, target)
        change = terms_of(found)[0]
        assert isinstance(change, LowRank)
        return written(change, shift_of(found), to)

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return ("diffusers refuses its Tucker cores (lora_mid)",) if "mid" in shapes else ()


def written(change: LowRank, shift: Tensor | None, to: Format) -> Written:
    """Low-rank factors, and a change of the bias, as such files hold them."""
    rank, scale, up = change.rank, change.scale, change.up
    if not scale:  # kohya reads an alpha of 0 as the rank, and PEFT scales the bias too
        up, scale = torch.zeros_like(up), 1.0
    if to == "kohya":
        tensors = {"lora_up.weight": up, "lora_down.weight": change.down}
        if shift is not None:
            tensors["diff_b"] = shift
        return Written(tensors | {"alpha": torch.tensor(scale * rank, dtype=torch.float32)})
    tensors = {"lora_B.weight": up, "lora_A.weight": change.down}
    if shift is not None:
        tensors["lora_B.bias"] = shift / scale
    return Written(tensors, rank, scale * rank, {"peft_type": "LORA", "use_dora": False})


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
        raise misfit(layer, target, "up", "mid", "down")
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
        raise misfit(layer, target, "up", "mid", "down")
    if target.is_conv:
        return down.reshape(rank, in_width, *kernel), up.reshape(out_width, rank, 1, 1)
    return down.reshape(rank, in_width), up.reshape(out_width, rank)
