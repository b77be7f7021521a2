"""The engine's targets, row by row: target, measured value, and the rival's value from the same run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from pipelines.engine.residency.bank import FormChoice
from studio.bench.speed.bed import Bed, Machine
from studio.bench.speed.changes import RESIDENT, Changes, Latencies, latencies, random_changes
from studio.bench.speed.rivals import Mode
from studio.bench.speed.run import Bench, Budget, Measured, SpeedOutcome
from studio.bench.speed.timing import FEWEST
from studio.bench.speed.ways import RIVALS, Kind, SpeedWay
from studio.bench.speed.workload import Layers, Workload

Bound = Literal["at most", "at least"]

RANK = 16
CHANGES = 200
CHANGING_IMAGES = 2
PARTS = ("large", "small", "composite", "changes", "switch", "linear", "float32", "other")
"""The parts of the course: the main comparison at two sizes, then what single targets need besides."""
REPEATS = 7
CHANGE_REPEATS = 15
RELEASED = SpeedWay("peft set_adapters", "eager")
LOW_MEMORY: tuple[FormChoice, ...] = ("lane-packed", "pool")


@dataclass(frozen=True)
class Scale:
    """What is measured: a model at two sizes in pixels, and another model at its own; pictures at once."""

    model: str
    large: int
    small: int
    other: tuple[str, int] | None
    images: int


FULL = Scale("sdxl", 1024, 512, ("sd15", 512), 8)
"""The scale for which the targets were set, on a data-centre GPU."""
TINY = Scale("tiny-sdxl", 128, 64, None, 8)
"""The same course with the built-in model, for any machine."""


@dataclass(frozen=True)
class SpeedTarget:
    """One row. measured: None where something that it needs was left out. against: the rival's figure in the same
    run."""

    name: str
    bound: Bound
    limit: float
    measured: float | None
    against: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.bound == "at most" else self.measured >= self.limit


@dataclass(frozen=True)
class Course:
    """Everything that the targets' run has measured; `sections` by what they are for."""

    sections: Mapping[str, Measured]
    changes: Changes | None
    latencies: Latencies | None

    def section(self, name: str) -> Measured:
        """The section of that name; an empty one if it was not run."""
        return self.sections.get(name) or Measured("", Workload(0), "", (), None, 0)


def run(
    scale: Scale,
    machine: Machine,
    budget: Budget,
    tell: Callable[[str], None],
    show: Callable[[Measured], None],
    wanted: Collection[str] = PARTS,
    *,
    rivals: Collection[Kind] = RIVALS,
    profile: bool = False,
) -> Course:
    """Runs the course, the main comparison first. What comes too late for the budget is left out, with a note.

    show: called with every section once it is done. wanted: which of `PARTS` to run. rivals: those to measure too
    (changes need peft's set_adapters). profile: see `Bench`.
    """
    cuda = machine.device.type == "cuda"
    modes: tuple[Mode, ...] = ("eager", "graph", "compiled") if cuda else ("eager",)
    recorded, best = modes[min(1, len(modes) - 1)], modes[-1]
    sections: dict[str, Measured] = {}

    def bench_of(model: str, layers: Layers, dtype: torch.dtype | None = None) -> Bench:
        return Bench(Bed(model, machine.unet(model, dtype), layers, RANK), budget, tell, profile=profile)

    def measure(
        name: str, bench: Bench, work: Workload, ways: Sequence[SpeedWay], repeats: int = REPEATS
    ) -> None:
        mine = [way for way in dict.fromkeys(ways) if way.kind in ("base", "studio", *rivals)]
        sections[name] = bench.measure(work, mine, repeats)
        show(sections[name])

    mixes = Workload(scale.large // 8, scale.images, 3, RANK)
    few_adapters = replace(mixes, pool=RESIDENT)
    five = Workload(scale.large // 8, 1, 5, RANK, method="composite")
    cells = {"large": scale.large // 8, "small": scale.small // 8}
    changes = costs = None
    bench = bench_of(scale.model, "attention")
    bench.bed.hold(RESIDENT)
    for size in [size for size in cells if size in wanted]:
        measure(size, bench, replace(mixes, cells=cells[size]), headline(modes))
    for size in cells if "composite" in wanted else ():
        ways = [
            SpeedWay("base", best),
            *(SpeedWay("studio", best, form) for form in ("auto", *LOW_MEMORY)),
            RELEASED,
        ]
        measure(f"composite {size}", bench, replace(five, cells=cells[size]), ways)
    if "changes" in wanted and budget.left > 0:
        tell(f"{CHANGES} random changes")
        changes = random_changes(bench.bed, CHANGES, CHANGING_IMAGES, cells["small"], "lane-packed", best)
        costs = latencies(bench, few_adapters, recorded, CHANGE_REPEATS)
    for size in cells if "switch" in wanted else ():
        ways = [SpeedWay("base", recorded), SpeedWay("studio", recorded, "lane-packed"), RELEASED]
        measure(
            f"switch {size}", bench, replace(few_adapters, method="switch", cells=cells[size]), ways, FEWEST
        )
    few = [SpeedWay("base", best), SpeedWay("studio", best, "lane-packed"), SpeedWay("studio", best, "dense")]
    few += with_kernels(modes, ("lane-packed", "dense"))
    if "linear" in wanted:
        bench = bench_of(scale.model, "linear")
        measure("linear", bench, replace(mixes, layers="linear"), few)
    if "float32" in wanted:
        with _without_tf32():
            bench = bench_of(scale.model, "attention", torch.float32)
            exact = [SpeedWay("studio", recorded, form) for form in ("dense", *LOW_MEMORY)]
            measure("float32", bench, replace(mixes, images=2, cells=cells["small"]), exact, FEWEST)
    if "other" in wanted and scale.other:
        model, pixels = scale.other
        measure("other", bench_of(model, "attention"), replace(mixes, cells=pixels // 8), few)
    return Course(sections, changes, costs)


def headline(modes: Sequence[Mode]) -> list[SpeedWay]:
    """Every way of the main workload, the most informative first."""
    recorded, best = modes[min(1, len(modes) - 1)], modes[-1]
    return [
        *(SpeedWay("base", mode) for mode in modes),
        SpeedWay("studio", best, "auto"),
        SpeedWay("studio", best, "dense"),
        SpeedWay("studio", best, "lane-packed"),
        *with_kernels(modes, ("auto", "dense", "lane-packed")),
        SpeedWay("fused", best),
        RELEASED,
        SpeedWay("studio", recorded, "lane-packed"),
        SpeedWay("studio", recorded, "dense"),
        SpeedWay("studio", recorded, "pool"),
        SpeedWay("studio", recorded, "auto"),
        SpeedWay("studio", "eager", "lane-packed"),
        *(SpeedWay("fused", mode) for mode in reversed(modes[:-1])),
        SpeedWay("peft adapter_names", "eager"),
    ]


def with_kernels(modes: Sequence[Mode], forms: Sequence[FormChoice]) -> list[SpeedWay]:
    """The base and these forms with our kernels, where compiled ways are measured."""
    if "compiled" not in modes:
        return []
    return [SpeedWay("base", "kernels"), *(SpeedWay("studio", "kernels", form) for form in forms)]


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def targets(course: Course) -> list[SpeedTarget]:
    """The rows of the table. The limits were set for SDXL on a data-centre GPU."""
    names = ("large", "small", "linear", "composite large", "composite small", "float32")
    large, small, linear, five_large, five_small, float32 = (course.section(name) for name in names)
    exact = [o.difference for o in float32.outcomes if o.difference is not None]
    changes = course.changes
    return [
        _over_base("overhead, memory allowing, large", 1.02, large, _ours(large)),
        _over_base("overhead, memory allowing, small", 1.03, small, _ours(small)),
        _over_base("overhead, low memory, large", 1.05, large, _ours(large, LOW_MEMORY)),
        _over_base("overhead, low memory, small", 1.05, small, _ours(small, LOW_MEMORY)),
        _over_base("overhead, all linear layers, low memory", 1.12, linear, _ours(linear, LOW_MEMORY)),
        _faster("against diffusers + peft as documented, large", 8.0, large, _peft(large)),
        _faster("against diffusers + peft as documented, small", 30.0, small, _peft(small)),
        _faster("against the strongest sequential rival, large", 1.43, large, _sequential(large)),
        _faster("against the strongest sequential rival, small", 2.8, small, _sequential(small)),
        _faster("Composite of 5 against the released scheme, large", 4.1, five_large, _peft(five_large)),
        _faster("Composite of 5 against the released scheme, small", 15.0, five_small, _peft(five_small)),
        SpeedTarget(
            f"recompiles and captures over {CHANGES} random changes",
            "at most",
            0,
            changes.recompiles + changes.captures if changes else None,
            f"{changes.replays} steps replayed a recording" if changes else "",
        ),
        SpeedTarget("difference to merged weights, float32", "at most", 1e-5, max(exact, default=None)),
        _noise(large),
        SpeedTarget(
            "the base itself, ms a step, large", "at most", 225, _ms(_base(large)), _labels(_base(large))
        ),
    ]


def _ours(measured: Measured, forms: tuple[FormChoice, ...] | None = None) -> SpeedOutcome | None:
    """The studio's fastest way; if forms are given, of these only."""
    return measured.fastest(lambda way: way.kind == "studio" and (forms is None or way.form in forms))


def _base(measured: Measured) -> SpeedOutcome | None:
    return measured.fastest(lambda way: way.kind == "base")


def _peft(measured: Measured) -> SpeedOutcome | None:
    return measured.fastest(lambda way: way.kind == "peft set_adapters")


def _sequential(measured: Measured) -> SpeedOutcome | None:
    return measured.fastest(lambda way: way.kind == "fused")


def _ms(outcome: SpeedOutcome | None) -> float | None:
    return 1000 * outcome.timing.median if outcome and outcome.timing else None


def _labels(*outcomes: SpeedOutcome | None) -> str:
    return ", ".join(f"{outcome.way.label} {_ms(outcome):.1f} ms" for outcome in outcomes if outcome)


def _over_base(name: str, limit: float, measured: Measured, ours: SpeedOutcome | None) -> SpeedTarget:
    """Our time over that of the fastest way without adapters, in the same turns."""
    return SpeedTarget(
        name, "at most", limit, ours.over_base if ours else None, _labels(ours, _base(measured))
    )


def _faster(name: str, limit: float, measured: Measured, rival: SpeedOutcome | None) -> SpeedTarget:
    """The rival's time over our fastest way's."""
    theirs, mine = _ms(rival), _ms(_ours(measured))
    ratio = theirs / mine if mine and theirs else None
    return SpeedTarget(name, "at least", limit, ratio, _labels(_ours(measured), rival))


def _noise(measured: Measured) -> SpeedTarget:
    """The largest difference of our ways from merged weights, divided by the change that splitting the base's batch
    makes."""
    apart = [o.difference for o in measured.outcomes if o.way.kind == "studio" and o.difference is not None]
    ratio = max(apart) / measured.noise if apart and measured.noise else None
    against = f"{max(apart):.1e}, batch-size noise {measured.noise:.1e}" if ratio else ""
    return SpeedTarget(
        "difference to merged weights over batch-size noise, large", "at most", 2.0, ratio, against
    )


def table(course: Course) -> str:
    """A line for each target, then what changes cost."""
    lines = [f"{'target':56}{'limit':>10}{'measured':>10}  met  from"]
    for target in targets(course):
        sign = "<=" if target.bound == "at most" else ">="
        measured = "-" if target.measured is None else f"{target.measured:.4g}"
        met = {True: "yes", False: "no", None: "-"}[target.met]
        lines.append(
            f"{target.name:56}{f'{sign} {target.limit:g}':>10}{measured:>10}  {met:3}  {target.against}"
        )
    lines += ["", *(found.text for found in (course.changes, course.latencies) if found)]
    return "\n".join(lines)


def as_data(course: Course) -> dict[str, Any]:
    """The course's figures, as JSON can hold them."""
    return {
        "targets": [{**asdict(target), "met": target.met} for target in targets(course)],
        "sections": {name: measured.workload.label for name, measured in course.sections.items()},
        "changes": asdict(course.changes) if course.changes else None,
        "latencies_ms": asdict(course.latencies) if course.latencies else None,
    }
