"""Types of the literature of which no program writes files: one layout for all of them, which is ours.

A safetensors file. Its header says `lora_studio.kind`, the type's name (several, with commas between them, where layers
are of several types; a file without it is read too). Each layer has the parts that its type's file here names, by keys

    unet.<layer>.<word>.<part>             for example unet.mid_block.attentions.0.proj_in.bora.up
    text_encoder.<layer>.<word>.<part>     likewise; all other prefixes and block names that LoRA files use are read too
    <word>_<pool>                          once in a file, what all its layers share
    unet.<layer>.alpha                     where there is one. Types with a rank have the scale alpha / rank, those
                                           without have the scale alpha; without an alpha it is 1

A linear layer's weight W is [out, in]. A convolution's is taken as the matrix [out, in * kh * kw], whose width is
called `in` here as well. Floats may have any width; indices are whole numbers and count from 0. Ranks are at most 4
times the wider of out and in, which no training exceeds.

Types that are built on singular vectors of W (W = U S V^T) take them from the base weight, in double precision, the
greatest first, and of each pair (u, v) the sign with which the greatest entry of u is positive. A file may hold them
instead, as `up` [out, r] and `down` [r, in], which then stand for the two outer factors of its type.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from composers.shown import shown
from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.kinds.parts import common, misfit, number, scaled, smaller, whole
from pipelines.adapters.terms import LayerFactors, LowRank, Target, Whole
from pipelines.errors import AdapterFormatError, AdapterMismatchError

HEADER = "lora_studio.kind"
_LONGEST = 1000  # characters of the header that are read
_MOST = 4  # times the wider axis of a weight: the longest that any free axis of a part may be


def stated(metadata: Mapping[str, str]) -> set[str]:
    """The names of types in a file's header."""
    return {name.strip() for name in metadata.get(HEADER, "")[:_LONGEST].split(",")}


def check_header(file: str, metadata: Mapping[str, str], names: Collection[str]) -> None:
    """Raises AdapterFormatError where a file's header names other types than its keys show. names: of the latter."""
    if HEADER in metadata and stated(metadata).isdisjoint(names):
        raise AdapterFormatError(
            f"{file}: its {HEADER} is {shown(metadata[HEADER])}, but its keys are those of {' and '.join(names)}; "
            "fetch it again"
        )


class Paper(AdapterKind):
    """A type of the literature. word: how its parts' keys begin. parts: its parts. indices: those of them that hold
    whole numbers. pools: what its layers share, without the word."""

    word: str
    parts: Collection[str]
    indices: Collection[str] = ()
    pools: Collection[str] = ()
    has_alpha = True

    def __init__(self) -> None:
        self.leaves: Mapping[str, Leaf] = {
            f"{self.word}.{part}": Leaf(f"{self.word}.{part}", "", part in self.indices, naming="LoRA Studio")
            for part in self.parts
        }
        self.shared = tuple(f"{self.word}_{pool}" for pool in self.pools)

    def check_metadata(self, file: str, metadata: Mapping[str, str]) -> None:
        check_header(file, metadata, [self.name])

    def read(self, layer: RawLayer, target: Target) -> LayerFactors:
        self.check_metadata(layer.file, layer.metadata)
        return self.change(Sheet(self, layer, target))

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return ("only LoRA Studio loads it",)

    @abstractmethod
    def change(self, sheet: Sheet) -> LayerFactors:
        """What a layer's parts change. Raises AdapterError."""


@dataclass(frozen=True)
class Sheet:
    """One layer's parts, checked as they are asked for. out, width: of its weight as a matrix."""

    kind: Paper
    layer: RawLayer
    target: Target

    @property
    def out(self) -> int:
        return self.target.shape[0]

    @property
    def width(self) -> int:
        return self.target.inputs

    def has(self, part: str) -> bool:
        return f"{self.kind.word}.{part}" in self.layer.parts

    def get(self, part: str, *shape: int | None, most: int = 0) -> Tensor:
        """A part in float32, which must have this shape; None is any length up to `most`, or within reason.

        Raises AdapterError.
        """
        [found] = whole(self.layer, f"{self.kind.word}.{part}")
        most = most or _MOST * max(self.out, self.width)
        fits = len(shape) == found.ndim and all(
            length == wanted if wanted is not None else length <= most
            for length, wanted in zip(found.shape, shape, strict=True)
        )
        if not fits:
            raise self.misfit(part)
        return found

    def square(self, part: str) -> Tensor:
        """A part [r, r] in float32. Raises AdapterError."""
        found = self.get(part, None, None)
        if found.shape[0] != found.shape[1]:
            raise self.misfit(part)
        return found

    def places(self, part: str, most: int, *shape: int | None) -> Tensor:
        """Indices below `most`, int64. Raises AdapterError, also for numbers that are not whole."""
        found = self.get(part, *shape)
        own = self.layer.parts[f"{self.kind.word}.{part}"]
        if own.is_floating_point() or (own < 0).any() or (own >= most).any():
            raise AdapterMismatchError(
                f"{self.layer.file}: {self.layer.keys[f'{self.kind.word}.{part}']!r} must hold whole numbers from 0 to "
                f"{most - 1} for {self.layer.name}; the file was made for a model of other sizes, or is damaged"
            )
        return own.long().reshape(found.shape)

    def once(self, part: str, places: Tensor) -> Tensor:
        """The places, of which none may come twice. Raises AdapterFormatError."""
        if len(torch.unique(places, dim=0)) != len(places):
            raise AdapterFormatError(
                f"{self.layer.file}: {self.layer.keys[f'{self.kind.word}.{part}']!r} names a place twice; fetch a "
                "sound file"
            )
        return places

    def pool(self, name: str) -> Tensor:
        """What the layers share, a matrix in float32. Raises AdapterError."""
        part = f"{self.kind.word}_{name}"
        [found] = common(self.layer, (part,), "all its tensors")
        if found.ndim != 2:
            raise AdapterFormatError(
                f"{self.layer.file}: {part!r} has the shape {list(found.shape)}, but must be a matrix; fetch it again"
            )
        return found

    def misfit(self, *parts: str) -> AdapterMismatchError:
        """The error for parts whose shapes do not fit the layer."""
        return misfit(self.layer, self.target, *(f"{self.kind.word}.{part}" for part in parts))

    def scale(self, rank: int = 1) -> float:
        """alpha / rank, 1 without an alpha. Raises AdapterFormatError."""
        return number(self.layer, "alpha") / rank if "alpha" in self.layer.parts else 1.0

    def weight(self) -> Tensor:
        """The base weight as a matrix [out, in], float32."""
        return self.target.weight().reshape(self.out, self.width)

    def frame(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """(U [out, rank], S [rank], V^T [rank, in]) of the base weight, float32. Raises AdapterMismatchError."""
        if rank > min(self.out, self.width):
            raise self.misfit(*self.kind.parts)
        left, values, right = torch.linalg.svd(self.weight().double(), full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
        sign = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign().squeeze(0)
        return (left * sign).float(), values.float(), (right * sign[:, None]).float()

    def outer(self, rank: int, power: float) -> tuple[Tensor, Tensor]:
        """(down [rank, in], up [out, rank]): the file's own, or S^(1 - power) V^T and U S^power of the base weight."""
        if self.has("up") or self.has("down"):
            return self.get("down", rank, self.width), self.get("up", self.out, rank)
        left, values, right = self.frame(rank)
        return values[:, None] ** (1 - power) * right, left * values**power

    def low_rank(self, down: Tensor, up: Tensor, scale: float) -> LowRank | Whole:
        """scale * up . down, of down [rank, in] and up [out, rank]."""
        if down.shape[1] != self.width or len(up) != self.out or len(down) != up.shape[1]:
            raise self.misfit(*self.kind.parts)
        return smaller(down.contiguous(), up.contiguous(), scale, self.target)

    def dense(self, change: Tensor, scale: float) -> LowRank | Whole:
        """scale * change, of a matrix [out, in]. Raises AdapterMismatchError where it has another shape."""
        if tuple(change.shape) != (self.out, self.width):
            raise self.misfit(*self.kind.parts)
        return scaled(change.reshape(self.target.shape), scale, self.target)


def kron(sheet: Sheet, first: str, second: str) -> Tensor:
    """The Kronecker product of two parts, [out, in]. Raises AdapterMismatchError, before it is made."""
    one, two = sheet.get(first, None, None), sheet.get(second, None, None)
    shape = tuple(math.prod(lengths) for lengths in zip(one.shape, two.shape, strict=True))
    if shape != (sheet.out, sheet.width):
        raise sheet.misfit(first, second)
    return torch.kron(one, two)
