"""What the adapter types share: scales, shapes that do not fit, and when a change is kept as a whole difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import RawLayer
from pipelines.adapters.terms import LowRank, Target, Whole
from pipelines.errors import AdapterFormatError, AdapterMismatchError


def scale_of(layer: RawLayer, rank: int) -> float:
    """alpha / rank if the layer has its own alpha, else the scale of the settings, else 1.

    Raises AdapterFormatError.
    """
    if "alpha" not in layer.parts:
        return 1.0 if layer.scale is None else layer.scale
    return number(layer, "alpha") / rank


def number(layer: RawLayer, part: str) -> float:
    """The part as one number. Raises AdapterFormatError."""
    value = layer.parts[part]
    if value.numel() != 1:
        raise AdapterFormatError(
            f"{layer.file}: {layer.keys[part]!r} must be one number, but its shape is {list(value.shape)}; fetch a "
            "sound file"
        )
    return float(value.double().item())


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
    if 2 * rank * (out + inner) > out * inner:
        return Whole((up @ down * scale).reshape(target.shape))
    kernel = target.shape[2:]
    return LowRank(
        down.reshape(rank, target.shape[1], *kernel), up.reshape(out, rank, *(1 for _ in kernel)), scale
    )


def fits(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether the tensor has this shape, up to a trailing 1x1 kernel."""
    mine = tuple(tensor.shape)
    if len(mine) > 2 and all(length == 1 for length in mine[2:]) and len(shape) == 2:
        mine = mine[:2]
    return mine == tuple(shape)


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
