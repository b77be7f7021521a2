"""Starts that changed the base: factors B0 A0 were taken out of the weight before the training, W - scale B0 A0.

So what a file holds is no difference from W. Its difference is scale (B A - B0 A0), of rank 2 r. B0 A0 comes from a
stored start, or is computed again where it follows from W alone:

    pissa   scale B0 A0 = the r greatest singular parts of W        (Meng et al. 2024, arXiv 2404.02948)
    olora   B0 A0 = Q_r R_r, the first r columns of Q and rows of R of W = Q R   (Büyükakyüz 2024, arXiv 2406.01775)

A start from data (CorDA, LoRA-GA) or from chance (PiSSA by a few steps, `pissa_niter_4`) does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.errors import AdapterFormatError

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "loraga")
"""How the names of such starts begin."""
RECOMPUTED = ("pissa", "olora")
"""Starts that follow from the base weight."""
_APART = 1e-6
"""Singular values, as parts of the greatest, between which fp32 tells no difference."""


@dataclass(frozen=True)
class Start:
    """What a layer was trained from. name: PEFT's `init_lora_weights`. down [r, in], up [out, r]: a stored start's."""

    name: str
    down: Tensor | None = None
    up: Tensor | None = None


def principal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U [out, rank], S [rank], V^T [rank, in]), the greatest singular parts of a float32 weight [out, in]."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def computed(name: str, weight: Tensor, rank: int, scale: float, where: str) -> tuple[Tensor, Tensor]:
    """(down, up) of the start, up . down = scale B0 A0. weight: [out, in], float32. where: the layer, for messages.

    Raises AdapterFormatError where the weight does not tell it.
    """
    rank = min(rank, *weight.shape)
    if name == "pissa":
        left, values, right = principal(weight, rank + 1)
        clear = len(values) == rank or bool(values[rank - 1] - values[rank] > _APART * values[0])
        down, up = right[:rank], left[:, :rank] * values[:rank]
    else:
        turn, triangle = torch.linalg.qr(weight)
        heights = triangle.diagonal().abs()[:rank]
        clear = bool(heights.min() > _APART * heights.max())
        down, up = triangle[:rank], turn[:, :rank] * scale
    if not clear:
        raise AdapterFormatError(
            f"{where}: its start ({name}) does not follow clearly from this model's weight; save the file again with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    return down, up
