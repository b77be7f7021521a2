"""OFT as PEFT and OneTrainer write it: rotations of a layer's inputs, in blocks. W' = W R^T.

Qiu et al. 2023 (arXiv 2306.07280). `oft_R.weight` [in / b, b (b - 1) / 2] holds the upper triangles of Q; one row is
for all blocks.

PEFT: its settings say whether R is a series in Q (`use_cayley_neumann`) or (1 - Q)(1 + Q)^-1, and whether each block's
      norm is bounded (`coft`, `eps`). With kernels larger than 1x1 PEFT changes the picture before any training, and no
      weight does what it does: refused.
OneTrainer: always the series of five terms. A convolution's rows are rotated as [in * kernel], and by W R. With
      `oft_R.scaled_oft`, what is kept is 2 sqrt(b - 1) times as large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, Format, RawLayer, Written, peft_leaves
from pipelines.adapters.kinds.parts import misfit, number, numeric, series, setting, skew, whole
from pipelines.adapters.terms import Target, Whole
from pipelines.errors import AdapterFormatError

WEIGHT, SCALED = "oft_R.weight", "oft_R.scaled_oft"
_MOST_TERMS = 100


class PeftOft(AdapterKind):
    """PEFT's and OneTrainer's OFT."""

    name = "OFT"
    leaves = peft_leaves(WEIGHT, SCALED, integers=(SCALED,))
    peft_types = ("OFT",)
    ends: Mapping[Format, Mapping[str, str]] = {
        "kohya": {WEIGHT: WEIGHT, SCALED: SCALED},
        "peft": {WEIGHT: WEIGHT},
    }
    terms = "a whole difference: the turned base weight"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> Whole:
        [vectors] = whole(layer, WEIGHT)
        elements = vectors.shape[-1]
        size = (1 + math.isqrt(1 + 8 * elements)) // 2
        rows = len(vectors)
        fits = vectors.ndim == 2 and size * (size - 1) // 2 == elements and target.inputs % size == 0
        if not fits or rows not in (1, target.inputs // size):
            raise misfit(layer, target, WEIGHT)
        theirs = _is_one_trainers(layer)
        turns = _one_trainer(layer, vectors, size) if theirs else _peft(layer, target, vectors, size)
        if not (theirs and target.is_conv):
            turns = turns.mT
        base = target.weight()
        blocks = base.reshape(target.shape[0], -1, 1, size)
        return Whole((blocks @ turns).reshape(base.shape) - base)

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        if _is_one_trainers(layer) != (to == "kohya"):
            raise self.unwritable(layer, to, "which OneTrainer and PEFT compute differently")
        return super().write(layer, target, to)

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return ("only the program that trained it, OneTrainer or PEFT, loads it; A1111 and diffusers do not",)


def _is_one_trainers(layer: RawLayer) -> bool:
    return not layer.settings and not layer.keys[WEIGHT].startswith("base_model.")


def _one_trainer(layer: RawLayer, vectors: Tensor, size: int) -> Tensor:
    if SCALED in layer.parts and number(layer, SCALED):
        vectors = vectors / (2 * math.sqrt(max(size - 1, 1)))
    return series(skew(vectors, size), 5)


def _peft(layer: RawLayer, target: Target, vectors: Tensor, size: int) -> Tensor:
    if target.kernel > 1:
        raise AdapterFormatError(
            f"{layer.file}: {layer.keys[WEIGHT]!r} is PEFT's OFT on a kernel of {list(target.shape[2:])}, which PEFT "
            "itself applies wrongly, so what was trained has no weight; train it without convolutions"
        )
    skewed = skew(vectors, size)
    if layer.settings.get("coft"):
        bound = numeric(layer, "eps") / math.sqrt(len(vectors))
        norms = skewed.flatten(1).norm(dim=1).view(-1, 1, 1)
        skewed = torch.where(norms <= bound, skewed, skewed * (bound / norms.clamp(min=1e-30)))
    if setting(layer, "use_cayley_neumann"):
        terms = int(numeric(layer, "num_cayley_neumann_terms"))
        if not 1 <= terms <= _MOST_TERMS:
            raise AdapterFormatError(
                f"{layer.file}: PEFT's setting num_cayley_neumann_terms is {terms}, not between 1 and {_MOST_TERMS}; "
                "repair the settings"
            )
        return series(skewed, terms)
    eye = torch.eye(size)
    turns: Tensor = (eye - skewed) @ torch.linalg.inv(eye + skewed)
    return turns
