"""The factors of mixes of adapters, packed for the layers of one kind.

A `PackingDraft` says which rank rows each group of lanes takes, and which use sets their strength. A `Packing` holds
the buffers from which a call reads them, and fills these in place from the bank's rows. So a change of mix takes a few
indexed copies, however many layers there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from composers.plan import Use
from pipelines.engine.products import multiplied
from pipelines.engine.products.factors import Acting, Dense, Factors, Form
from pipelines.engine.residency.rows import RowPool
from pipelines.engine.residency.table import LayerKind, Places, Table
from pipelines.pace import moved

Numbers = npt.NDArray[np.float32]
Groups = Sequence[tuple[Use, ...]]


@dataclass(frozen=True)
class Reach:
    """Where an adapter's rank rows are, for each layer of a component. All are [layers].

    rank: the adapter's rank, 0 for layers that it leaves alone. down, up: the number of its first row in the pool of
    the layer's input width, and in that of its output width.
    """

    down: Places
    up: Places
    rank: Places

    def rank_in(self, layers: Places) -> int:
        """The highest rank among these layers."""
        return int(self.rank[layers].max(initial=0))


@dataclass(frozen=True)
class PackingDraft:
    """Which rank rows each group takes, for the layers of one kind.

    reaches: number 0 reaches nothing; then those of the adapters that are taken.
    uses: number 0 is None, for strength 0; then the uses that are taken.
    owner, offset: [sets, R], for each row its adapter (a number in `reaches`) and its number among that adapter's rows.
        There is a set for each group with lane-packed factors, and one set for the pool.
    use: [groups, R], for each row the use that sets its strength (a number in `uses`).
    covered: [layers] bool, the layers that any use changes.
    """

    form: Form
    reaches: tuple[Reach, ...]
    uses: tuple[Use | None, ...]
    owner: Places
    offset: Places
    use: Places
    covered: npt.NDArray[np.bool_]

    @property
    def rank(self) -> int:
        return int(self.owner.shape[1])


def block_factors(table: Table, uses: Sequence[Use | None]) -> Numbers:
    """Each use's block factor in each layer, [uses, layers] float32."""
    return np.array(
        [
            [use.block_factor(name) for name in table.names]
            if use and use.blocks
            else [1.0] * len(table.names)
            for use in uses
        ],
        np.float32,
    ).reshape(len(uses), len(table.names))


@dataclass(frozen=True)
class Ranks:
    """What the choice of a form depends on, for the layers of one kind in a call.

    lane: the highest sum of ranks in a group. pool: the sum of the ranks of all adapters in the call. Both are 0 where
    no adapter changes such a layer.
    """

    kind: LayerKind
    groups: int
    lane: int
    pool: int


class Taken:
    """Of each group's uses, those that change layers of one kind."""

    def __init__(
        self,
        table: Table,
        kind: LayerKind,
        groups: Groups,
        reaches: Mapping[str, Reach],
        within: npt.NDArray[np.bool_],
    ) -> None:
        """within: [layers] bool, the layers that will run. reaches: adapter -> its places, for those with factors."""
        self.table, self.kind = table, kind
        layers = table.of_kind[kind]
        self.layers = layers[within[layers]]
        named = {use.adapter for group in groups for use in group} & reaches.keys()
        self._rank = {name: reaches[name].rank_in(self.layers) for name in named}
        self._reaches = reaches
        self.groups = [
            [use for use in group if use.weight != 0 and self._rank.get(use.adapter, 0)] for group in groups
        ]

    @property
    def ranks(self) -> Ranks:
        lane = max((sum(self._rank[use.adapter] for use in group) for group in self.groups), default=0)
        return Ranks(self.kind, len(self.groups), lane, sum(self._rank[name] for name in self._names()))

    def draft(self, form: Form, rank: int | None = None) -> PackingDraft | None:
        """The draft for a form, padded to `rank` if that is given. None where nothing is changed and no rank given."""
        names = self._names()
        uses: list[Use | None] = [None, *dict.fromkeys(use for group in self.groups for use in group)]
        if len(uses) == 1 and rank is None:
            return None
        number = {use: place for place, use in enumerate(uses)}
        adapter = {name: place for place, name in enumerate(names, 1)}
        ranks = self.ranks
        if form == "pool":
            width = rank or ranks.pool
            owner = np.zeros((1, width), np.int64)
            offset = np.zeros((1, width), np.int64)
            chosen = np.zeros((len(self.groups), width), np.int64)
            first = 0
            for name in names:
                span = slice(first, first := first + self._rank[name])
                owner[0, span], offset[0, span] = adapter[name], np.arange(self._rank[name])
                for place, group in enumerate(self.groups):
                    chosen[place, span] = next((number[use] for use in group if use.adapter == name), 0)
        else:
            width = rank or ranks.lane
            owner = np.zeros((len(self.groups), width), np.int64)
            offset, chosen = np.zeros_like(owner), np.zeros_like(owner)
            for place, group in enumerate(self.groups):
                first = 0
                for use in group:
                    span = slice(first, first := first + self._rank[use.adapter])
                    owner[place, span], chosen[place, span] = adapter[use.adapter], number[use]
                    offset[place, span] = np.arange(self._rank[use.adapter])
        nothing = np.zeros(len(self.table.layers), np.int64)
        reaches = (Reach(nothing, nothing, nothing), *(self._reaches[name] for name in names))
        return PackingDraft(form, reaches, tuple(uses), owner, offset, chosen, self._covered(uses))

    def _names(self) -> list[str]:
        return list(dict.fromkeys(use.adapter for group in self.groups for use in group))

    def _covered(self, uses: Sequence[Use | None]) -> npt.NDArray[np.bool_]:
        covered = np.zeros(len(self.table.layers), bool)
        factors = block_factors(self.table, uses)
        for use, factor in zip(uses, factors, strict=True):
            if use is not None:
                covered |= (self._reaches[use.adapter].rank > 0) & (factor != 0)
        mine = np.zeros_like(covered)
        mine[self.layers] = True
        return covered & mine


class _Index:
    """A draft on the device: which rows of the pools the layers take, and how strongly.

    Whatever has an entry for each layer is computed on the device.
    """

    def __init__(self, table: Table, draft: PackingDraft, device: torch.device) -> None:
        def there(array: Places | Numbers) -> Tensor:
            return moved(torch.from_numpy(np.ascontiguousarray(array)), device)

        self._starts = {
            up: there(np.stack([reach.up if up else reach.down for reach in draft.reaches]))
            for up in (False, True)
        }  # [adapters, layers]
        self._ranks = there(np.stack([reach.rank for reach in draft.reaches]))
        self._owner, self._offset, self._use = there(draft.owner), there(draft.offset), there(draft.use)
        weights = np.array([use.weight if use else 0.0 for use in draft.uses], np.float32)
        confined = any(use.blocks for use in draft.uses if use)
        self._weights = there(
            weights[:, None] * block_factors(table, draft.uses) if confined else weights[:, None]
        )

    def rows(self, layers: Tensor, *, up: bool) -> Tensor:
        """The rows of the pool that layers [...] take: [..., sets, R]. Row 0, which is zero, where they take none."""
        mine = layers.flatten()
        starts, ranks = self._starts[up][:, mine][self._owner], self._ranks[:, mine][self._owner]
        offset = self._offset[..., None]  # [sets, R, 1]
        found = torch.where(offset < ranks, starts + offset, 0)  # [sets, R, layers]
        return found.permute(2, 0, 1).reshape(*layers.shape, *self._owner.shape)

    def gate(self, layers: Tensor) -> Tensor:
        """Strengths, [layers, groups, R] float32."""
        weights = self._weights[:, layers] if self._weights.shape[1] > 1 else self._weights
        return weights[self._use].permute(2, 0, 1).expand(len(layers), -1, -1)


@dataclass(frozen=True)
class _Piece:
    """One indexed copy: rows of the pool of `width`, for these layers, into `buffer` [rows, width]."""

    width: int
    layers: Tensor
    buffer: Tensor
    gate: Tensor | None = None  # the pool's gates, [layers, groups, R]


class Packing:
    """Buffers of low-rank factors for the layers of one kind. acting: place in the table -> the layer's factors.

    form: "lane-packed" or "pool". rank: of the buffers. layers: [layers] bool, those that get factors; all layers of
    their units get some too. like: shows the device and dtype.
    """

    def __init__(
        self,
        table: Table,
        kind: LayerKind,
        form: Form,
        *,
        groups: int,
        rank: int,
        layers: npt.NDArray[np.bool_],
        like: Tensor,
    ) -> None:
        assert form != "dense"
        self.table, self.form, self.rank, self.groups = table, form, rank, groups
        self.acting: dict[int, Acting] = {}
        self._downs: list[_Piece] = []
        self._ups: list[_Piece] = []
        sets = 1 if form == "pool" else groups
        lead = () if form == "pool" else (groups,)
        stacks: dict[int, tuple[Tensor, int]] = {}

        def placed(places: Places) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(places)).to(like.device)

        for stack in table.stacks:
            units = stack.layers[layers[stack.layers].any(axis=1)] if stack.kind == kind else stack.layers[:0]
            if not units.size:
                continue
            members = units.shape[1]
            buffer = like.new_zeros((len(units), sets, members * rank, stack.width))
            self._downs.append(_Piece(stack.width, placed(units), buffer.view(-1, stack.width)))
            for unit, whole in zip(units, buffer, strict=True):
                whole = whole[0] if form == "pool" else whole
                for place, layer in enumerate(unit):
                    stacks[int(layer)] = (whole, place)
        for outs in table.outs:
            places = np.array([place for place in outs.layers if int(place) in stacks], np.int64)
            if outs.kind != kind or not places.size:
                continue
            buffer = like.new_zeros((len(places), *lead, rank, outs.width))
            gate = like.new_zeros((len(places), groups, rank)) if form == "pool" else None
            self._ups.append(_Piece(outs.width, placed(places), buffer.view(-1, outs.width), gate))
            for order, (layer, up) in enumerate(zip(places, buffer, strict=True)):
                whole, place = stacks[int(layer)]
                down = whole[..., place * rank : (place + 1) * rank, :]
                kernel = table.layers[layer].weight.shape[1:]
                own = None if gate is None else gate[order]
                self.acting[int(layer)] = Factors(down.view(*down.shape[:-1], *kernel), up, own, whole, place)

    @property
    def bytes(self) -> int:
        pieces = (*self._downs, *self._ups)
        return sum(piece.buffer.nbytes + (0 if piece.gate is None else piece.gate.nbytes) for piece in pieces)

    def fill(self, pools: Mapping[int, RowPool], draft: PackingDraft) -> None:
        """Fill the buffers in place with the rows that the draft names. pools: width -> pool.

        The draft must have the rank of the buffers.
        """
        assert draft.rank == self.rank, f"rank {draft.rank} for buffers of {self.rank}"
        device = next(iter(pools.values())).rows.device
        index = _Index(self.table, draft, device)
        for piece in self._downs:
            rows = index.rows(piece.layers, up=False).transpose(1, 2)  # [units, sets, members, R]
            torch.index_select(pools[piece.width].rows, 0, rows.flatten(), out=piece.buffer)
        for piece in self._ups:
            rows = index.rows(piece.layers, up=True)
            torch.index_select(pools[piece.width].rows, 0, rows.flatten(), out=piece.buffer)
            gate = index.gate(piece.layers)
            if piece.gate is None:
                piece.buffer.mul_(gate.reshape(-1, 1).to(piece.buffer))
            else:
                piece.gate.copy_(gate)


class DensePacking:
    """Whole weights for the layers of one kind, one for each group: W times what multiplies it, plus what is added.

    layers, like: as in `Packing`. acting: place in the table -> the layer's weights.
    """

    def __init__(
        self, table: Table, kind: LayerKind, *, groups: int, layers: npt.NDArray[np.bool_], like: Tensor
    ) -> None:
        self.table, self.kind, self.groups = table, kind, groups
        self.form: Form = "dense"
        self.acting: dict[int, Acting] = {}
        for stack in table.stacks:
            units = stack.layers[layers[stack.layers].any(axis=1)] if stack.kind == kind else stack.layers[:0]
            for unit in units:
                out = table.out_width(unit[0])
                whole = like.new_empty((groups, len(unit) * out, stack.width))
                for place, layer in enumerate(unit):
                    weight = whole[:, place * out : (place + 1) * out]
                    kernel = table.layers[layer].weight.shape[1:]
                    self.acting[int(layer)] = Dense(weight.view(*weight.shape[:-1], *kernel), whole, place)

    @property
    def bytes(self) -> int:
        return sum(acting.weight.nbytes for acting in self.acting.values() if isinstance(acting, Dense))

    def fill(
        self,
        pools: Mapping[int, RowPool],
        draft: PackingDraft,
        seats: Sequence[int] | None = None,
        reshaping: Groups = (),
    ) -> None:
        """Make the weights of the draft's groups from the base weights, in place. draft: lane-packed.

        seats: for each group of the draft, which group it is here, ascending; None for all in order. reshaping: the
        groups' uses, if some adapters among them do more than low-rank terms say.
        """
        runs = _runs(range(self.groups) if seats is None else seats)
        like = next(iter(pools.values())).rows
        places = np.array(sorted(self.acting), np.int64)
        layers = np.zeros(len(self.table.layers), bool)
        layers[places] = True
        low_rank = Packing(
            self.table,
            self.kind,
            "lane-packed",
            groups=len(draft.owner),
            rank=draft.rank,
            layers=layers,
            like=like,
        )
        low_rank.fill(pools, draft)
        for place, acting in self.acting.items():
            factors = low_rank.acting[place]
            assert isinstance(factors, Factors)
            assert isinstance(acting, Dense)
            base = self.table.layers[place].weight.flatten(1)  # [out, in * kh * kw]
            down, up, mine = factors.down.flatten(2), factors.up.mT, acting.weight.flatten(2)
            scales, deltas = self._scales(place, reshaping), self._deltas(place, reshaping)
            for orders, own in runs:  # one product for all groups that sit side by side
                start = base.expand_as(mine[own])
                if scales is not None:
                    torch.mul(self.table.layers[place].weight, scales[orders], out=acting.weight[own])
                    start = mine[own]
                torch.baddbmm(start, up[orders], down[orders], out=mine[own])
                for delta, strengths in deltas:
                    mine[own].add_(delta.flatten(1) * strengths[orders, None, None])

    def _scales(self, place: int, groups: Groups) -> Tensor | None:
        """The factors that multiply a layer's weight, [groups, out, in(, 1, 1)]; None without any."""
        layer = self.table.layers[place]
        standing = layer.slot.standing.items()
        rows = {adapter: own.rows for adapter, own in standing if own.rows is not None}
        scales = multiplied.scales(rows, multiplied.strengths(groups, self.table.names[place]))
        return None if scales is None else scales.view(*scales.shape, *(1,) * (layer.weight.ndim - 2))

    def _deltas(self, place: int, groups: Groups) -> list[tuple[Tensor, Tensor]]:
        """(change, its strengths [groups] float32) of each adapter that changes a layer's whole weight.

        A strength that were rounded first would affect a whole change alike.
        """
        found = []
        mixes = multiplied.strengths(groups, self.table.names[place])
        for adapter, own in self.table.layers[place].slot.standing.items():
            strengths = [sum(weight for name, weight in mix if name == adapter) for mix in mixes]
            if own.delta is not None and any(strengths):
                found.append((own.delta, moved(torch.tensor(strengths, dtype=torch.float32), own.device)))
        return found


def _runs(seats: Sequence[int]) -> list[tuple[slice, slice]]:
    """Runs of neighbouring seats, each as two slices: (the places in the list, the seats). seats: ascending."""
    found: list[tuple[slice, slice]] = []
    for order, seat in enumerate(seats):
        if found and found[-1][1].stop == seat:
            (orders, own) = found.pop()
            found.append((slice(orders.start, order + 1), slice(own.start, seat + 1)))
        else:
            found.append((slice(order, order + 1), slice(seat, seat + 1)))
    return found
