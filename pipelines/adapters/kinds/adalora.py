"""AdaLoRA: a low-rank change with a length for each rank, dW = scale * B diag(E) A.

Zhang et al. 2023 (arXiv 2303.10512), as PEFT writes it: `lora_A` [rank, in * kernel], `lora_E` [rank, 1],
`lora_B` [out, rank]. scale is alpha / (init_r + 1e-5), by the rank at the start of the training, not the one that is
left; alpha of 0 or below counts as that rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.adapters.kinds.kind import AdapterKind, Format, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, numeric, smaller, whole
from pipelines.adapters.terms import LowRank, Target, Whole

LENGTHS, START = "lora_E", "ranknum"


class AdaLora(AdapterKind):
    """AdaLoRA. Its outer parts have the names of LoRA's."""

    name = "AdaLoRA"
    leaves = peft_leaves(LENGTHS, START)
    peft_types = ("ADALORA",)
    takes = ("up", "down")
    ends: Mapping[Format, Mapping[str, str]] = {
        "peft": {"down": "lora_A", LENGTHS: LENGTHS, "up": "lora_B", START: START}
    }
    terms = "low rank"

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        down, lengths, up = whole(layer, "down", LENGTHS, "up")
        down, up = down.flatten(1), up.flatten(1)
        rank = len(down)
        if (
            tuple(up.shape) != (target.shape[0], rank)
            or down.shape[1] != target.inputs
            or lengths.numel() != rank
        ):
            raise misfit(layer, target, "down", LENGTHS, "up")
        start, alpha = numeric(layer, "init_r"), numeric(layer, "lora_alpha")
        scale = (alpha if alpha > 0 else start) / (start + 1e-5)
        return smaller(down * lengths.view(rank, 1), up, scale, target)
