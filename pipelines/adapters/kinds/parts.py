"""What the adapter types share: scales, shapes that do not fit, and when a change is kept as a whole difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from composers.shown import shown
from pipelines.adapters.kinds.kind import RawLayer
from pipelines.adapters.terms import Hadamard, LowRank, Target, Whole
from pipelines.errors import AdapterFormatError, AdapterMismatchError

IN_ORDER = (
    "in ComfyUI and A1111 the order of the LoRAs matters, as each changes the weight that the last one left"
)
"""Said of types whose change depends on the base weight."""


def scale_of(layer: RawLayer, rank: int) -> float:
    """alpha / rank if the layer has its own alpha, else the scale of the settings, else 1.

    Raises AdapterFormatError.
    """
    return layer.scale_of(rank)


def number(layer: RawLayer, part: str) -> float:
    """The part as one number. Raises AdapterFormatError."""
    return layer.number(part)


def whole(layer: RawLayer, *parts: str) -> tuple[Tensor, ...]:
    """These parts in float32. Raises AdapterFormatError for one that is missing, and for an empty one."""
    missing = [part for part in parts if part not in layer.parts]
    if missing:
        key = next(layer.keys[part] for part in layer.keys if part not in missing)
        raise AdapterFormatError(
            f"{layer.file}: {key!r} has no matching {missing[0]}, so the file is incomplete; fetch it again"
        )
    for part in parts:
        if not layer.parts[part].numel():
            raise AdapterFormatError(
                f"{layer.file}: {layer.keys[part]!r} has the shape {list(layer.parts[part].shape)}, so it holds "
                "nothing; fetch a whole file"
            )
    return tuple(layer.parts[part].float() for part in parts)


def common(layer: RawLayer, parts: Sequence[str], remedy: str) -> tuple[Tensor, ...]:
    """Parts that all layers share, float32. Raises AdapterFormatError for one that is missing or empty."""
    for part in parts:
        if part not in layer.shared or not layer.shared[part].numel():
            raise AdapterFormatError(
                f"{layer.file}: {part}, which all its layers share, is missing, so it cannot be read; save it again "
                f"with {remedy}"
            )
    return tuple(layer.shared[part].float() for part in parts)


def misfit(layer: RawLayer, target: Target, *parts: str) -> AdapterMismatchError:
    """The error for parts whose shapes do not fit the layer."""
    shapes = " and ".join(
        f"{layer.keys[part]!r} {list(layer.parts[part].shape)}" for part in parts if part in layer.parts
    )
    return AdapterMismatchError(
        f"{layer.file}: {shapes} do not fit {layer.name} {list(target.shape)} of this model; the file was made for a "
        "model of other sizes, load it with that one"
    )


def smaller(down: Tensor, up: Tensor, scale: float, target: Target) -> LowRank | Whole:
    """scale * up . down as low-rank factors, or, where these would hold more than half a weight, as a whole difference.

    down: [rank, in * kernel]; up: [out, rank]; both float32.
    """
    rank, (out, inner) = len(down), (target.shape[0], math.prod(target.shape[1:]))
    if scale and 2 * rank * (out + inner) > out * inner:
        return Whole((up @ down * scale).reshape(target.shape), factored=True)
    kernel = target.shape[2:]
    return LowRank(
        down.reshape(rank, target.shape[1], *kernel), up.reshape(out, rank, *(1 for _ in kernel)), scale
    )


def scaled(change: Tensor, scale: float, target: Target) -> LowRank | Whole:
    """A change times its scale. With the scale 0 it stays known that nothing is changed because of it."""
    if scale:
        return Whole(change * scale)
    out, width, *kernel = target.shape
    return LowRank(torch.zeros(1, width, *kernel), torch.zeros(out, 1, *(1 for _ in kernel)), 0.0)


def setting(layer: RawLayer, name: str) -> object:
    """One of PEFT's settings. Raises AdapterFormatError where it is not stated."""
    if layer.settings.get(name) is None:
        key = next(iter(layer.keys.values()))
        raise AdapterFormatError(
            f"{layer.file}: {key!r} cannot be read without PEFT's setting {name}; put the adapter_config.json that "
            "belongs to it beside it, and call the file adapter_model.safetensors"
        )
    return layer.settings[name]


def numeric(layer: RawLayer, name: str) -> float:
    """A finite number among PEFT's settings. Raises AdapterFormatError."""
    value = setting(layer, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise AdapterFormatError(
            f"{layer.file}: PEFT's setting {name} is {shown(value)}, no number; repair the settings"
        )
    return float(value)


_LARGEST = 1e30


def multiplier(factor: Tensor, target: Target, *, inputs: bool = False) -> Hadamard:
    """A factor for each output, [out], or for each input, [in]."""
    out, width = target.shape[:2]
    if inputs:
        return Hadamard(factor.view(1, width), torch.ones(out, 1))
    return Hadamard(torch.ones(1, width), factor.view(out, 1))


def skew(vectors: Tensor, size: int) -> Tensor:
    """The skew-symmetric matrices [n, b, b] whose upper triangles are [n, b (b - 1) / 2], row by row."""
    rows, columns = torch.triu_indices(size, size, 1)
    upper = vectors.new_zeros(len(vectors), size, size)
    upper[:, rows, columns] = vectors
    return upper - upper.mT


def series(skewed: Tensor, terms: int) -> Tensor:
    """PEFT's series in place of a Cayley transform, 1 + 2 Q + 2 Q^2 + … + 2 Q^(m - 1) + Q^m. skewed: Q [n, b, b].

    m is terms - 1, but for 3 terms it is 3 as well, and 2 terms are 1 + 2 Q.
    """
    total = torch.eye(skewed.shape[-1]).expand(skewed.shape).clone()
    if terms > 1:
        total += 2 * skewed
    if terms > 2:
        power = skewed
        for _ in range(2, max(terms - 1, 3)):
            power = power @ skewed
            total += 2 * power
        total += power @ skewed
    return total


def cayley(blocks: Tensor, bound: float) -> Tensor:
    """The rotations R = (I + Q)(I - Q)^-1, Q = B - B^T, of blocks B [..., b, b], float32.

    bound: the greatest norm of all Q together; 0 or below is unbounded.
    """
    skew = blocks - blocks.mT
    norm = float(skew.norm()) + 1e-8
    if 0 < bound < norm:
        skew = skew * (bound / norm)
    eye = torch.eye(blocks.shape[-1], dtype=skew.dtype)
    turns: Tensor = (eye + skew) @ torch.linalg.inv(eye - skew)
    return turns
