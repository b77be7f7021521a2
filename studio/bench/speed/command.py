"""`lora-studio bench speed`: reads the flags, runs what they ask for, and writes what was found."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipelines.engine.products import autotune
from pipelines.errors import SetupError
from pipelines.home import Home
from pipelines.record import device_name
from studio.bench.speed import gates, report, targets
from studio.bench.speed.bed import Bed, Machine
from studio.bench.speed.changes import Changes, random_changes
from studio.bench.speed.report import About
from studio.bench.speed.rivals import MODES, Mode
from studio.bench.speed.run import Bench, Budget, Measured
from studio.bench.speed.ways import RIVALS, Kind, Way
from studio.bench.speed.workload import LAYERS, METHODS, SPREADS, Layers, Workload
from studio.rendering.opening import pick_device, pick_dtype
from studio.terminal.progress import Teller

NATIVE = {"sdxl": 1024, "sd15": 512}
"""Pixels; all other models are measured at 128 unless told."""
FULL_AXES: Sequence[Sequence[Any]] = ((), (1, 2, 4, 8, 16), (1, 3, 5), (16, 64), LAYERS, SPREADS, METHODS)
"""What --full visits: pictures, LoRAs in a mix, ranks, layers, spreads, methods; the size stays."""


def run(args: argparse.Namespace, home: Home, teller: Teller) -> int:
    """Returns the exit code: 1 where --gates finds one broken."""
    device = pick_device(args.device)
    dtype = torch.bfloat16 if args.dtype is None and device.type == "cuda" else pick_dtype(args.dtype, device)
    _need_peft()
    for size in args.size or ():
        if size < 64 or size % 64:
            raise SetupError(f"--size {size} must be a multiple of 64 pixels")
    budget = Budget(args.budget)
    autotune.keep_in(home.cache)
    machine = Machine(home, device, dtype)
    if args.gates:
        return gates.run(machine, budget, args.repeats, teller)
    about = About(device_name(device), torch.__version__, str(dtype).removeprefix("torch."))
    print(about.line)
    found: list[Measured] = []
    extra: dict[str, Any] = {}
    if args.targets is not None:
        scale = targets.FULL if device.type == "cuda" else targets.TINY

        def show(measured: Measured) -> None:
            print("\n" + report.table(measured), flush=True)
            found.append(measured)
            if args.json:  # what is there is kept, should the run be cut short
                report.write_json(Path(args.json), about, found, extra)

        course = targets.run(
            scale,
            machine,
            budget,
            teller.say,
            show,
            args.targets or targets.PARTS,
            rivals=_rivals(args),
            profile=args.profile,
        )
        extra = {"course": targets.as_data(course)}
        print("\n" + targets.table(course))
    elif args.changes:
        changes = _changes(args, machine)
        extra = {"changes": asdict(changes)}
        print(changes.text)
    else:
        found = _measured(args, machine, budget, teller)
    if args.json:
        report.write_json(Path(args.json), about, found, extra)
    if args.plot and found:
        report.write_plot(Path(args.plot), about.device, found)
    return 0


def _changes(args: argparse.Namespace, machine: Machine) -> Changes:
    model, layers, rank = args.model[0], args.layers[0], args.rank[0]
    mode: Mode = args.modes[-1] if machine.device.type == "cuda" else "eager"
    size = (args.size or [NATIVE.get(model, 128)])[0]
    bed = Bed(model, machine.unet(model), layers, rank)
    return random_changes(bed, args.changes, args.images[0], size // 8, args.forms[0], mode)


def _measured(args: argparse.Namespace, machine: Machine, budget: Budget, teller: Teller) -> list[Measured]:
    found = []
    ways = _ways(args, machine.device)
    for (model, layers, rank), works in _by_bed(args).items():
        bench = Bench(Bed(model, machine.unet(model), layers, rank), budget, teller.say, profile=args.profile)
        for work in works:
            found.append(bench.measure(work, ways, args.repeats))
            print("\n" + report.table(found[-1]), flush=True)
    return found


def _by_bed(args: argparse.Namespace) -> dict[tuple[str, Layers, int], list[Workload]]:
    """The workloads asked for, by (model, layers, rank): those share a model with its adapters."""
    beds: dict[tuple[str, Layers, int], list[Workload]] = {}
    for model in args.model:
        sizes = args.size or [NATIVE.get(model, 128)]
        axes = (sizes, args.images, args.members, args.rank, args.layers, args.spread, args.method)
        chosen = every_axis_in_turn(axes, FULL_AXES) if args.full else itertools.product(*axes)
        for size, images, members, rank, layers, spread, method in chosen:
            work = Workload(size // 8, images, members, rank, layers, spread, method)
            beds.setdefault((model, layers, rank), []).append(work)
    return beds


def every_axis_in_turn(
    asked: Sequence[Sequence[Any]], axes: Sequence[Sequence[Any]]
) -> list[tuple[Any, ...]]:
    """The point (the first of what was asked for on each axis), and the point moved along each axis."""
    point = tuple(values[0] for values in asked)
    moved = [
        (*point[:place], value, *point[place + 1 :]) for place, axis in enumerate(axes) for value in axis
    ]
    return list(dict.fromkeys([point, *moved]))


def _ways(args: argparse.Namespace, device: torch.device) -> list[Way]:
    """Those asked for, the most telling first: the run may end before the last."""
    modes: list[Mode] = [mode for mode in MODES if mode in args.modes]
    if device.type != "cuda" and args.modes == list(MODES):
        modes = ["eager"]  # compiling for a CPU takes minutes; ask for it by name
    ways = [Way("base", mode) for mode in modes]
    ways += [Way("studio", mode, form) for form in args.forms for mode in modes]
    rivals = _rivals(args)
    ways += [Way("fused", mode) for mode in modes if "fused" in rivals]
    ways += [Way(kind, "eager") for kind in rivals if kind != "fused"]
    return ways


def _rivals(args: argparse.Namespace) -> list[Kind]:
    return [kind for kind in RIVALS if kind.removeprefix("peft ") in args.rivals]


def _need_peft() -> None:
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError:
        raise SetupError(
            "the rivals need peft, which is not installed; run: pip install 'lora-studio[train]'"
        ) from None
