"""SHiRA: a few entries of the weight change, dW[row, column] = value.

Bhardwaj et al. 2024 (arXiv 2406.13175), as PEFT writes it: `shira_weight` [n], `shira_indices` [2, n] whole numbers.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, whole
from pipelines.adapters.terms import Target, Whole

VALUES, PLACES = "shira_weight", "shira_indices"


class Shira(AdapterKind):
    """SHiRA."""

    name = "SHiRA"
    leaves = peft_leaves(VALUES, PLACES, integers=(PLACES,))
    peft_types = ("SHIRA",)
    terms = "a whole difference: a few entries"

    def read(self, layer: RawLayer, target: Target) -> Whole:
        [values, _] = whole(layer, VALUES, PLACES)
        places = layer.parts[PLACES].long()
        out, width = target.shape[:2]
        fits = places.shape == (2, values.numel()) and target.kernel == 1
        if not fits or (places < 0).any() or (places >= torch.tensor([[out], [width]])).any():
            raise misfit(layer, target, VALUES, PLACES)
        change = torch.zeros(out * width).index_add_(0, places[0] * width + places[1], values.flatten())
        return Whole(change.view(target.shape))
