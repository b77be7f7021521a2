"""(IA)3: one factor for each output, or for each input, of a layer: W' = W * (1 + w) on that axis. Biases stay.

Liu et al. 2022 (arXiv 2205.05638), as LyCORIS writes it: `weight` [out] or [in] (a convolution's [1, out or in, 1, 1]),
and `on_input` beside it, 1 for the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer
from pipelines.adapters.kinds.parts import misfit, multiplier, number, whole
from pipelines.adapters.terms import Hadamard, Target

WEIGHT, ON_INPUT = "ia3_weight", "on_input"


class Ia3(AdapterKind):
    """(IA)3. The key of its factors ends in a bare `weight`: see `nameless`."""

    name = "(IA)³"
    leaves: Mapping[str, Leaf] = {ON_INPUT: Leaf(ON_INPUT, "", integers=True)}
    nameless: Mapping[str, str] = {ON_INPUT: WEIGHT}
    ends: Mapping[Format, Mapping[str, str]] = {"kohya": {WEIGHT: "weight", ON_INPUT: ON_INPUT}}
    terms = "a factor for each output, or for each input"
    needs_base = True

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return ("ComfyUI does not load it, and diffusers refuses it",)

    def read(self, layer: RawLayer, target: Target) -> Hadamard:
        factor = 1 + whole(layer, WEIGHT)[0].flatten()
        out, inner = target.shape[:2]
        on_input = bool(number(layer, ON_INPUT))
        if len(factor) != (inner if on_input else out):
            raise misfit(layer, target, WEIGHT)
        return multiplier(factor, target, inputs=on_input)
