"""The layers of one component, in the order in which the bank packs them.

A unit is a group of layers that read the same input, or a single layer. Units of one kind, input width and number of
layers form a `Stack`. Layers of one kind and output width form an `Outs`. So one indexed copy gathers the factors of
all layers in a `Stack` or an `Outs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from pipelines.engine.products.attention import join_attention
from pipelines.engine.products.layers import LaneConv2d, LaneLayer, LaneNorm, Slot, wrap, wrap_norm
from pipelines.families.unet import level_of

LayerKind = Literal["attention", "text", "linear", "conv"]
"""attention: the projections of attention layers, without those of "text". text: the projections of cross-attention to
keys and values. linear: all other linear layers. conv: convolutions."""
LAYER_KINDS: tuple[LayerKind, ...] = ("attention", "text", "linear", "conv")
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stack:
    """Units whose inputs are equally wide. width: of the inputs. layers: [units, layers in a unit], places in
    `Table.layers`."""

    kind: LayerKind
    width: int
    layers: Places


@dataclass(frozen=True)
class Outs:
    """Layers whose outputs are equally wide. width: of the outputs. layers: [layers], places in `Table.layers`."""

    kind: LayerKind
    width: int
    layers: Places


class Table:
    """Turns the layers of a component into lane layers, in place, and lists them.

    A layer's place is its number in `names`, `layers`, `kinds` and `levels`; place: name -> that number.
    attention: name -> attention layer with a LaneAttention. texts: the cross-attention layers among these.
    levels: how often a layer's input has been halved; None where it has no positions (embeddings of the timestep).
    sizes: kind -> (level, input width, output width) -> how many layers there are.
    norms: name -> lane layer, for the norms that an adapter has changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.attention: dict[str, Any] = join_attention(model)
        self.texts = {name: layer for name, layer in self.attention.items() if layer.is_cross_attention}
        wrapped = wrap(model)
        self.names: tuple[str, ...] = tuple(wrapped)
        self.layers: tuple[LaneLayer, ...] = tuple(wrapped.values())
        self.place: Mapping[str, int] = {name: place for place, name in enumerate(self.names)}
        self.kinds: tuple[LayerKind, ...] = tuple(self._kind(name) for name in self.names)
        self.of_kind: Mapping[LayerKind, Places] = {
            kind: np.array([place for place, own in enumerate(self.kinds) if own == kind], np.int64)
            for kind in LAYER_KINDS
        }
        self.levels: tuple[int | None, ...] = tuple(level_of(name, model) for name in self.names)
        self.sizes: Mapping[LayerKind, Counter[tuple[int | None, int, int]]] = {
            kind: Counter(
                (self.levels[place], self.in_width(place), self.out_width(place)) for place in places
            )
            for kind, places in self.of_kind.items()
        }
        self.norms: dict[str, LaneNorm] = {}
        self._model = model
        self._running: dict[tuple[str, ...], npt.NDArray[np.bool_]] = {}
        self.stacks, self.outs = self._stacks(), self._outs()

    def running(self, modules: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """[layers] bool: the layers in these parts of the component, given by dotted names; "" is all of it."""
        if modules not in self._running:
            parts = tuple(f"{part}." if part else "" for part in modules)
            self._running[modules] = np.array([f"{name}.".startswith(parts) for name in self.names], bool)
        return self._running[modules]

    def norm(self, name: str) -> LaneNorm:
        """The norm of that name, as a lane layer from now on."""
        if name not in self.norms:
            self.norms[name] = wrap_norm(self._model.get_submodule(name))
        return self.norms[name]

    @property
    def slots(self) -> Iterator[Slot]:
        """The slots of all lane layers."""
        for layer in (*self.layers, *self.norms.values()):
            yield layer.slot

    @property
    def widths(self) -> set[int]:
        """The widths of all inputs and outputs."""
        return {part.width for part in self.stacks} | {part.width for part in self.outs}

    def in_width(self, place: int) -> int:
        return self.layers[place].weight[0].numel()

    def out_width(self, place: int) -> int:
        return self.layers[place].weight.shape[0]

    def _kind(self, name: str) -> LayerKind:
        if isinstance(self.layers[self.place[name]], LaneConv2d):
            return "conv"
        owner, _, own = name.rpartition(".")
        if owner in self.texts and own in ("to_k", "to_v"):
            return "text"
        within = (owner, owner.rpartition(".")[0])  # to_out is a list inside the attention layer
        return "attention" if any(part in self.attention for part in within) else "linear"

    def _units(self) -> list[tuple[int, ...]]:
        """The places of the layers of each unit."""
        units: list[tuple[int, ...]] = []
        for name, layer in self.attention.items():
            members = ("to_k", "to_v") if layer.is_cross_attention else ("to_q", "to_k", "to_v")
            places = tuple(self.place[f"{name}.{own}"] for own in members if f"{name}.{own}" in self.place)
            if len(places) == len(members) and len({self.out_width(place) for place in places}) == 1:
                units.append(places)
        joined = {place for unit in units for place in unit}
        return units + [(place,) for place in range(len(self.layers)) if place not in joined]

    def _stacks(self) -> tuple[Stack, ...]:
        found: dict[tuple[LayerKind, int, int], list[tuple[int, ...]]] = {}
        for unit in self._units():
            found.setdefault((self.kinds[unit[0]], self.in_width(unit[0]), len(unit)), []).append(unit)
        return tuple(
            Stack(kind, width, np.array(units, np.int64)) for (kind, width, _), units in found.items()
        )

    def _outs(self) -> tuple[Outs, ...]:
        found: dict[tuple[LayerKind, int], list[int]] = {}
        for place, kind in enumerate(self.kinds):
            found.setdefault((kind, self.out_width(place)), []).append(place)
        return tuple(Outs(kind, width, np.array(places, np.int64)) for (kind, width), places in found.items())
