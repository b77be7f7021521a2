"""FourierFT: a few places of the change's spectrum, dW = scaling * real(ifft2(spectrum)).

Gao et al. 2024 (arXiv 2405.03003), as PEFT writes it: `fourierft_spectrum` [n]. Its places are the first n of a random
order of all out * in, drawn with the setting `random_loc_seed`.
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, numeric, whole
from pipelines.adapters.terms import Target, Whole

PART = "fourierft_spectrum"


class FourierFt(AdapterKind):
    """FourierFT."""

    name = "FourierFT"
    leaves = peft_leaves(PART)
    peft_types = ("FOURIERFT",)
    terms = "a whole difference: the inverse transform of a few frequencies"

    def read(self, layer: RawLayer, target: Target) -> Whole:
        [values] = whole(layer, PART)
        out, width = target.shape[:2]
        if values.ndim != 1 or len(values) > out * width or target.kernel > 1:
            raise misfit(layer, target, PART)
        generator = torch.Generator().manual_seed(int(numeric(layer, "random_loc_seed")) % 2**63)
        places = torch.randperm(out * width, generator=generator)[: len(values)]
        spectrum = torch.zeros(out * width).index_copy_(0, places, values).view(out, width)
        change = torch.fft.ifft2(spectrum).real * numeric(layer, "scaling")
        return Whole(change.contiguous().view(target.shape))
