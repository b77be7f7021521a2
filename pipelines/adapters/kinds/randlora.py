"""RandLoRA: the sum of many random low-rank changes, each with its own factors, so that the whole has full rank.

Albert et al. 2025 (arXiv 2502.00987), as PEFT writes it: `randlora_lambda` [rank, n] and `randlora_gamma` [n, less] of
each layer, where `less` is the smaller of its two widths, and `more` the other; and once `randlora_A` [rank, 1, widest
less], `randlora_B` [widest more, widest n, rank], of which a layer uses the first parts. With these flat,

    dW = randlora_alpha / rank * B [more, n * rank] . (lambda A gamma) [rank * n, less], transposed where out < in.

The two are flattened in different orders, n before rank and rank before n: so PEFT trains it, and so it is. Files
without the random factors are refused, because what another machine draws from the same seed is not the same.
"""

from __future__ import annotations

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import common, misfit, numeric, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

PARTS = ("randlora_lambda", "randlora_gamma")
BASES = ("randlora_A", "randlora_B")


class RandLora(AdapterKind):
    """RandLoRA."""

    name = "RandLoRA"
    leaves = peft_leaves(*PARTS, *BASES)
    peft_types = ("RANDLORA",)
    shared = BASES

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        each, widths = whole(layer, *PARTS)
        own = layer.parts.keys() >= set(BASES)
        inner, outer = whole(layer, *BASES) if own else common(layer, BASES, "save_projection=True")
        out, width = target.shape[:2]
        less, more = sorted((out, width))
        if target.kernel > 1 or each.ndim != 2 or tuple(widths.shape) != (each.shape[1], less):
            raise misfit(layer, target, *PARTS)
        rank, count = each.shape
        fits = inner.ndim == outer.ndim == 3 and inner.shape[1] == 1
        fits = fits and inner.shape[0] == rank == outer.shape[2] and inner.shape[2] >= less
        if not fits or outer.shape[0] < more or outer.shape[1] < count:
            raise misfit(layer, target, *PARTS)
        down = (each[:, :, None] * inner[:, :, :less] * widths[None]).flatten(0, 1)  # [rank * n, less]
        up = outer[:more, :count].flatten(1)  # [more, n * rank]
        if out < width:
            down, up = up.mT, down.mT
        scale = numeric(layer, "randlora_alpha") / rank
        return smaller(down.contiguous(), up.contiguous(), scale, target)
