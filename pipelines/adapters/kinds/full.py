"""Whole differences of weights, biases and norms: W' = W + diff, b' = b + diff_b.

LyCORIS' full and norm modules, and what ComfyUI and others extract from two checkpoints. `w_norm` and `b_norm` are
those of a norm; `diff` and `diff_b` may belong to one too. `set_weight` is the new weight itself (ComfyUI), and so is
what PEFT's LN tuning keeps of a norm. `base_layer.bias` is a new bias: PEFT's LoRA with `bias="all"`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer, Written
from pipelines.adapters.kinds.parts import misfit
from pipelines.adapters.terms import LayerFactors, Shift, Target, Term, Whole, terms_of, together

DIFF, DIFF_B = "diff", "diff_b"
NORM_NAMES = ("w_norm", "b_norm")
PARTS = (DIFF, DIFF_B, "set_weight", "set_bias")


class Full(AdapterKind):
    """Whole differences. They may stand beside other types on one layer."""

    name = "full"
    leaves: Mapping[str, Leaf] = {
        **{part: Leaf(part, "") for part in PARTS[:3]},
        "w_norm": Leaf("diff", ""),
        "b_norm": Leaf("diff_b", ""),
        "ln_tuning_layers.weight": Leaf("set_weight", "peft"),
        "ln_tuning_layers.bias": Leaf("set_bias", "peft"),
        "base_layer.bias": Leaf("set_bias", "peft"),
    }
    input_axes: Mapping[str, int] = {"diff": 1}
    peft_types = ("LN_TUNING",)
    on_norms = True
    terms = "whole differences of weights, biases and norms"

    def read(self, layer: RawLayer, target: Target) -> LayerFactors:
        terms: list[Term] = []
        for part in ("diff", "set_weight"):
            if part in layer.parts:
                value = layer.parts[part]
                if value.squeeze().shape != value.new_empty(target.shape).squeeze().shape:
                    raise misfit(layer, target, part)
                value = value.reshape(target.shape)
                terms.append(Whole(value if part == "diff" else value.float() - target.weight()))
        shift = None
        for part in ("diff_b", "set_bias"):
            if part in layer.parts:
                value = layer.parts[part].flatten().float()
                if len(value) != target.shape[0]:
                    raise misfit(layer, target, part)
                value = value if part == "diff_b" else value - target.shift()
                shift = value if shift is None else shift + value
        return together([*terms, *([] if shift is None else [Shift(shift)])])

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        own = {part: tensor for part, tensor in layer.parts.items() if part in {*PARTS}}
        if to == "peft" and str(layer.settings.get("peft_type")).upper().endswith("LN_TUNING"):
            ends = {"set_weight": "ln_tuning_layers.weight", "set_bias": "ln_tuning_layers.bias"}
            return Written(
                {ends[part]: tensor for part, tensor in own.items()},
                settings={**layer.settings, "peft_type": self.peft_types[0]},
            )
        if to != "kohya":
            raise self.unwritable(layer, to)
        if "set_bias" in own or ("set_weight" in own and target.is_norm):
            # only their differences have a place there
            found = self.read(layer, target)
            wholes = [term.delta for term in terms_of(found) if isinstance(term, Whole)]
            shift = found.shift
            own = {
                **({"diff": wholes[0]} if wholes else {}),
                **({"diff_b": shift} if shift is not None else {}),
            }
        names = dict(zip((DIFF, DIFF_B), NORM_NAMES, strict=True)) if target.is_norm else {}
        return Written({names.get(part, part): tensor for part, tensor in own.items()})

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return ("diffusers refuses whole differences, and those of norms",)
