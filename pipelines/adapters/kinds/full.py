"""Whole differences of weights, biases and norms: W' = W + diff, b' = b + diff_b.

LyCORIS' full and norm modules, and what ComfyUI and others extract from two checkpoints. `w_norm` and `b_norm` are
those of a norm; `diff` and `diff_b` may belong to one too. `set_weight` is the new weight itself (ComfyUI).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipelines.adapters.kinds.kind import Leaf, RawLayer
from pipelines.adapters.kinds.parts import misfit
from pipelines.adapters.terms import LayerFactors, Shift, Target, Term, Whole, together

PARTS = ("diff", "diff_b", "set_weight")


@dataclass(frozen=True)
class Full:
    """Whole differences, as an `AdapterKind`. They may stand beside other types on one layer."""

    name: str = "full"
    leaves: Mapping[str, Leaf] = field(
        default_factory=lambda: {
            **{part: Leaf(part, "") for part in PARTS},
            "w_norm": Leaf("diff", ""),
            "b_norm": Leaf("diff_b", ""),
        }
    )
    input_axes: Mapping[str, int] = field(default_factory=lambda: {"diff": 1})
    refusal: str = ""

    def claims(self, parts: Collection[str]) -> bool:
        return not set(PARTS).isdisjoint(parts)

    def read(self, layer: RawLayer, target: Target) -> LayerFactors:
        terms: list[Term] = []
        for part in ("diff", "set_weight"):
            if part in layer.parts:
                value = layer.parts[part]
                if value.squeeze().shape != value.new_empty(target.shape).squeeze().shape:
                    raise misfit(layer, target, part)
                value = value.reshape(target.shape)
                terms.append(Whole(value if part == "diff" else value.float() - target.weight()))
        if "diff_b" in layer.parts:
            value = layer.parts["diff_b"].flatten()
            if len(value) != target.shape[0]:
                raise misfit(layer, target, "diff_b")
            terms.append(Shift(value))
        return together(terms)
