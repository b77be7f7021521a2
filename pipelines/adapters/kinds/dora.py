"""DoRA: a change, after which every output's, or input's, part of the weight gets a length of its own.

Liu et al. 2024 (arXiv 2402.09353): V = W + dW, W' = m V / |V|. dW is LoRA's, LoHa's or LoKr's. `dora_scale` holds m:
[out, 1(, 1, 1)] for the outputs, where |V| is the norm of a row, or [1, in(, 1, 1)] for the inputs, where it is that of
a column over all outputs and taps (OneTrainer's default). PEFT's `lora_magnitude_vector` is always of the outputs.

W' - W is a multiplication by g = m / |V| on that axis, and dW times g: one Hadamard of rank 1, and the change's own
term. g depends on the base weight and on dW at strength 1, not on the strength: W + s (W' - W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer, Written
from pipelines.adapters.kinds.loha import Loha
from pipelines.adapters.kinds.lokr import Lokr
from pipelines.adapters.kinds.lora import UP_BIAS, Lora
from pipelines.adapters.kinds.parts import IN_ORDER, misfit, whole
from pipelines.adapters.terms import Hadamard, LowRank, Several, Target, Whole
from pipelines.errors import AdapterFormatError

SCALE, MAGNITUDE = "dora_scale", "lora_magnitude_vector"
INNER: tuple[AdapterKind, ...] = (Loha(), Lokr(), Lora())


class Dora(AdapterKind):
    """DoRA around LoRA, LoHa or LoKr."""

    name = "DoRA"
    leaves: Mapping[str, Leaf] = {
        SCALE: Leaf(SCALE, "kohya"),
        MAGNITUDE: Leaf(MAGNITUDE, "peft"),
        f"{MAGNITUDE}.weight": Leaf(MAGNITUDE, "peft"),
        f"{MAGNITUDE}.default": Leaf(MAGNITUDE, "peft"),
    }
    peft_types = Lora.peft_types
    alpha_setting = Lora.alpha_setting
    flag = "use_dora"
    takes = frozenset(leaf.part for kind in INNER for leaf in kind.leaves.values() if leaf.part != "alpha")
    has_alpha = True
    ends: Mapping[Format, Mapping[str, str]] = {
        "kohya": {SCALE: SCALE},
        "peft": {MAGNITUDE: MAGNITUDE},
        "diffusers": {MAGNITUDE: f"{MAGNITUDE}.weight"},
    }
    terms = "a factor for each output, or for each input, and low rank"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> Several:
        part = SCALE if SCALE in layer.parts else MAGNITUDE
        inner = next((kind for kind in INNER if kind.claims(layer.parts)), None)
        if inner is None:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys[part]!r} is a length without a change; the file is incomplete, fetch it "
                "again"
            )
        if UP_BIAS in layer.parts:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys[UP_BIAS]!r} is a trained bias inside DoRA, which no trainer has; fetch "
                "another edition"
            )
        change = inner.read(layer, target)
        assert isinstance(change, LowRank | Whole)
        [length] = whole(layer, part)
        axis = 0 if self._is_of_outputs(layer, target, part) else 1
        return weighed(target, change, {axis: length.flatten()})

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        inner = next((kind for kind in INNER if kind.claims(layer.parts)), None)
        if inner is None or UP_BIAS in layer.parts:
            raise self.unwritable(layer, to, "but it is not whole")
        part = SCALE if SCALE in layer.parts else MAGNITUDE
        outputs = self._is_of_outputs(layer, target, part)
        if to != "kohya" and not (outputs and isinstance(inner, Lora)):
            raise self.unwritable(
                layer,
                to,
                f"of the {'outputs' if outputs else 'inputs'} on {inner.name}; PEFT and diffusers have only "
                "that of the outputs on LoRA",
            )
        ones = (1,) * (len(target.shape) - 2)
        shape: tuple[int, ...] = (-1, 1, *ones) if outputs else (1, -1, *ones)
        if to != "kohya":
            shape = (1, -1, *ones) if target.is_conv else (-1,)
        found = inner.write(layer, target, to)
        length = {self.ends[to][SCALE if to == "kohya" else MAGNITUDE]: layer.parts[part].reshape(shape)}
        settings = {**found.settings, "use_dora": True} if found.settings else {}
        return replace(found, tensors={**found.tensors, **length}, settings=settings)

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        length = shapes.get(SCALE, ())
        if MAGNITUDE in shapes or (len(length) > 1 and length[0] != 1):
            return (
                "ComfyUI draws it differently, also at strength 1: on the output axis it divides by the wrong norm; "
                "A1111 scrambles that axis",
                "LyCORIS and PEFT take a strength other than 1 differently",
                *(("diffusers drops dora_scale, and draws a plain LoRA",) if SCALE in shapes else ()),
                IN_ORDER,
            )
        return (
            "LyCORIS takes a strength other than 1 differently",
            "diffusers drops dora_scale, and draws a plain LoRA",
            IN_ORDER,
        )

    def _is_of_outputs(self, layer: RawLayer, target: Target, part: str) -> bool:
        """Whether the lengths are those of the outputs. Raises AdapterMismatchError where they fit neither axis."""
        shape = tuple(layer.parts[part].shape)
        out, width = target.shape[:2]
        if part == MAGNITUDE or len(shape) < 2:
            if layer.parts[part].numel() == out:
                return True
        elif shape[0] == out and layer.parts[part].numel() == out:
            return True
        elif shape[:2] == (1, width) and layer.parts[part].numel() == width:
            return False
        raise misfit(layer, target, part)


def weighed(target: Target, change: LowRank | Whole, lengths: Mapping[int, Tensor]) -> Several:
    """W' - W for V = W + change, whose parts along each axis in turn get these lengths: V = V m / |V|.

    lengths: axis of the weight, 0 for the outputs, 1 for the inputs -> [out] or [in].
    """
    base = target.weight()
    new = base + change.change(base)
    factors = [torch.ones(width) for width in base.shape[:2]]
    for axis, length in lengths.items():
        factor = length / (_norms(new, axis == 0) + torch.finfo(torch.float32).eps)
        new = _along(new, factor, axis)
        factors[axis] = factors[axis] * factor
        change = _times(change, factor, axis)
    return Several((Hadamard(factors[1][None], factors[0][:, None]), change))


def _norms(weight: Tensor, outputs: bool) -> Tensor:
    """The norm of each output's part of a weight, or of each input's: all other axes together, taps included."""
    rows = weight if outputs else weight.transpose(0, 1)
    norms: Tensor = rows.flatten(1).norm(dim=1)
    return norms


def _times(change: LowRank | Whole, factor: Tensor, axis: int) -> LowRank | Whole:
    """The change, multiplied along the outputs (axis 0) or the inputs (axis 1)."""

    if isinstance(change, Whole):
        return Whole(_along(change.delta, factor, axis))
    if axis == 0:
        return replace(change, up=_along(change.up, factor, 0))
    return replace(change, down=_along(change.down, factor, 1))


def _along(tensor: Tensor, factor: Tensor, axis: int) -> Tensor:
    """The tensor in float32, with a factor for each place of one axis."""
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return tensor.float() * factor.view(shape)
