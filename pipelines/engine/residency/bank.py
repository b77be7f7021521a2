"""The bank: the factors of all resident adapters, from which the gates select for each lane.

A call that runs layer by layer switches adapters on by `Bank.active`, which also switches them off again. A recorded
call does so by its `Stage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from composers.plan import Use
from pipelines.adapters.adapter import Adapter
from pipelines.adapters.terms import LayerFactors, LowRank
from pipelines.engine.products import multiplied, reshaped
from pipelines.engine.products.factors import Acting, Form
from pipelines.engine.products.layers import Slot
from pipelines.engine.residency.packing import DensePacking, Packing, Ranks, Reach, Taken
from pipelines.engine.residency.rows import RowPool
from pipelines.engine.residency.table import LAYER_KINDS, LayerKind, Table

FormChoice = Literal["auto", "lane-packed", "pool", "dense"]
Mixes = tuple[tuple[Use, ...], ...]
"""For each row, or for each group of rows, the adapters that act on it."""
Marked = tuple[tuple[Use, ...], tuple[int, ...]]
"""A mix, and the serial numbers of its adapters (see `Bank.marked`)."""


Changed = multiplied.Multiplied | reshaped.Reshaped
"""How the lanes of a call change one layer's own weight and bias."""


@dataclass(frozen=True)
class _Selection:
    """What one call selects: what goes into the layers' slots."""

    rows: Mixes
    acting: tuple[tuple[Slot, Acting], ...]
    own: tuple[tuple[Slot, Changed], ...]

    @property
    def forms(self) -> set[str]:
        return {str(acting.form) for _, acting in self.acting} | {
            "multiplied" if isinstance(own, multiplied.Multiplied) else "reshaped" for _, own in self.own
        }


class Bank:
    """The adapters that are resident on one model's UNet and text encoders.

    components: name -> module. Their layers are turned into lane layers when the bank is made. form: of the per-lane
    product (`products/factors.py`). "auto" takes the pool in calls that run layer by layer, as long as that costs at
    most twice the arithmetic of the lane-packed form, because it gathers nothing; for recorded calls the planner
    chooses.
    """

    def __init__(self, components: Mapping[str, nn.Module], form: FormChoice = "auto") -> None:
        self.form = form
        self.adapters: dict[str, Adapter] = {}
        self.version = 0  # of the set of resident adapters
        self._serials: dict[str, int] = {}  # adapter -> the version that it came with
        self._reshaping: set[str] = set()
        self._shifting: set[str] = set()  # on the UNet
        self.tables: dict[str, Table] = {name: Table(model) for name, model in components.items()}
        # There is a pool for every width, even if it is empty: a stage has buffers for all layers of a kind.
        widths = {width for table in self.tables.values() for width in table.widths}
        self.pools = {width: RowPool(width, self._weight()) for width in sorted(widths)}
        self._reach: dict[tuple[str, str], Reach] = {}  # (component, adapter)
        self._blocks: dict[str, dict[int, tuple[int, int]]] = {}  # adapter -> width -> (first row, rows)
        self._selected: dict[tuple[str, tuple[str, ...], tuple[LayerKind, ...]], _Selection] = {}

    def load(self, adapter: Adapter, factors: Mapping[str, LayerFactors] | None = None) -> None:
        """Make an adapter resident. Raises what torch raises where memory runs out; then nothing has changed.

        All its layers must exist in the model, which the reader has checked. factors: layer -> factors, if they are on
        the device already; None takes the adapter's own.
        """
        assert adapter.name not in self.adapters, adapter.name
        blocks: dict[int, tuple[int, int]] = {}
        try:
            reaches = self._insert(adapter.name, factors or adapter.layers, blocks)
        except BaseException:
            self._withdraw(adapter.name, blocks)
            raise
        for component, reach in reaches.items():
            if reach.rank.any():
                self._reach[component, adapter.name] = self._placed(component, reach, blocks)
        self._blocks[adapter.name] = blocks
        self.adapters[adapter.name] = adapter
        self._serials[adapter.name] = self.version
        if any(own.reshapes for own in adapter.layers.values()):
            self._reshaping.add(adapter.name)
        unet = [(path, own) for path, own in adapter.layers.items() if path.startswith("unet.")]
        if any(own.shift is not None or self._is_norm(path) for path, own in unet):
            self._shifting.add(adapter.name)
        self._changed()

    def unload(self, name: str) -> None:
        """Take an adapter out again. Raises KeyError for one that is not resident."""
        del self.adapters[name], self._serials[name]
        self._reshaping.discard(name)
        self._shifting.discard(name)
        self._withdraw(name, self._blocks.pop(name))
        for component in self.tables:
            self._reach.pop((component, name), None)
        self._changed()

    def to(self, device: torch.device) -> None:
        """Move the factors to the device on which their layers work, in their layers' dtype."""
        like = self._weight().new_empty(0, device=device)
        for pool in self.pools.values():
            pool.to(like)
        for table in self.tables.values():
            for slot in table.slots:
                slot.to(like)
        self._changed()

    @property
    def bytes(self) -> int:
        """Device memory that the factors take."""
        slots = (slot.bytes for table in self.tables.values() for slot in table.slots)
        return sum(pool.used_bytes for pool in self.pools.values()) + sum(slots)

    @contextmanager
    def active(
        self,
        component: str,
        rows: Sequence[tuple[Use, ...]],
        modules: tuple[str, ...] = ("",),
        kinds: tuple[LayerKind, ...] = LAYER_KINDS,
    ) -> Iterator[None]:
        """Within: row i of a batch through `component` runs with the adapters `rows[i]`, at their `weight`.

        modules: the dotted names of the parts that will run, ("",) for all. kinds: the kinds of layers on which the
        adapters act.
        """
        selection = self._selection(component, tuple(rows), modules, kinds)
        try:
            for slot, acting in selection.acting:
                slot.acting = acting
            for slot, own in selection.own:
                slot.own = own
            yield
        finally:
            for slot, _ in selection.acting:
                slot.acting = None
            for slot, _ in selection.own:
                slot.own = None

    def forms(self, component: str, modules: tuple[str, ...] = ("",)) -> tuple[str, ...]:
        """The forms in which `component`, or these parts of it, last ran layer by layer; sorted."""
        found = [
            selection.forms
            for (own, parts, _), selection in self._selected.items()
            if (own, parts) == (component, modules)
        ]
        return tuple(sorted(set().union(*found)))

    def reshapes(self, uses: Sequence[Use]) -> bool:
        """Whether any of these adapters does more than low-rank terms say."""
        return any(use.adapter in self._reshaping for use in uses)

    def shifts(self, uses: Sequence[Use]) -> bool:
        """Whether any of these adapters changes biases or norms of the UNet."""
        return any(use.adapter in self._shifting and use.weight != 0 for use in uses)

    def reshaped_kinds(
        self, component: str, rows: Sequence[tuple[Use, ...]], within: npt.NDArray[np.bool_]
    ) -> frozenset[LayerKind]:
        """The kinds of layers to which these adapters do more than low-rank terms say.

        within: [layers] bool, the layers that will run.
        """
        members = {use.adapter for lane in rows for use in lane if use.weight != 0} & self._reshaping
        table = self.tables[component]
        return frozenset(
            table.kinds[place]
            for place in np.flatnonzero(within)
            if members and members & table.layers[place].slot.standing.keys()
        )

    def marked(self, uses: tuple[Use, ...]) -> Marked:
        """The uses with the serial numbers of their adapters. Equal marks mean equal factors, also after reloading."""
        return uses, tuple(self._serials[use.adapter] for use in uses)

    def reaches(self, component: str) -> Mapping[str, Reach]:
        """Adapter -> the places of its rank rows for this component."""
        return {name: reach for (own, name), reach in self._reach.items() if own == component}

    def choose(self, ranks: Ranks, *, reshaped: bool) -> Form:
        """The form for one kind of layer in a call that runs layer by layer.

        reshaped: whether adapters of the call do more than low-rank terms say, which rules out whole weights.
        """
        if self.form == "dense" and reshaped:
            return "lane-packed"
        if self.form != "auto":
            return self.form
        return "pool" if ranks.pool <= 2 * ranks.lane else "lane-packed"

    def _weight(self) -> Tensor:
        """Some layer's weight; all layers have its dtype."""
        return next(iter(self.tables.values())).layers[0].weight.detach()

    def _insert(
        self, name: str, layers: Mapping[str, LayerFactors], blocks: dict[int, tuple[int, int]]
    ) -> dict[str, Reach]:
        """Put the factors into the pools and slots. Each pool's block is noted in `blocks` as soon as it is taken.

        Returns, for each component, its layers' ranks and the places of their rows within the blocks.
        """
        rows: dict[int, list[Tensor]] = {}
        counts: dict[int, int] = {}

        def add(width: int, tensor: Tensor) -> int:
            first = counts.get(width, 0)
            rows.setdefault(width, []).append(tensor)
            counts[width] = first + len(tensor)
            return first

        reaches: dict[str, Reach] = {}
        for component, table in self.tables.items():
            reaches[component] = Reach(*(np.zeros(len(table.layers), np.int64) for _ in range(3)))
        for path, own in layers.items():
            component, _, module = path.partition(".")
            table = self.tables[component]
            if self._is_norm(path):
                table.norm(module).slot.insert(name, own, table.norm(module).weight)
                continue
            place = table.place[module]
            table.layers[place].slot.insert(name, own, table.layers[place].weight)
            if own.low_rank:
                down, up = (torch.cat(parts) for parts in zip(*map(_rows, own.low_rank), strict=True))
                reach = reaches[component]
                reach.down[place] = add(table.in_width(place), down)
                reach.up[place] = add(table.out_width(place), up)
                reach.rank[place] = len(down)
        for width, parts in rows.items():
            first = self.pools[width].insert(torch.cat([part.float() for part in parts]))
            blocks[width] = (first, counts[width])
        return reaches

    def _withdraw(self, name: str, blocks: Mapping[int, tuple[int, int]]) -> None:
        """Remove an adapter's factors from the pools and slots."""
        for width, (first, count) in blocks.items():
            self.pools[width].remove(first, count)
        for table in self.tables.values():
            for slot in table.slots:
                slot.remove(name)

    def _is_norm(self, path: str) -> bool:
        component, _, module = path.partition(".")
        return module not in self.tables[component].place

    def _placed(self, component: str, reach: Reach, blocks: Mapping[int, tuple[int, int]]) -> Reach:
        """The reach with its rows counted from the start of the pools, not of the blocks. Changed in place."""
        table = self.tables[component]
        for place in map(int, np.flatnonzero(reach.rank)):
            reach.down[place] += blocks[table.in_width(place)][0]
            reach.up[place] += blocks[table.out_width(place)][0]
        return reach

    def _changed(self) -> None:
        self.version += 1
        self._selected.clear()

    def _selection(
        self, component: str, rows: Mixes, modules: tuple[str, ...], kinds: tuple[LayerKind, ...]
    ) -> _Selection:
        """What `rows` select. It is built anew only if they differ from those of the last call of the same parts."""
        last = self._selected.get((component, modules, kinds))
        if last is not None and last.rows == rows:
            return last
        missing = {use.adapter for lane in rows for use in lane} - self.adapters.keys()
        assert not missing, f"{missing} are not resident"
        table = self.tables[component]
        groups = grouped(rows)
        within = table.running(modules)
        reaches = self.reaches(component)
        reshaping = any(map(self.reshapes, rows))
        acting: dict[int, Acting] = {}
        for kind in kinds:
            taken = Taken(table, kind, groups, reaches, within)
            form = self.choose(taken.ranks, reshaped=reshaping)
            draft = taken.draft(form)
            if draft is None or not draft.covered.any():
                continue
            like = next(iter(self.pools.values())).rows  # where the layers work, even while they rest
            packing: Packing | DensePacking
            if form == "dense":
                packing = DensePacking(table, kind, groups=len(groups), layers=draft.covered, like=like)
            else:
                packing = Packing(
                    table, kind, form, groups=len(groups), rank=draft.rank, layers=draft.covered, like=like
                )
            packing.fill(self.pools, draft)
            acting |= packing.acting
        selection = _Selection(
            rows,
            tuple((table.layers[place].slot, own) for place, own in acting.items()),
            tuple(self._own(table, rows, within, kinds)),
        )
        self._selected[component, modules, kinds] = selection
        return selection

    def _own(
        self, table: Table, rows: Mixes, within: npt.NDArray[np.bool_], kinds: tuple[LayerKind, ...]
    ) -> Iterator[tuple[Slot, Changed]]:
        """How the rows change the layers' own weights and biases."""
        members = {use.adapter for lane in rows for use in lane} & self._reshaping
        if not members:
            return
        slots = [
            (table.names[place], table.layers[place].slot)
            for place in np.flatnonzero(within)
            if table.kinds[place] in kinds
        ]
        if "linear" in kinds:
            slots += [(name, norm.slot) for name, norm in table.norms.items()]
        for name, slot in slots:
            mine = {adapter: own for adapter, own in slot.standing.items() if adapter in members}
            found = _changed(mine, multiplied.strengths(rows, name)) if mine else None
            if found is not None:
                yield slot, found


def _changed(standing: Mapping[str, reshaped.Standing], strengths: multiplied.Strengths) -> Changed | None:
    """What the lanes need on one layer; None where no lane has anything."""
    if all(own.multiplies_only for own in standing.values()):
        rows = {adapter: own.rows for adapter, own in standing.items() if own.rows is not None}
        return multiplied.gather(rows, strengths)
    return reshaped.gather(standing, strengths)


def grouped(rows: Sequence[tuple[Use, ...]]) -> Mixes:
    """The mixes of the rows: one for all rows if they are equal, else one a pair if all pairs are, else one a row."""
    for size in (len(rows), 2):
        if (
            size
            and len(rows) % size == 0
            and all(row == rows[place - place % size] for place, row in enumerate(rows))
        ):
            return tuple(rows[::size])
    return tuple(rows)


def _rows(factors: LowRank) -> tuple[Tensor, Tensor]:
    """`down` as [rank, in * kernel], and `up` as [rank, out] with the scale multiplied in; both float32."""
    return factors.down.flatten(1).float(), (factors.up.flatten(1).float() * factors.scale).T
