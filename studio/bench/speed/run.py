"""All ways of running one workload, timed in turns and compared with merged weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipelines.engine.bank import FormChoice
from pipelines.engine.reference import merged
from pipelines.features import cuts_of
from studio.bench.speed.bed import Bed, Inputs
from studio.bench.speed.ours import Ours
from studio.bench.speed.rivals import RUN_STEPS, Base, Mode, Peft, cut, pairs
from studio.bench.speed.timing import Graphs, Timing, seconds_of, take_turns
from studio.bench.speed.workload import Workload

Kind = str
KINDS = ("base", "studio", "fused", "peft set_adapters", "peft adapter_names")


@dataclass(frozen=True)
class Way:
    """One way of doing a workload's steps. form: of the studio's ways."""

    kind: Kind
    mode: Mode
    form: FormChoice | None = None

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.kind, self.form, self.mode)))


@dataclass(frozen=True)
class Outcome:
    """What became of a way: its timing (a step's seconds), or why there is none.

    ready: seconds until it could run (compilation and graph capture included).
    difference: relative distance of its predictions to per-picture merged weights; None where not looked at.
    """

    way: Way
    timing: Timing | None
    ready: float = 0.0
    difference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """One workload on one model. noise: how far the base's predictions move when its batch is split into pairs."""

    model: str
    workload: Workload
    dtype: str
    outcomes: tuple[Outcome, ...]
    noise: float | None
    peak_bytes: int

    def find(self, kind: Kind, mode: Mode, form: FormChoice | None = None) -> Timing | None:
        return next((o.timing for o in self.outcomes if o.way == Way(kind, mode, form)), None)

    def best(self, *ways: tuple[Kind, Mode]) -> Outcome | None:
        """The fastest of these ways, over all forms."""
        timed = [o for o in self.outcomes if o.timing and (o.way.kind, o.way.mode) in ways]
        return min(timed, key=lambda o: o.timing.median if o.timing else 0.0, default=None)


class Budget:
    """Seconds that a run may take in all."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


class Bench:
    """Times workloads on one bed; what is dear to make (peft's adapters, compiled models) is made once."""

    def __init__(self, bed: Bed, budget: Budget, tell: Callable[[str], None]) -> None:
        self.bed = bed
        self._budget = budget
        self._tell = tell
        self._peft: Peft | None = None
        self.cut = cuts_of(bed.unet.config, "deep")[0]

    @torch.inference_mode()
    def measure(
        self, workload: Workload, ways: Sequence[Way], repeats: int, *, compare: bool = True
    ) -> Measured:
        """Ways that do not apply, do not fit into memory or come too late for the budget get a note."""
        device = self.bed.device
        self.bed.hold(workload.adapters)
        doors = _Doors(self, workload)
        opened: dict[Way, _Opened] = {}
        notes: dict[Way, str] = {}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for way in ways:
            notes[way] = doors.why_not(way)
            if not notes[way] and self._budget.left < 0:
                notes[way] = "left out: the time budget was used up"
            if notes[way]:
                continue
            self._tell(f"{workload.label}: {way.label}")
            try:
                opened[way] = doors.open(way)
            except torch.OutOfMemoryError:
                notes[way] = "left out: the device's memory does not hold it"
                torch.cuda.empty_cache()
        timings = take_turns({way: found.call for way, found in opened.items()}, device, repeats)
        differences, noise = doors.differences(opened) if compare else ({}, None)
        outcomes = []
        for way in ways:
            found = opened.get(way)
            timing = None
            if found:
                seconds = timings[way].seconds
                timing = Timing(tuple(value / found.steps + found.extra for value in seconds))
            ready = found.ready if found else 0.0
            outcomes.append(Outcome(way, timing, ready, differences.get(way), notes[way]))
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        dtype = str(self.bed.dtype).removeprefix("torch.")
        return Measured(self.bed.model, workload, dtype, tuple(outcomes), noise, peak)

    def peft(self, inputs: Inputs) -> Peft:
        """peft's model with all adapters that the bed holds now."""
        if self._peft is None or len(self._peft.add_seconds) < len(self.bed.adapters):
            self._tell(f"giving peft {len(self.bed.adapters)} adapters")
            self._peft = None
            self._peft = Peft(self.bed, inputs)
        self._peft.use_inputs(inputs)
        return self._peft


@dataclass(frozen=True)
class _Opened:
    """A way ready to run, warmed up: `steps` steps a call, and seconds to add to each for work done once a run."""

    call: Callable[[], Tensor]
    steps: int
    ready: float
    extra: float


class _Doors:
    """Opens the ways of one workload."""

    def __init__(self, bench: Bench, workload: Workload) -> None:
        self._bench = bench
        self._workload = workload
        self._steps = workload.steps()
        bed = bench.bed
        self._inputs = Inputs(bed.unet, workload.images, workload.cells)
        self._graphs = Graphs() if bed.device.type == "cuda" else None
        self._base = Base(bed, self._inputs, self._graphs)

    def why_not(self, way: Way) -> str:
        """Why a way does not apply here; "" where it does."""
        if way.mode == "graph" and self._graphs is None:
            return "CUDA graphs need a CUDA device"
        if way.kind == "fused" and self._workload.method != "merge":
            return "merged weights serve only a mix that stays the same over the run"
        if way.kind.startswith("peft") and way.mode != "eager":
            return "peft's layers are run as they come"
        return ""

    def open(self, way: Way) -> _Opened:
        device = self._bench.bed.device
        made: list[tuple[Callable[[], Tensor], int]] = []

        def make() -> None:
            made.append(self._made(way))
            made[0][0]()

        ready = seconds_of(make, device)
        call, steps = made[0]
        return _Opened(call, steps, ready, self._fuse_seconds() / RUN_STEPS if way.kind == "fused" else 0.0)

    def _made(self, way: Way) -> tuple[Callable[[], Tensor], int]:
        """The call, and how many steps it does. Without adapters all steps cost the same."""
        bench, rows = self._bench, self._steps[0]
        match way.kind:
            case "base":
                return self._base.together(rows, way.mode), 1
            case "fused":
                return self._base.fused(rows, way.mode), 1
            case "studio":
                return Ours(bench.bed, way.form or "auto", bench.cut).run(self._steps, self._inputs), len(
                    self._steps
                )
            case _:
                peft = bench.peft(self._inputs)
                run = peft.one_by_one if way.kind == "peft set_adapters" else peft.mixed_batch
                calls = [run(rows) for rows in self._steps]
                return lambda: [call() for call in calls][-1], len(calls)

    def _fuse_seconds(self) -> float:
        """Seconds that fusing and unfusing every picture's mix takes once a run."""
        peft = self._bench.peft(self._inputs)
        mixes = [self._steps[0][pair.start].uses for pair in pairs(self._steps[0])]
        peft.fuse(mixes[0])
        return sum(seconds_of(partial(peft.fuse, uses), self._bench.bed.device) for uses in mixes)

    def differences(self, opened: Mapping[Way, _Opened]) -> tuple[dict[Way, float], float | None]:
        """Each way's relative difference to per-picture merged weights on the last step; and the noise: that of the
        base to itself when its batch is split into pairs."""
        rows = self._steps[-1]
        if any(row.shallow for row in rows):
            return {}, None
        bed = self._bench.bed
        whole = self._inputs.of(rows)
        truth = torch.empty_like(whole["sample"])
        for uses in dict.fromkeys(row.uses for row in rows):
            twin = merged(bed.unet, "unet", bed.adapters, uses)  # one at a time: each is a whole model
            for pair in pairs(rows):
                if rows[pair.start].uses == uses:
                    truth[pair] = twin(**cut(whole, pair), return_dict=False)[0]
        apart = {
            way: relative(found.call(), truth)
            for way, found in opened.items()
            if way.kind not in ("base", "fused")
        }
        whole_batch = self._base.together(rows, "eager")()
        return apart, relative(self._base.fused(rows, "eager")(), whole_batch)


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of what was expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())
