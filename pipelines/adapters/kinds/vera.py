"""VeRA: a low-rank change of random factors that all layers share, dW = diag(b) B diag(d) A.

Kopiczko et al. 2024 (arXiv 2310.11454), as PEFT writes it: `vera_lambda_b` [out], `vera_lambda_d` [rank] of each layer,
and once `vera_A` [rank, widest in], `vera_B` [widest out, rank], of which a layer uses the first columns and rows.
"""

from __future__ import annotations

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import common, misfit, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

LAMBDAS = ("vera_lambda_b", "vera_lambda_d")
SHARED = ("vera_A", "vera_B")


class Vera(AdapterKind):
    """VeRA."""

    name = "VeRA"
    leaves = peft_leaves(*LAMBDAS)
    peft_types = ("VERA",)
    shared = SHARED
    terms = "low rank: common random factors"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        outer, inner = whole(layer, *LAMBDAS)
        down, up = common(layer, SHARED, "save_projection=True")
        out, width = target.shape[:2]
        rank = inner.numel()
        fits = (
            down.ndim == up.ndim == 2
            and len(down) == rank == up.shape[1]
            and down.shape[1] >= width
            and len(up) >= out == outer.numel()
        )
        if not fits or target.kernel > 1:
            raise misfit(layer, target, *LAMBDAS)
        return smaller(inner.view(-1, 1) * down[:, :width], outer.view(-1, 1) * up[:out], 1.0, target)
