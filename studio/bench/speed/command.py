"""`lora-studio bench speed`: reads the flags, runs what they ask for, and writes what was found."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import SetupError
from pipelines.home import Home
from pipelines.record import device_name
from studio.bench.speed import gates, report
from studio.bench.speed.bed import Bed, load_unet
from studio.bench.speed.rivals import MODES, Mode
from studio.bench.speed.run import Bench, Budget, Measured, Way
from studio.bench.speed.workload import Workload
from studio.opening import pick_device, pick_dtype
from studio.progress import Teller

NATIVE = {"sdxl": 1024, "sd15": 512}
"""Pixels; all other models are measured at 128 unless told."""


def run(args: argparse.Namespace, home: Home, teller: Teller) -> int:
    """Returns the exit code: 1 where --gates finds one broken."""
    device = pick_device(args.device)
    dtype = torch.bfloat16 if args.dtype is None and device.type == "cuda" else pick_dtype(args.dtype, device)
    _need_peft()
    budget = Budget(args.budget)
    if args.gates:
        return gates.run(load_unet("tiny-sdxl", home, device, dtype), budget, args.repeats, teller)
    about = {"device": device_name(device), "torch": torch.__version__, "dtype": str(dtype)}
    print(", ".join(str(value) for value in about.values()))
    found: list[Measured] = []
    for model in args.model:
        unet = load_unet(model, home, device, dtype)
        for layers, rank in itertools.product(args.layers, args.rank):
            bench = Bench(Bed(model, unet, layers, rank), budget, teller.say)
            for workload in _workloads(args, model, layers, rank):
                found.append(bench.measure(workload, _ways(args, device), args.repeats))
                print(report.table(found[-1]), flush=True)
    if args.json:
        report.write_json(Path(args.json), about, {"measured": [report.as_data(each) for each in found]})
    if args.plot:
        report.write_plot(Path(args.plot), about["device"], found)
    return 0


def _workloads(args: argparse.Namespace, model: str, layers: Any, rank: int) -> Iterator[Workload]:
    sizes = args.size or [NATIVE.get(model, 128)]
    for size, images, members, spread, method in itertools.product(
        sizes, args.images, args.members, args.spread, args.method
    ):
        yield Workload(size // 8, images, members, rank, layers, spread, method)


def _ways(args: argparse.Namespace, device: torch.device) -> list[Way]:
    """Those asked for, the most telling first: the run may end before the last."""
    modes: list[Mode] = [mode for mode in MODES if mode in args.modes]
    if device.type != "cuda" and args.modes == list(MODES):
        modes = ["eager"]  # compiling for a CPU takes minutes; ask for it by name
    ways = [Way("base", mode) for mode in modes]
    ways += [Way("studio", mode, form) for form in args.forms for mode in modes]
    if "fused" in args.rivals:
        ways += [Way("fused", mode) for mode in modes]
    ways += [
        Way(f"peft {name}", "eager") for name in ("set_adapters", "adapter_names") if name in args.rivals
    ]
    return ways


def _need_peft() -> None:
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError:
        raise SetupError(
            "the rivals need peft, which is not installed; run: pip install 'lora-studio[train]'"
        ) from None
