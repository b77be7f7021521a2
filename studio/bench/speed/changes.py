"""Measures what changes cost: random changes of mix, strength, method and adapter in a row, and each kind alone."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from composers import Mix, Use, build
from pipelines.adapters import Adapter
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import FormChoice
from studio.bench.speed.bed import Bed, Inputs, random_adapter
from studio.bench.speed.ours import CALLS_TO_WARM, Ours
from studio.bench.speed.rivals import Mode, cut
from studio.bench.speed.run import Bench
from studio.bench.speed.timing import now, seconds_of
from studio.bench.speed.ways import relative
from studio.bench.speed.workload import Workload, WorkloadRow, steps_of

METHODS = ("merge", "switch", "composite")
MOST_MEMBERS = 3
RESIDENT = 8
"""Adapters in the bank while it changes."""
COMPARED_EVERY = 20


@dataclass(frozen=True)
class Changes:
    """What `count` random changes did after a warm-up. replays: steps that replayed a recording.

    bytes_early, bytes_late: the most device memory (0 on a CPU) that tensors took after a change in the first and in
    the second half, without its predictions.
    worst: largest relative difference from merged weights among the pictures that were compared.
    """

    count: int
    adapters_changed: int
    recompiles: int
    captures: int
    replays: int
    bytes_early: int
    bytes_late: int
    worst: float
    median_seconds: float

    @property
    def text(self) -> str:
        grown = (self.bytes_late - self.bytes_early) / 2**20
        return (
            f"{self.count} random changes, {self.adapters_changed} of them of an adapter too: {self.recompiles} "
            f"recompilations, {self.captures} captures, {self.replays} replays, device memory {grown:+.1f} MiB, "
            f"largest difference to merged weights {self.worst:.1e}, {1000 * self.median_seconds:.1f} ms a step"
        )


@torch.inference_mode()
def random_changes(bed: Bed, count: int, images: int, cells: int, form: FormChoice, mode: Mode) -> Changes:
    """Makes random changes. Each gives all pictures new mixes, strengths and a method; every fourth also exchanges an
    adapter."""
    bed.hold(RESIDENT)
    resident = dict(list(bed.adapters.items())[:RESIDENT])
    spare = [
        random_adapter(bed.unet, RESIDENT + index, bed.layers, bed.rank) for index in range(len(resident))
    ]
    ours = Ours(bed, form, mode, adapters=resident.values())
    inputs = Inputs(bed.unet, images, cells)
    numbers = random.Random("changes")
    exchanged = 0
    worst = 0.0
    seconds: list[float] = []
    taken: list[int] = []
    _warm_up(ours, inputs, images, list(resident))
    compiled = recompilations()
    captured, replayed = ours.engine.stats.captures, ours.engine.stats.replays
    for change in range(count):
        if change % 4 == 3:
            _exchange(ours, resident, spare, numbers)
            exchanged += 1
        rows = _random_rows(numbers, images, list(resident))
        began = now(bed.device)
        found = ours.run([rows], inputs)()
        seconds.append(now(bed.device) - began)
        assert bool(found.isfinite().all())
        if change % COMPARED_EVERY == 0:
            first = numbers.randrange(len(rows) // 2) * 2
            worst = max(worst, _difference(bed, resident, rows, first, inputs, found))
        del found  # their size depends on the method
        taken.append(_bytes(bed.device))
    return Changes(
        count,
        exchanged,
        recompilations() - compiled,
        ours.engine.stats.captures - captured,
        ours.engine.stats.replays - replayed,
        max(taken[: (count + 1) // 2]),
        max(taken[count // 2 :]),
        worst,
        statistics.median(seconds),
    )


def recompilations() -> int:
    """How many graphs torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _warm_up(ours: Ours, inputs: Inputs, images: int, names: Sequence[str]) -> None:
    """Runs every number of rows, and every rank of a mix, that will come, once."""
    for members, method in itertools.product(range(1, MOST_MEMBERS + 1), ("composite", "merge")):
        mix = Mix(tuple(Use(name) for name in names[:members]))
        run = ours.run([_rows(method, [mix] * images)], inputs)
        for _ in range(CALLS_TO_WARM):
            run()


def _random_rows(numbers: random.Random, images: int, names: Sequence[str]) -> tuple[WorkloadRow, ...]:
    """New mixes of as many members for all pictures, by one method, at a random step of its run."""
    members = numbers.randint(1, MOST_MEMBERS)
    mixes = [
        Mix(tuple(Use(name, numbers.uniform(-0.5, 1.2)) for name in numbers.sample(list(names), members)))
        for _ in range(images)
    ]
    return _rows(numbers.choice(METHODS), mixes, numbers)


def _rows(method: str, mixes: Sequence[Mix], numbers: random.Random | None = None) -> tuple[WorkloadRow, ...]:
    settings: dict[str, object] = {"interval": 1} if method == "switch" else {}
    steps = steps_of(build(method, settings), MOST_MEMBERS, mixes)
    return numbers.choice(steps) if numbers else steps[0]


def _exchange(ours: Ours, resident: dict[str, Adapter], spare: list[Adapter], numbers: random.Random) -> None:
    gone = resident.pop(numbers.choice(list(resident)))
    ours.bank.unload(gone.name)
    come = spare.pop(0)
    ours.bank.load(come)
    resident[come.name] = come
    spare.append(gone)


def _difference(
    bed: Bed,
    resident: dict[str, Adapter],
    rows: Sequence[WorkloadRow],
    first: int,
    inputs: Inputs,
    found: Tensor,
) -> float:
    """The relative difference of the pair of rows that begins at `first` from the same pair with merged weights."""
    pair = slice(first, first + 2)
    twin = merged(bed.unet, "unet", resident, rows[first].uses)
    return relative(found[pair], twin(**cut(inputs.of(rows), pair), return_dict=False)[0])


def _bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of one change. Ours: of all pictures' mixes at once; peft's: of one picture's."""

    mix_change: float
    adapter_load: float
    adapter_unload: float
    peft_set_adapters: float
    peft_fuse: float
    peft_add_adapter: float

    @property
    def text(self) -> str:
        return (
            f"one change, in ms: all mixes {self.mix_change:.1f}, an adapter in {self.adapter_load:.1f} and out "
            f"{self.adapter_unload:.1f}; peft, one picture's mix: set_adapters {self.peft_set_adapters:.1f}, fuse and "
            f"unfuse {self.peft_fuse:.1f}, add_adapter {self.peft_add_adapter:.1f}"
        )


@torch.inference_mode()
def latencies(bench: Bench, workload: Workload, mode: Mode, repeats: int) -> Latencies:
    """Measures each kind of change. mix_change: the time of a step with new mixes, minus that of a step with the old
    ones. fuse: includes unfusing."""
    bed = bench.bed
    bed.hold(workload.adapters)
    inputs = Inputs(bed.unet, workload.images, workload.cells)
    peft = bench.peft(inputs)
    ours = Ours(bed, "lane-packed", mode)
    known, new, load, unload = [], [], [], []
    for turn in range(repeats + 1):
        run = ours.run(workload.steps(turn), inputs)
        first, again = _seconds(run, bed), _seconds(run, bed)
        if turn:  # the first warms up
            new.append(first)
            known.append(again)
    extra = random_adapter(bed.unet, len(bed.adapters), bed.layers, bed.rank)
    for _ in range(repeats):
        load.append(_seconds(partial(ours.bank.load, extra), bed))
        unload.append(_seconds(partial(ours.bank.unload, extra.name), bed))
    mixes = workload.mixes()
    fuse = [_seconds(partial(peft.fuse, mixes[0].uses), bed) for _ in range(3)]
    switch = [_seconds(partial(peft.set_mix, mix.uses), bed) for mix in mixes]

    def middle(seconds: Sequence[float]) -> float:
        return 1000 * statistics.median(seconds)

    return Latencies(
        middle(new) - middle(known),
        middle(load),
        middle(unload),
        middle(switch),
        middle(fuse),
        middle(peft.add_seconds),
    )


def _seconds(call: Callable[[], object], bed: Bed) -> float:
    return seconds_of(call, bed.device)
