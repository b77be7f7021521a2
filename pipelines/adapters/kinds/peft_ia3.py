"""(IA)3 as PEFT writes it: one factor for each output, which multiplies the bias too, or for each input.

Liu et al. 2022 (arXiv 2205.05638). `ia3_l` holds the factors themselves, 1 at the start: [out, 1], a convolution's
[1, out, 1, 1]; of the modules that the setting `feedforward_modules` names [1, in(, 1, 1)], for the inputs.
"""

from __future__ import annotations

import re

from composers.shown import shown
from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, multiplier, setting, whole
from pipelines.adapters.terms import Hadamard, Several, Shift, Target
from pipelines.errors import AdapterFormatError

PART = "ia3_l"
_FEEDFORWARD = "feedforward_modules"
_NAME = re.compile(r"[\w.]{1,300}")
_MOST = 10_000


class PeftIa3(AdapterKind):
    """PEFT's (IA)3."""

    name = "(IA)³"
    leaves = peft_leaves(PART)
    peft_types = ("IA3",)
    terms = "a factor for each output, or for each input"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> Hadamard | Several:
        [given] = whole(layer, PART)
        factor, (out, width) = given.flatten(), target.shape[:2]
        if given.ndim != (4 if target.is_conv else 2) or len(factor) != max(given.shape[:2]):
            raise misfit(layer, target, PART)
        if target.is_conv:
            inputs = len(factor) == width and (out != width or _is_feedforward(layer))
        else:
            inputs = given.shape[0] == 1
        if len(factor) != (width if inputs else out):
            raise misfit(layer, target, PART)
        change = multiplier(factor, target, inputs=inputs)
        bias = target.shift()
        if inputs or not bias.any():
            return change
        return Several((change, Shift(bias * (factor - 1))))


def _is_feedforward(layer: RawLayer) -> bool:
    """Whether the settings say that the layer's inputs are multiplied. Raises AdapterFormatError without settings."""
    named = setting(layer, _FEEDFORWARD) if layer.settings.get(_FEEDFORWARD, 0) is not None else []
    names = [str(name) for name in (named if isinstance(named, list) else [named])]
    if len(names) > _MOST or not all(_NAME.fullmatch(name) for name in names):
        raise AdapterFormatError(
            f"{layer.file}: PEFT's setting {_FEEDFORWARD} is {shown(named)}, no list of module names; "
            "repair the settings"
        )
    return any(layer.name.endswith(name) for name in names)
