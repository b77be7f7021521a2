"""C3A: circulant blocks, dW[(m, p), (n, q)] = kernel[m, n, (q - p) mod b] / in.

Chen et al. 2025 (arXiv 2407.19342), as PEFT writes it: `c3a_kernel` [out / b, in / b, b].
"""

from __future__ import annotations

import torch

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, whole
from pipelines.adapters.terms import Target, Whole

PART = "c3a_kernel"


class C3a(AdapterKind):
    """C3A."""

    name = "C3A"
    leaves = peft_leaves(PART)
    peft_types = ("C3A",)
    terms = "a whole difference: circulant blocks"

    def read(self, layer: RawLayer, target: Target) -> Whole:
        [kernel] = whole(layer, PART)
        size = kernel.shape[-1]
        shape = (kernel.shape[0] * size, kernel.shape[1] * size) if kernel.ndim == 3 else ()
        if shape != tuple(target.shape[:2]) or target.kernel > 1:
            raise misfit(layer, target, PART)
        place = torch.arange(size)
        blocks = kernel[:, :, (place[None] - place[:, None]) % size]  # [m, n, p, q]
        return Whole(blocks.permute(0, 2, 1, 3).reshape(target.shape) / target.shape[1])
