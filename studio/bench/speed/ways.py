"""The ways to run one workload. Each is opened (made, captured, warmed up) before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pipelines.engine.engine import cuda_graphs
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import FormChoice
from studio.bench.speed.bed import Bed, Inputs
from studio.bench.speed.ours import CALLS_TO_WARM, Ours
from studio.bench.speed.rivals import RUN_STEPS, Base, Mode, Peft, cut, pairs
from studio.bench.speed.timing import seconds_of
from studio.bench.speed.workload import Workload

Kind = Literal["base", "studio", "fused", "peft set_adapters", "peft adapter_names"]
RIVALS: tuple[Kind, ...] = ("fused", "peft set_adapters", "peft adapter_names")
PeftOf = Callable[[Inputs], Peft]
"""Gives peft's model with all adapters of the bed; the model is made when it is first needed."""


@dataclass(frozen=True)
class SpeedWay:
    """One way to run a workload's steps. form: only for the studio's ways."""

    kind: Kind
    mode: Mode
    form: FormChoice | None = None

    @property
    def label(self) -> str:
        return " ".join(filter(None, (self.kind, self.form, self.mode)))


@dataclass(frozen=True)
class OpenedWay:
    """A way that is ready to run. ready: seconds that this took.

    steps: of one call. extra: seconds added to each step, for work that is done once in a run. note: why it runs
    otherwise than asked.
    """

    call: Callable[[], Tensor]
    steps: int
    ready: float
    extra: float = 0.0
    note: str = ""


class SpeedWays:
    """Opens the ways of one workload on one bed."""

    def __init__(self, bed: Bed, workload: Workload, peft_of: PeftOf) -> None:
        self._bed = bed
        self._workload = workload
        self._peft_of = peft_of
        self._steps = workload.steps()
        self._inputs = Inputs(bed.unet, workload.images, workload.cells)
        self._recorder = cuda_graphs(bed.device)
        self._base = Base(bed, self._inputs, self._recorder)

    def why_not(self, way: SpeedWay) -> str:
        """Why a way cannot be used here; "" if it can."""
        if way.mode == "graph" and self._recorder is None:
            return "CUDA graphs need a CUDA device"
        if way.mode == "kernels" and self._recorder is None:
            return "our kernels need a CUDA device"
        if way.mode == "kernels" and way.kind == "fused":
            return "only the studio's ways and the base use our kernels"
        if way.kind == "fused" and self._workload.method != "merge":
            return "merged weights serve only a mix that stays the same over the run"
        if way.kind.startswith("peft") and way.mode != "eager":
            return "peft's layers are only run as they are"
        return ""

    def open(self, way: SpeedWay) -> OpenedWay:
        """Makes a way and warms it up. Raises torch.OutOfMemoryError."""
        made: list[OpenedWay] = []
        ready = seconds_of(lambda: made.append(self._made(way)), self._bed.device)
        [opened] = made
        extra = self._fuse_seconds() / RUN_STEPS if way.kind == "fused" else 0.0
        return OpenedWay(opened.call, opened.steps, ready, extra, opened.note)

    def _made(self, way: SpeedWay) -> OpenedWay:
        """Makes a way. Without adapters all steps cost the same, so one step stands for all."""
        rows = self._steps[0]
        match way.kind:
            case "base":
                return _warm(self._base.together(rows, way.mode), 1)
            case "fused":
                return _warm(self._base.fused(rows, way.mode), 1)
            case "studio":
                assert way.form is not None
                ours = Ours(self._bed, way.form, way.mode)
                opened = _warm(ours.run(self._steps, self._inputs), len(self._steps), CALLS_TO_WARM)
                return OpenedWay(opened.call, opened.steps, 0.0, note=ours.note)
            case _:
                peft = self._peft_of(self._inputs)
                run = peft.one_by_one if way.kind == "peft set_adapters" else peft.mixed_batch
                calls = [run(rows) for rows in self._steps]
                return _warm(lambda: [call() for call in calls][-1], len(calls))

    def _fuse_seconds(self) -> float:
        """Seconds to fuse and unfuse every picture's mix once."""
        peft = self._peft_of(self._inputs)
        mixes = [self._steps[0][pair.start].uses for pair in pairs(self._steps[0])]
        peft.fuse(mixes[0])
        return sum(seconds_of(partial(peft.fuse, uses), self._bed.device) for uses in mixes)

    # -- what is right -----------------------------------------------------------------------------------

    @property
    def comparable(self) -> bool:
        """Whether the last step depends on nothing but its inputs, that is, no row runs on remembered features."""
        return not any(row.shallow for row in self._steps[-1])

    def truth(self) -> Tensor:
        """The last step's predictions with every picture's mix merged into a copy of the weights."""
        rows = self._steps[-1]
        whole = self._inputs.of(rows)
        predictions = torch.empty_like(whole["sample"])
        for uses in dict.fromkeys(row.uses for row in rows):
            twin = merged(
                self._bed.unet, "unet", self._bed.adapters, uses
            )  # one at a time, since each is a whole model
            for pair in pairs(rows):
                if rows[pair.start].uses == uses:
                    predictions[pair] = twin(**cut(whole, pair), return_dict=False)[0]
        return predictions

    def noise(self) -> float:
        """How far the base's predictions move when its batch is split into pairs."""
        rows = self._steps[-1]
        return relative(self._base.fused(rows, "eager")(), self._base.together(rows, "eager")())


def _warm(call: Callable[[], Tensor], steps: int, times: int = 1) -> OpenedWay:
    for _ in range(times):
        call()
    return OpenedWay(call, steps, 0.0)


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference divided by the norm of what was expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def rounds(ways: Sequence[SpeedWay], *, together: bool) -> list[list[SpeedWay]]:
    """Groups of ways that are open at one time: all together; or, where memory is scarce, those without adapters, then
    each other way alone. peft's ways come before anything is compiled, so that they cannot affect a compiled model."""
    if together:
        return [list(ways)]
    base = [way for way in ways if way.kind == "base"]
    peft = [way for way in ways if way.kind.startswith("peft")]
    rest = [way for way in ways if way not in base and way not in peft]
    return [each for each in ([*([way] for way in peft), base, *([way] for way in rest)]) if each]
