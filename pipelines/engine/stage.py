"""A stage: static buffers for the UNet calls of one bucket, recorded once and replayed for every mix that fits.

Latents, timesteps, text keys and values, factors and gates are buffers that every call overwrites. The buffers may have
more rows than a call; the results of these are dropped. So only another bucket needs another recording; a new mix,
strength, method or adapter does not. Text keys and values have a recording of their own. It is replayed for all rows
whenever the text or the mix of any row is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composers.plan import Use
from pipelines.engine.products.attention import RowText
from pipelines.engine.products.factors import Acting, Form
from pipelines.engine.products.graphs import Recorder, Recording
from pipelines.engine.products.layers import together
from pipelines.engine.residency.bank import Bank, Marked, Mixes
from pipelines.engine.residency.packing import DensePacking, Packing, Taken
from pipelines.engine.residency.table import LayerKind
from pipelines.engine.unet_call import UNetCall, UNetOutput, forward
from pipelines.families.family import Cut
from pipelines.families.unet import shallow_modules
from pipelines.pace import moved


@dataclass(frozen=True)
class KindForm:
    """The form of one kind of layer. rank: the rank that its buffers have room for; 0 for dense."""

    kind: LayerKind
    form: Form
    rank: int


@dataclass(frozen=True)
class Bucket:
    """The calls that one recording serves.

    shape: [channels, h, w] of the latents. rows: the most that a call may have. group: how many neighbouring rows share
    a mix. tokens: of the text. masked: whether the text has a mask. cut, leaves: as in `UNetCall`.
    forms: one for each kind of layer that adapters change. texts_reshaped: adapters do more
    than low-rank terms say to the weights that make text keys and values, whose computation is then not recorded.
    """

    shape: tuple[int, ...]
    rows: int
    group: int
    tokens: int
    masked: bool
    cut: Cut | None
    leaves: tuple[Cut, ...]
    forms: tuple[KindForm, ...]
    texts_reshaped: bool = False

    @property
    def groups(self) -> int:
        return self.rows // self.group


def room_for_rows(rows: int, group: int) -> int:
    """Rows of the bucket for a call of `rows` rows: 1, or the next multiple of 2 (up to 16 rows), 4 (up to 32) or 8.

    The multiple is `group`, the rows that share a mix, where that is larger.
    """
    step = max(group, 2 if rows <= 16 else 4 if rows <= 32 else 8)
    return rows if rows == 1 else -(-rows // step) * step


def room_for_rank(rank: int) -> int:
    """Rank of the bucket for a mix of rank `rank`: the next multiple of 16 (up to 64), 32 (up to 256) or 128."""
    step = 16 if rank <= 64 else 32 if rank <= 256 else 128
    return -(-rank // step) * step


class Stage:
    """The buffers and recordings of one bucket. like: a call of it, whose tensors show dtypes and sizes.

    text_rows: how many rows' text keys and values were computed so far. Making a stage, and running it, raises what
    torch raises where memory runs out.
    """

    def __init__(self, unet: Any, bank: Bank, bucket: Bucket, like: UNetCall) -> None:
        self.bucket = bucket
        self._unet, self._bank, self._table = unet, bank, bank.tables["unet"]
        self._modules = shallow_modules(unet, bucket.cut) if bucket.cut else ("",)
        self._running = self._table.running(self._modules)
        inputs = {
            name: tensor.new_zeros((bucket.rows, *tensor.shape[1:]))
            for name, tensor in like.tensors().items()
        }
        self._call = like.on(inputs)
        self._inputs = inputs
        layer = self._table.layers[0].weight
        self.packings: dict[LayerKind, Packing | DensePacking] = {}
        for own in bucket.forms:
            self.packings[own.kind] = (
                DensePacking(
                    self._table, own.kind, groups=bucket.groups, layers=self._running, like=layer.detach()
                )
                if own.form == "dense"
                else Packing(
                    self._table,
                    own.kind,
                    own.form,
                    groups=bucket.groups,
                    rank=own.rank,
                    layers=self._running,
                    like=layer.detach(),
                )
            )
        texts = {name: attn for name, attn in self._table.texts.items() if self._runs(f"{name}.to_k")}
        self._kept = {
            name: (
                layer.new_zeros((bucket.rows, bucket.tokens, attn.to_k.out_features)),
                layer.new_zeros((bucket.rows, bucket.tokens, attn.to_v.out_features)),
            )
            for name, attn in texts.items()
        }
        self.text_rows = 0
        # For each row, whose keys and values are kept. None where that is not known.
        self._texts: list[RowText | None] | None = None
        self._seats: list[Marked | None] = [None] * bucket.groups
        self._rehearsed = False
        self._recording: Recording[UNetOutput] | None = None
        self._texts_recording: Recording[None] | None = None

    @property
    def bytes(self) -> int:
        """The size of the buffers."""
        kept = sum(key.nbytes + value.nbytes for key, value in self._kept.values())
        packed = sum(packing.bytes for packing in self.packings.values())
        return kept + packed + sum(tensor.nbytes for tensor in self._inputs.values())

    @property
    def recorded(self) -> bool:
        return self._recording is not None

    def run(self, call: UNetCall, groups: Mixes, recorder: Recorder) -> UNetOutput:
        """Run a call of this bucket. groups: the mix of each of its groups.

        The first call runs on the buffers without a recording. At the second the recording is made. So nothing is
        recorded that is needed only once. The results are the same with a recording and without.
        """
        places = self._place(groups)
        rows = [place * self.bucket.group + row for place in places for row in range(self.bucket.group)]
        straight = rows == list(range(len(rows)))
        index = None if straight else moved(torch.tensor(rows), call.latents.device)
        for name, tensor in call.tensors().items():
            buffer = self._inputs[name]
            if index is None:
                buffer[: len(rows)].copy_(tensor, non_blocking=True)
            else:
                buffer.index_copy_(0, index, tensor.to(buffer))
        if self._rehearsed and self._recording is None:
            if not self.bucket.texts_reshaped:
                self._texts_recording = recorder.record(self._write_texts)
            self._recording = recorder.record(self._forward)
        self._renew_texts(call, rows)
        found = self._recording.replay() if self._recording is not None else self._forward()
        self._rehearsed = True

        def mine(result: Tensor) -> Tensor:
            return result[: len(rows)].clone() if index is None else result[index]

        return UNetOutput(mine(found.prediction), {cut: mine(value) for cut, value in found.features.items()})

    def _place(self, groups: Mixes) -> list[int]:
        """Put the groups' mixes into the buffers, and return the seat of each.

        Where there are whole weights, a mix that already sits somewhere keeps its seat.
        """
        mixes = [self._bank.marked(mix) for mix in groups]
        dense = any(own.form == "dense" for own in self.bucket.forms)
        before = list(self._seats)
        seats = _assigned(before, mixes) if dense else list(range(len(mixes)))
        after: list[Marked | None] = list(before) if dense else [None] * self.bucket.groups
        for seat, mix in zip(seats, mixes, strict=True):
            after[seat] = mix
        if after != before:
            # Memory may run out on the way: until all is written, seats that change count as empty.
            self._seats = [mix if mix == old else None for mix, old in zip(after, before, strict=True)]
            self._fill(before, after)
        self._seats = after
        return seats

    def _fill(self, before: Sequence[Marked | None], after: Sequence[Marked | None]) -> None:
        """Write the factors and weights of all kinds but "text", for the mixes on the seats `after`."""
        changed = [seat for seat, mix in enumerate(after) if mix is not None and mix != before[seat]]
        for kind, packing in self.packings.items():
            if isinstance(packing, DensePacking):
                mixes = [mix[0] for seat in changed if (mix := after[seat]) is not None]
                taken = self._taken(kind, mixes)
                draft = taken.draft("lane-packed", max(taken.ranks.lane, 1))
                assert draft is not None
                reshaping = mixes if any(map(self._bank.reshapes, mixes)) else ()
                packing.fill(self._bank.pools, draft, changed, reshaping)
            elif kind != "text":
                self._pack(kind, packing, [mix[0] if mix else () for mix in after])

    def _pack(self, kind: LayerKind, packing: Packing, mixes: Sequence[tuple[Use, ...]]) -> None:
        draft = self._taken(kind, mixes).draft(packing.form, packing.rank)
        assert draft is not None
        packing.fill(self._bank.pools, draft)

    def _taken(self, kind: LayerKind, mixes: Sequence[tuple[Use, ...]]) -> Taken:
        return Taken(self._table, kind, mixes, self._bank.reaches("unet"), self._running)

    # -- texts -------------------------------------------------------------------------------------------

    def _renew_texts(self, call: UNetCall, rows: Sequence[int]) -> None:
        """Compute the text keys and values anew, unless the buffers have the call's. rows: where its rows sit."""
        packing = self.packings.get("text")
        reached = packing is not None or self.bucket.texts_reshaped
        texts: list[RowText | None] = [None] * self.bucket.rows
        uses: list[tuple[Use, ...]] = [()] * self.bucket.rows
        for row, text, own in zip(rows, call.texts, call.uses, strict=True):
            texts[row], uses[row] = RowText(text, self._bank.marked(own) if reached else None), own
        if texts == self._texts:
            return
        self._texts = None  # not known until all is written
        if isinstance(packing, Packing):
            self._pack("text", packing, uses[:: self.bucket.group])
        if self.bucket.texts_reshaped:
            with self._bank.active("unet", uses, self._modules, ("text",)):
                self._write_texts()
        elif self._texts_recording is not None:
            self._texts_recording.replay()
        else:
            self._write_texts()
        self._texts = texts
        self.text_rows += len(rows)

    def _write_texts(self) -> None:
        """Write the keys and values of the texts in the buffers."""
        with self._acting(("text",)):
            for name, (key, value) in self._kept.items():
                attn = self._table.texts[name]
                new_key, new_value = together([attn.to_k, attn.to_v], self._inputs["text"])
                key.copy_(new_key)
                value.copy_(new_value)

    # -- the call ----------------------------------------------------------------------------------------

    def _forward(self) -> UNetOutput:
        try:
            for name, kept in self._kept.items():
                self._table.texts[name].processor.kept = kept
            with self._acting([kind for kind in self.packings if kind != "text"]):
                return forward(self._unet, self._call)
        finally:
            for name in self._kept:
                self._table.texts[name].processor.kept = None

    def _runs(self, layer: str) -> bool:
        return bool(self._running[self._table.place[layer]])

    @contextmanager
    def _acting(self, kinds: Sequence[LayerKind]) -> Iterator[None]:
        """Within: the layers of these kinds read their factors or weights from this stage's buffers."""
        acting: dict[int, Acting] = {}
        for kind in kinds:
            if kind in self.packings:
                acting |= self.packings[kind].acting
        try:
            for place, own in acting.items():
                self._table.layers[place].slot.acting = own
            yield
        finally:
            for place in acting:
                self._table.layers[place].slot.acting = None


def _assigned(seats: Sequence[Marked | None], groups: Sequence[Marked]) -> list[int]:
    """A seat for each group: one where its mix sits already, its own place if possible, else a free one."""
    free = set(range(len(seats)))
    found: list[int | None] = [None] * len(groups)
    for place, mix in enumerate(groups):
        seat = next(
            (seat for seat in sorted(free, key=lambda seat: seat != place) if seats[seat] == mix), None
        )
        if seat is not None:
            found[place] = seat
            free.remove(seat)
    rest = iter(sorted(free))
    return [next(rest) if seat is None else seat for seat in found]
