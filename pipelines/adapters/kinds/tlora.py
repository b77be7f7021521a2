"""T-LoRA: singular factors of the weight that were trained on, dW = (alpha / rank) (P L Q - P0 L0 Q0).

Soboleva et al. 2025 (arXiv 2507.05964), as LyCORIS writes it: `q_layer.weight` [rank, in], `p_layer.weight`
[out, rank], `lambda_layer` [1, rank]. The start P0 L0 Q0 is not in the file: it is the first, the last or the middle
singular parts of W, and is taken to be those that the factors are nearest to. Where they are near none, it was drawn by
chance (or is another checkpoint's), and the file is refused. The ranks that training hides at noisy steps all act, as
in LyCORIS.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, Leaf, RawLayer
from pipelines.adapters.kinds.parts import misfit, scale_of, smaller, whole
from pipelines.adapters.kinds.starts import principal
from pipelines.adapters.terms import LowRank, Target, Whole
from pipelines.errors import AdapterFormatError

PARTS = ("p_layer", "lambda_layer", "q_layer")
NEAR = 0.25
"""The mean of cos(p, p0) cos(q, q0) from which the factors come from these vectors; by chance it is about 0."""


class TLora(AdapterKind):
    """T-LoRA."""

    name = "T-LoRA"
    leaves: Mapping[str, Leaf] = {
        **{part: Leaf(part, "") for part in PARTS},
        **{f"{part}.weight": Leaf(part, "") for part in PARTS},
    }
    input_axes: Mapping[str, int] = {"q_layer": 1}
    has_alpha = True
    rank_parts = ("q_layer",)
    ends: Mapping[Format, Mapping[str, str]] = {
        "kohya": {"q_layer": "q_layer.weight", "p_layer": "p_layer.weight", "lambda_layer": "lambda_layer"}
    }
    terms = "low rank"
    needs_base = True

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return ("ComfyUI and A1111 do not load it",)

    def read(self, layer: RawLayer, target: Target) -> LowRank | Whole:
        left, values, right = whole(layer, *PARTS)
        left, values, right = left.flatten(1), values.flatten(), right.flatten(1)
        out, width = target.shape[:2]
        rank = len(right)
        fits = left.shape == (out, rank) and right.shape == (rank, width) and len(values) == rank
        if not fits:
            raise misfit(layer, target, *PARTS)
        if target.kernel > 1:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys['p_layer']!r} is T-LoRA on a kernel of {target.kernel} taps, for which its "
                "trainer's own forward fails; fetch another edition"
            )
        scale = scale_of(layer, rank)
        begun = max(
            _starts(target.weight().view(out, width), rank),
            key=lambda start: _likeness((left, right), (start[0], start[2])),
        )
        if _likeness((left, right), (begun[0], begun[2])) < NEAR:
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys['p_layer']!r} is near no singular vectors of this model's weight, so its "
                "start, which is not in the file, is not known; load it with the checkpoint that it was trained on, "
                "or save it as plain LoRA"
            )
        down = torch.cat([right, begun[2]])
        up = torch.cat([left * values, -begun[0] * begun[1]], dim=1)
        return smaller(down, up, scale, target)


def _starts(weight: Tensor, rank: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(P0 [out, rank], L0 [rank], Q0 [rank, in]): the first singular parts, the last, and the middle ones."""
    left, values, right = principal(weight, min(weight.shape))
    spare = max(len(values) - rank, 0)
    return [
        (left[:, first : first + rank], values[first : first + rank], right[first : first + rank])
        for first in (0, spare, spare // 2)
    ]


def _likeness(trained: tuple[Tensor, Tensor], begun: tuple[Tensor, Tensor]) -> float:
    """The mean of cos(p, p0) cos(q, q0) over the ranks. The sign of a pair of singular vectors is free."""
    count = begun[1].shape[0]
    cosines = torch.cosine_similarity(trained[0][:, :count], begun[0], dim=0)
    return float((cosines * torch.cosine_similarity(trained[1][:count], begun[1], dim=1)).mean())
