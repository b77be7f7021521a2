"""All ways of running one workload, timed in turns and compared with merged weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from studio.bench.speed.bed import Bed, Inputs
from studio.bench.speed.profile import TimeProfile, profiled
from studio.bench.speed.rivals import Peft
from studio.bench.speed.timing import Timing, take_turns
from studio.bench.speed.ways import OpenedWay, SpeedWay, SpeedWays, relative, rounds
from studio.bench.speed.workload import Workload

TOO_LATE = "left out: the time budget was used up"
TOO_LARGE = "left out: the device's memory does not hold it"


@dataclass(frozen=True)
class SpeedOutcome:
    """What became of a way: its timing (seconds of a step), or a note why there is none.

    over_base: its median divided by that of the fastest way without adapters, timed in the same turns (peft's ways are
        timed before that); None without such a way.
    difference: of its predictions from those of weights merged for each picture, relative; None where not compared.
    ready: seconds until it could run (with compilation and graph capture).
    profile: where a step's time goes; None where it was not asked for.
    """

    way: SpeedWay
    timing: Timing | None
    over_base: float | None = None
    difference: float | None = None
    ready: float = 0.0
    note: str = ""
    profile: TimeProfile | None = None


@dataclass(frozen=True)
class Measured:
    """One workload on one model. noise: how far the base's predictions move when its batch is split into pairs."""

    model: str
    workload: Workload
    dtype: str
    outcomes: tuple[SpeedOutcome, ...]
    noise: float | None
    peak_bytes: int

    def fastest(self, fits: Callable[[SpeedWay], bool]) -> SpeedOutcome | None:
        """The fastest of the timed ways for which `fits` is true; None where there is none."""
        timed = [outcome for outcome in self.outcomes if outcome.timing and fits(outcome.way)]
        return min(timed, key=lambda outcome: outcome.timing.median if outcome.timing else 0.0, default=None)


class Budget:
    """Seconds that a run may take in all."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


class Bench:
    """Times workloads on one bed. peft's adapters, which take long to make, are made once.

    profile: whether to profile every way but peft's after it was timed.
    """

    def __init__(
        self, bed: Bed, budget: Budget, tell: Callable[[str], None], *, profile: bool = False
    ) -> None:
        self.bed = bed
        self._budget = budget
        self._tell = tell
        self._profile = profile
        self._peft: Peft | None = None

    @torch.inference_mode()
    def measure(
        self, workload: Workload, asked: Sequence[SpeedWay], repeats: int, *, compare: bool = True
    ) -> Measured:
        """Measures a workload in all these ways. Ways that do not apply, do not fit into memory, or come too late for
        the budget get a note.

        On a GPU, only one way at a time is open, in turns with the fastest way without adapters; elsewhere, all are
        open.
        """
        cuda = self.bed.device.type == "cuda"
        self.bed.hold(workload.adapters)
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.bed.device)
        ways = SpeedWays(self.bed, workload, self.peft)
        known = {way: SpeedOutcome(way, None, note=ways.why_not(way)) for way in asked}
        truth: Tensor | None = None
        noise: float | None = None
        if compare and ways.comparable and self._budget.left > 0:
            truth, noise = ways.truth(), ways.noise()
        anchor: tuple[SpeedWay, OpenedWay] | None = None
        for together in rounds([way for way in asked if not known[way].note], together=not cuda):
            opened = self._open(ways, together, known, workload.label)
            found = self._timed(opened, anchor, truth, repeats)
            for outcome in found:
                if outcome.timing:
                    self._tell(f"{outcome.way.label}: {1000 * outcome.timing.median:.2f} ms a step")
            known |= {outcome.way: outcome for outcome in found}
            if anchor is None:
                base = [o for o in found if o.way.kind == "base" and o.timing]
                best = min(base, key=lambda o: o.timing.median if o.timing else 0.0, default=None)
                anchor = (best.way, opened[best.way]) if best else None
            del opened
            if cuda:
                gc.collect()
                torch.cuda.empty_cache()
        if anchor:
            least = known[anchor[0]].timing
            known = {way: _against(outcome, least) for way, outcome in known.items()}
        peak = torch.cuda.max_memory_allocated(self.bed.device) if cuda else 0
        dtype = str(self.bed.dtype).removeprefix("torch.")
        return Measured(self.bed.model, workload, dtype, tuple(known.values()), noise, peak)

    def peft(self, inputs: Inputs) -> Peft:
        """peft's model with all present adapters of the bed."""
        if self._peft is None or len(self._peft.add_seconds) < len(self.bed.adapters):
            self._tell(f"giving peft {len(self.bed.adapters)} adapters")
            self._peft = None
            self._peft = Peft(self.bed, inputs)
        self._peft.use_inputs(inputs)
        return self._peft

    def _open(
        self, ways: SpeedWays, together: Sequence[SpeedWay], known: dict[SpeedWay, SpeedOutcome], label: str
    ) -> dict[SpeedWay, OpenedWay]:
        """Opens the ways that can be opened. For the others, `known` gets the reason."""
        opened: dict[SpeedWay, OpenedWay] = {}
        for way in together:
            if self._budget.left < 0:
                known[way] = SpeedOutcome(way, None, note=TOO_LATE)
                continue
            self._tell(f"{label}: {way.label}")
            try:
                opened[way] = ways.open(way)
            except torch.OutOfMemoryError:
                known[way] = SpeedOutcome(way, None, note=TOO_LARGE)
                torch.cuda.empty_cache()
        return opened

    def _timed(
        self,
        opened: dict[SpeedWay, OpenedWay],
        anchor: tuple[SpeedWay, OpenedWay] | None,
        truth: Tensor | None,
        repeats: int,
    ) -> list[SpeedOutcome]:
        """Times open ways in turns with the anchor, or with the fastest way without adapters among them."""
        calls = {way: each.call for way, each in opened.items()}
        if anchor:
            calls[anchor[0]] = anchor[1].call
        turns = take_turns(calls, self.bed.device, repeats)
        timings = {
            way: Timing(tuple(seconds / each.steps + each.extra for seconds in turns[way].seconds))
            for way, each in opened.items()
        }
        bases = [turns[anchor[0]]] if anchor else [turns[way] for way in opened if way.kind == "base"]
        least = min((timing.median for timing in bases), default=None)
        outcomes = []
        for way, each in opened.items():
            compared = truth is not None and way.kind not in ("base", "fused")
            outcomes.append(
                SpeedOutcome(
                    way,
                    timings[way],
                    timings[way].median / least if least else None,
                    relative(each.call(), truth) if truth is not None and compared else None,
                    each.ready,
                    each.note,
                    profiled(each.call, each.steps, self.bed.device)
                    if self._profile and not way.kind.startswith("peft")  # a hundred thousand launches
                    else None,
                )
            )
        return outcomes


def _against(outcome: SpeedOutcome, base: Timing | None) -> SpeedOutcome:
    """The outcome with its ratio to the base, if the base was not timed in the same turns."""
    if outcome.over_base is not None or outcome.timing is None or base is None:
        return outcome
    return replace(outcome, over_base=outcome.timing.median / base.median)
