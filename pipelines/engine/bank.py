"""The bank: the factors of all resident adapters, and the gates that select from it per lane.

`Bank.active` is the one place where adapters are switched on, and it switches them off again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import nn

from composers.plan import Use
from pipelines.adapters.adapter import Adapter
from pipelines.engine import flora
from pipelines.engine.layers import Factors, Form, LaneLayer, Slot, wrap

FormChoice = Literal["auto", "lane-packed", "pool"]
Rows = tuple[tuple[Use, ...], ...]
Selection = list[tuple[Slot, Factors | None, flora.Multiplied | None]]
Number = TypeVar("Number", int, float)


class Bank:
    """Adapters resident on one model's UNet and text encoders.

    Wraps the components once, when it is made. `form` is the mathematical form of the per-lane
    product: "lane-packed", "pool", or "auto", which pools while that costs at most twice the
    lane-packed arithmetic (two dense products and no gather).
    """

    def __init__(self, components: Mapping[str, nn.Module], form: FormChoice = "auto") -> None:
        self.form = form
        self.adapters: dict[str, Adapter] = {}
        self._layers: dict[str, dict[str, LaneLayer]] = {
            name: wrap(model) for name, model in components.items()
        }
        self._selected: dict[tuple[str, tuple[str, ...]], tuple[Rows, Selection]] = {}

    def load(self, adapter: Adapter) -> None:
        """Make an adapter resident. All its layers exist in the model (the reader has seen to that)."""
        assert adapter.name not in self.adapters, adapter.name
        for path, factors in adapter.layers.items():
            self._layer(path).slot.insert(adapter.name, factors)
        self.adapters[adapter.name] = adapter
        self._selected.clear()

    def unload(self, name: str) -> None:
        """Take an adapter out again; the base weights were never touched."""
        for path in self.adapters.pop(name).layers:
            self._layer(path).slot.remove(name)
        self._selected.clear()

    def to(self, device: torch.device) -> None:
        """Move the factors to the device their layers work on, in their layers' dtype."""
        for layer in self._all_layers():
            layer.slot.to(layer.weight.new_empty(0, device=device))
        self._selected.clear()

    @property
    def bytes(self) -> int:
        """Device memory the factors take."""
        return sum(layer.slot.bytes for layer in self._all_layers())

    @contextmanager
    def active(
        self, component: str, rows: Sequence[tuple[Use, ...]], modules: tuple[str, ...] = ("",)
    ) -> Iterator[None]:
        """Within: batch row i of `component` runs with the adapters `rows[i]`, at their `weight`.

        modules: dotted names of the parts that will run, where that is not all of it.
        """
        selection = self._selection(component, tuple(rows), modules)
        try:
            for slot, factors, multiplied in selection:
                slot.factors, slot.multiplied = factors, multiplied
            yield
        finally:
            for slot, _, _ in selection:
                slot.factors = slot.multiplied = None

    def forms(self, component: str, modules: tuple[str, ...] = ("",)) -> tuple[str, ...]:
        """The forms that the last call of `component`, or of these parts of it, used."""
        _, selection = self._selected.get((component, modules), ((), []))
        forms = {str(factors.form) for _, factors, _ in selection if factors}
        return tuple(sorted(forms | {"multiplied" for _, _, multiplied in selection if multiplied}))

    def _layer(self, path: str) -> LaneLayer:
        component, _, module = path.partition(".")
        return self._layers[component][module]

    def _all_layers(self) -> Iterator[LaneLayer]:
        for layers in self._layers.values():
            yield from layers.values()

    def _selection(self, component: str, rows: Rows, modules: tuple[str, ...]) -> Selection:
        """What `rows` select, built anew only when they are not those of the last call of the same part."""
        last_rows, last = self._selected.get((component, modules), (None, []))
        if rows == last_rows:
            return last
        members = tuple(dict.fromkeys(use.adapter for lane in rows for use in lane))
        confined = [use for use in dict.fromkeys(use for lane in rows for use in lane) if use.blocks]
        shared: dict[object, tuple[Form, torch.Tensor, torch.Tensor] | None] = {}
        selection: Selection = []
        for module, layer in self._layers[component].items():
            if not any(f"{module}.".startswith(f"{part}." if part else "") for part in modules):
                continue
            slot = layer.slot
            spans = {name: slot.spans[name] for name in members if name in slot.spans}
            multiplying = {name: slot.multiplying[name] for name in members if name in slot.multiplying}
            if not (spans or multiplying):
                continue
            # Layers that hold the same spans under the same block factors share index and gate.
            group = (tuple(spans.items()), tuple(use.block_factor(module) for use in confined))
            if group not in shared:
                shared[group] = _gather(self.form, spans, _strengths(rows, module), slot.down)
            gathered = shared[group]
            factors = None
            if gathered is not None:
                form, index, gate = gathered
                factors = Factors(form, slot.down[index], slot.up[index], gate)
            multiplied = flora.gather(multiplying, _strengths(rows, module)) if multiplying else None
            if factors or multiplied:
                selection.append((slot, factors, multiplied))
        self._selected[component, modules] = (rows, selection)
        return selection


def _strengths(rows: Rows, module: str) -> list[list[tuple[str, float]]]:
    """Per lane, its adapters and how strongly they act on a layer."""
    return [[(use.adapter, use.weight * use.block_factor(module)) for use in lane] for lane in rows]


def _gather(
    choice: FormChoice,
    spans: Mapping[str, tuple[int, int]],
    strengths: list[list[tuple[str, float]]],
    like: torch.Tensor,
) -> tuple[Form, torch.Tensor, torch.Tensor] | None:
    """Which bank rows the lanes need and how strongly: (form, index, gate), None where all gates are zero.

    Index is [R] for the pool and [lanes, R] for lane-packed factors (row 0, which is zero, pads); gate
    is [lanes, R] in the dtype and on the device of `like`.
    """
    lanes = [[(name, weight) for name, weight in lane if name in spans and weight != 0] for lane in strengths]
    if not any(lanes):
        return None
    lane_rank = max(sum(spans[name][1] for name, _ in lane) for lane in lanes)
    used = [name for name in spans if any(name == other for lane in lanes for other, _ in lane)]
    pool_rank = sum(spans[name][1] for name in used)
    index: list[int] | list[list[int]]
    if choice == "pool" or (choice == "auto" and pool_rank <= 2 * lane_rank):
        form: Form = "pool"
        index = [row for name in used for row in _span(spans[name])]
        weights = [dict(lane) for lane in lanes]
        gate = [[weight.get(name, 0.0) for name in used for _ in _span(spans[name])] for weight in weights]
    else:
        form = "lane-packed"
        index = [
            _padded([row for name, _ in lane for row in _span(spans[name])], 0, lane_rank) for lane in lanes
        ]
        gate = [
            _padded([weight for name, weight in lane for _ in _span(spans[name])], 0.0, lane_rank)
            for lane in lanes
        ]
    device = like.device
    return form, torch.tensor(index, device=device), torch.tensor(gate, device=device, dtype=like.dtype)


def _span(span: tuple[int, int]) -> range:
    first, rank = span
    return range(first, first + rank)


def _padded(values: list[Number], filler: Number, length: int) -> list[Number]:
    return values + [filler] * (length - len(values))
