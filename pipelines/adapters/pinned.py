"""An adapter's factors in one block of memory (page-locked, if wanted), so that one copy moves them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from pipelines.adapters.adapter import Adapter
from pipelines.adapters.terms import LayerFactors, Term, terms_of, together

ALIGNMENT = 16
"""Every tensor begins at a multiple of so many bytes, which suits all data types and vectorised copies."""


@dataclass(frozen=True)
class _Place:
    """Where one tensor is: in which field of which term of which layer, and at which bytes of the block."""

    layer: str
    term: int
    field: str
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def read(self, block: Tensor) -> Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        return block[self.start : self.start + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Packed:
    """An adapter whose factors are views of `block`, [bytes] uint8."""

    adapter: Adapter
    block: Tensor
    places: tuple[_Place, ...]

    @property
    def bytes(self) -> int:
        return self.block.nbytes

    def factors_in(self, block: Tensor) -> Mapping[str, LayerFactors]:
        """Layer -> factors that are views of `block`, a copy of the block on any device."""
        found: dict[str, dict[int, dict[str, Tensor]]] = {}
        for place in self.places:
            found.setdefault(place.layer, {}).setdefault(place.term, {})[place.field] = place.read(block)
        return {layer: _with(self.adapter.layers[layer], tensors) for layer, tensors in found.items()}


def pack(adapter: Adapter, *, pinned: bool = False) -> Packed:
    """The adapter with its factors copied into one block on the host.

    pinned: in page-locked memory, from which copies to a GPU run beside other work. Where the system cannot lock that
    much, the block is in ordinary memory (`packed.block.is_pinned()` tells).
    """
    places: list[_Place] = []
    end = 0
    for layer, term, field, tensor in _tensors(adapter):
        places.append(_Place(layer, term, field, end, tensor.shape, tensor.dtype))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    block = _block(end, pinned)
    packed = Packed(adapter, block, tuple(places))
    factors = packed.factors_in(block)
    for layer, term, field, tensor in _tensors(adapter):
        getattr(terms_of(factors[layer])[term], field).copy_(tensor)
    return replace(packed, adapter=replace(adapter, layers=factors))


def _with(factors: LayerFactors, tensors: Mapping[int, Mapping[str, Tensor]]) -> LayerFactors:
    """The factors with these tensors in place of their own. tensors: number of the term -> its field -> tensor."""
    terms: list[Term] = [replace(term, **tensors[place]) for place, term in enumerate(terms_of(factors))]  # type: ignore[arg-type]
    return together(terms)


def _tensors(adapter: Adapter) -> Iterator[tuple[str, int, str, Tensor]]:
    for layer, factors in adapter.layers.items():
        for place, term in enumerate(terms_of(factors)):
            for field in fields(term):
                value = getattr(term, field.name)
                if isinstance(value, Tensor):
                    yield layer, place, field.name, value


def _block(size: int, pinned: bool) -> Tensor:
    if pinned:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # no more pages can be locked; copies are only slower
            pass
    return torch.empty(size, dtype=torch.uint8)
