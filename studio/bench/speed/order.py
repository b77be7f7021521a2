"""What `lora-studio bench speed` is asked for, and its run: all workloads in all ways, or what replaces them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.engine.products import autotune
from pipelines.engine.residency.bank import FormChoice
from pipelines.errors import SetupError
from pipelines.home import Home
from pipelines.record import device_name
from studio.bench.speed import ratios, report, targets
from studio.bench.speed.bed import Bed, Machine
from studio.bench.speed.changes import Changes, random_changes
from studio.bench.speed.report import About
from studio.bench.speed.rivals import MODES, Mode
from studio.bench.speed.run import Bench, Budget, Measured
from studio.bench.speed.ways import RIVALS, Kind, SpeedWay
from studio.bench.speed.workload import LAYERS, METHODS, SPREADS, Layers, Method, Spread, Workload
from studio.rendering.opening import pick_device, pick_dtype
from studio.terminal.progress import Teller

NATIVE = {"sdxl": 1024, "sd15": 512}
"""Pixels on each side; all other models are measured at 128 unless a size is given."""
FULL_AXES: Sequence[Sequence[Any]] = ((), (1, 2, 4, 8, 16), (1, 3, 5), (16, 64), LAYERS, SPREADS, METHODS)
"""The values that --full tries: pictures, LoRAs in a mix, ranks, layers, spreads, methods. The size stays."""


@dataclass(frozen=True)
class SpeedOrder:
    """What to measure.

    models, sizes (pixels; () is the model's), images, members, ranks, layers, spreads, methods: the workloads, each
    combination of these, or with `full` every axis in turn. forms, modes, rivals: the ways. Instead of all that,
    targets: parts of the engine's targets (() is all); changes: number of random changes; ratios: those that CI checks.
    profile: also show where time goes. repeats: measurements of each way. budget: seconds. json, plot: files to write.
    """

    models: tuple[str, ...]
    sizes: tuple[int, ...]
    images: tuple[int, ...]
    members: tuple[int, ...]
    ranks: tuple[int, ...]
    layers: tuple[Layers, ...]
    spreads: tuple[Spread, ...]
    methods: tuple[Method, ...]
    full: bool
    forms: tuple[FormChoice, ...]
    modes: tuple[Mode, ...]
    rivals: tuple[str, ...]
    targets: tuple[str, ...] | None
    changes: int | None
    ratios: bool
    device: str
    dtype: str | None
    profile: bool
    repeats: int
    budget: float
    json: Path | None
    plot: Path | None

    def sizes_for(self, model: str) -> tuple[int, ...]:
        """Pixels a side."""
        return self.sizes or (NATIVE.get(model, 128),)


def run(order: SpeedOrder, home: Home, teller: Teller) -> int:
    """Measures and prints. Exit code: 0; 1 if a ratio is broken. Raises SetupError and ModelError."""
    device = pick_device(order.device)
    dtype = (
        torch.bfloat16 if order.dtype is None and device.type == "cuda" else pick_dtype(order.dtype, device)
    )
    _need_peft()
    for size in order.sizes:
        if size < 64 or size % 64:
            raise SetupError(f"--size {size} must be a multiple of 64 pixels")
    budget = Budget(order.budget)
    autotune.keep_in(home.cache)
    machine = Machine(home, device, dtype)
    if order.ratios:
        return ratios.run(machine, budget, order.repeats, teller)
    about = About(device_name(device), torch.__version__, str(dtype).removeprefix("torch."))
    print(about.line)
    found: list[Measured] = []
    extra: dict[str, Any] = {}
    if order.targets is not None:
        scale = targets.FULL if device.type == "cuda" else targets.TINY

        def show(measured: Measured) -> None:
            print("\n" + report.table(measured), flush=True)
            found.append(measured)
            if order.json:  # written after every workload, in case the run is cut short
                report.write_json(order.json, about, found, extra)

        course = targets.run(
            scale,
            machine,
            budget,
            teller.say,
            show,
            order.targets or targets.PARTS,
            rivals=_rivals(order),
            profile=order.profile,
        )
        extra = {"course": targets.as_data(course)}
        print("\n" + targets.table(course))
    elif order.changes:
        changes = _changes(order, order.changes, machine)
        extra = {"changes": asdict(changes)}
        print(changes.text)
    else:
        found = _measured(order, machine, budget, teller)
    if order.json:
        report.write_json(order.json, about, found, extra)
    if order.plot and found:
        report.write_plot(order.plot, about.device, found)
    return 0


def _changes(order: SpeedOrder, count: int, machine: Machine) -> Changes:
    model, layers, rank = order.models[0], order.layers[0], order.ranks[0]
    mode: Mode = order.modes[-1] if machine.device.type == "cuda" else "eager"
    size = order.sizes_for(model)[0]
    bed = Bed(model, machine.unet(model), layers, rank)
    return random_changes(bed, count, order.images[0], size // 8, order.forms[0], mode)


def _measured(order: SpeedOrder, machine: Machine, budget: Budget, teller: Teller) -> list[Measured]:
    found = []
    ways = _ways(order, machine.device)
    for (model, layers, rank), works in _by_bed(order).items():
        bench = Bench(
            Bed(model, machine.unet(model), layers, rank), budget, teller.say, profile=order.profile
        )
        for work in works:
            found.append(bench.measure(work, ways, order.repeats))
            print("\n" + report.table(found[-1]), flush=True)
    return found


def _by_bed(order: SpeedOrder) -> dict[tuple[str, Layers, int], list[Workload]]:
    """The workloads asked for, by (model, layers, rank): those share a model with its adapters."""
    beds: dict[tuple[str, Layers, int], list[Workload]] = {}
    for model in order.models:
        sizes = order.sizes_for(model)
        axes = (sizes, order.images, order.members, order.ranks, order.layers, order.spreads, order.methods)
        chosen = every_axis_in_turn(axes, FULL_AXES) if order.full else itertools.product(*axes)
        for size, images, members, rank, layers, spread, method in chosen:
            work = Workload(size // 8, images, members, rank, layers, spread, method)
            beds.setdefault((model, layers, rank), []).append(work)
    return beds


def every_axis_in_turn(
    asked: Sequence[Sequence[Any]], axes: Sequence[Sequence[Any]]
) -> list[tuple[Any, ...]]:
    """The starting point (the first value asked for on each axis), and the points reached from it along one axis."""
    point = tuple(values[0] for values in asked)
    moved = [
        (*point[:place], value, *point[place + 1 :]) for place, axis in enumerate(axes) for value in axis
    ]
    return list(dict.fromkeys([point, *moved]))


def _ways(order: SpeedOrder, device: torch.device) -> list[SpeedWay]:
    """The ways asked for, the most informative first: the run may end before the last."""
    modes: list[Mode] = [mode for mode in MODES if mode in order.modes]
    if device.type != "cuda" and order.modes == MODES:
        modes = ["eager"]  # compiling for a CPU takes minutes; ask for it by name
    ways = [SpeedWay("base", mode) for mode in modes]
    ways += [SpeedWay("studio", mode, form) for form in order.forms for mode in modes]
    rivals = _rivals(order)
    ways += [SpeedWay("fused", mode) for mode in modes if "fused" in rivals]
    ways += [SpeedWay(kind, "eager") for kind in rivals if kind != "fused"]
    return ways


def _rivals(order: SpeedOrder) -> list[Kind]:
    return [kind for kind in RIVALS if kind.removeprefix("peft ") in order.rivals]


def _need_peft() -> None:
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError:
        raise SetupError(
            "the rivals need peft, which is not installed; run: pip install 'lora-studio[train]'"
        ) from None
