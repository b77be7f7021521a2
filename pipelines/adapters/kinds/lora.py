"""LoRA on linear layers and LoCon on convolutions: dW = (alpha / rank) * up . down.

Hu et al. 2021 (arXiv 2106.09685); LoCon and its Tucker form (`lora_mid`) from LyCORIS (arXiv 2309.14859).
PEFT's `lora_bias=True` adds (alpha / rank) * `lora_B.bias` to the layer's bias. What was trained against a changed base
(PiSSA, OLoRA, …) is the difference from its start (`starts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer, Written
from pipelines.adapters.kinds.parts import misfit, scale_of, smaller
from pipelines.adapters.kinds.starts import computed
from pipelines.adapters.terms import LowRank, Several, Shift, Target, Whole, terms_of
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
    output_axes: Mapping[str, int] = {"up": 0}
    peft_types = ("LORA",)
    alpha_setting = "lora_alpha"
    has_alpha = True
    rank_parts = ("down",)
    ends: Mapping[Format, Mapping[str, str]] = {
        "kohya": {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"},
        "peft": {"up": "lora_B.weight", "down": "lora_A.weight", UP_BIAS: "lora_B.bias"},
        "diffusers": {"up": "lora_B.weight", "down": "lora_A.weight", UP_BIAS: "lora_B.bias"},
    }
    terms = "low rank"

    def called(self, layers: Iterable[Mapping[str, tuple[int, ...]]]) -> str:
        """LoCon where it has kernels larger than 1x1."""
        kernels = any("mid" in parts or math.prod(parts.get("down", ())[2:]) > 1 for parts in layers)
        return "LoCon" if kernels else self.name

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole | Several:
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
        change = _from_start(layer, target, LowRank(*_fitted(layer, target, down, up), scale))
        if UP_BIAS not in layer.parts:
            return change
        bias = layer.parts[UP_BIAS]
        if bias.shape != target.shape[:1]:
            raise misfit(layer, target, UP_BIAS)
        return Several((change, Shift(bias.float() * scale)))

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        start = layer.start
        if start is not None and (to != "peft" or start.down is not None):
            raise self.unwritable(layer, to, f"and began with {start.name}, which only PEFT takes out again")
        if to == "kohya" and UP_BIAS not in layer.parts:
            return super().write(layer, target, to)
        found = self.read(replace(layer, start=None), target)
        change = terms_of(found)[0]
        assert isinstance(change, LowRank)
        made = written(change, found.shift, to)
        if start is None:
            return made
        return replace(made, settings={**made.settings, "init_lora_weights": start.name})

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


def _from_start(layer: RawLayer, target: Target, change: LowRank) -> LowRank | Whole:
    """The change without the start that was taken out of the base weight before the training. Raises AdapterError."""
    start = layer.start
    if start is None:
        return change
    if change.scale == 0 or ("alpha" not in layer.parts and layer.scale is None):
        raise AdapterFormatError(
            f"{layer.file}: {layer.keys['down']!r} began with {start.name}, which takes an alpha other than 0 to "
            "undo, and its settings give none; repair the settings"
        )
    down, up = change.down.flatten(1).float(), change.up.flatten(1).float() * change.scale
    if start.down is not None and start.up is not None:
        if start.down.shape != layer.parts["down"].shape or start.up.shape != layer.parts["up"].shape:
            raise misfit(layer, target, "down", "up")
        begun = start.down.flatten(1).float(), start.up.flatten(1).float() * change.scale
    elif target.is_conv:
        raise AdapterFormatError(
            f"{layer.file}: {layer.keys['down']!r} is of a convolution, for which PEFT has no start {start.name}; "
            "fetch another edition"
        )
    else:
        begun = computed(
            start.name, target.weight(), change.rank, change.scale, f"{layer.file}: {layer.name}"
        )
    return smaller(torch.cat([down, begun[0]]), torch.cat([up, -begun[1]], dim=1), 1.0, target)


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
