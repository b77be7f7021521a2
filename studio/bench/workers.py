"""Measures and checks Ray's workers: pictures per second for each number of workers, the same pictures as by the
default engine, every GPU in use, and a run that survives a killed worker.

    python -m studio.bench.workers --workers 1 2 --out result.json

For developers: it is no command of `lora-studio`.

Exits 1 where a picture is missing, or differs from the default engine's by more than its precision allows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from pipelines.home import Home
from studio.batch.manifest import PictureOutcome
from studio.batch.run import Batch, BatchOrder
from studio.pictures.comparison import TOLERANCE
from studio.rendering.opening import Opening

LEAST_PSNR = 35.0
"""dB: half precision's floor between two ways to render one picture."""
METHODS = ("merge", "composite", "switch:interval=2")
SAMPLERS = ("Euler", "Euler a", "DPM++ 2M Karras")


@dataclass(frozen=True)
class WorkersRun:
    """One batch: pictures, seconds to the first one (with starting Ray and loading), pictures per second after it, how
    full the UNet calls were while work waited, and how many pictures each computer and GPU made."""

    label: str
    pictures: int
    first: float
    pace: float
    fill: float | None
    made: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sameness:
    """Against the default engine's pictures: the largest difference (of 255) and the lowest PSNR (dB)."""

    label: str
    pictures: int
    largest: int
    psnr: float

    @property
    def holds(self) -> bool:
        return self.largest <= TOLERANCE or self.psnr >= LEAST_PSNR


def jobs_of(count: int, home: Home, model: str) -> list[dict[str, Any]]:
    """Different mixes, methods, samplers, steps and guidance; the same ones every time."""
    source = random.Random(0)
    own = [str(entry.path) for entry in home.loras() if entry.model == model][:6]
    return [
        {
            "prompt": f"a {source.choice(('fox', 'cat', 'owl', 'panda'))} in the {source.choice(('forest', 'snow'))}",
            "adapters": {
                name: round(source.uniform(0.3, 1), 2)
                for name in source.sample(own, min(len(own), source.randint(1, 3)))
            },
            "composer": METHODS[place % len(METHODS)],
            "scheduler": SAMPLERS[place // 3 % len(SAMPLERS)],
            "steps": source.randint(12, 24),
            "guidance_scale": source.choice((1.0, 3.5)),
            "seed": place,
        }
        for place in range(count)
    ]


def rendered(
    label: str, order: BatchOrder, home: Home, *, kill: bool = False
) -> tuple[WorkersRun, dict[int, PictureOutcome]]:
    """Renders the order. kill: a worker is killed after the first picture."""
    with Batch(order, home, lambda text: print(f"  {text}", file=sys.stderr)) as batch:
        began = time.perf_counter()
        times, outcomes = [], {}
        for outcome in batch.run():
            times.append(time.perf_counter() - began)
            outcomes[outcome.job.index] = outcome
            if batch.ray is not None and kill and len(times) == 1:
                psutil.Process(batch.ray.pids[0]).kill()
        rest = times[-1] - times[0]
        pace = (len(times) - 1) / rest if rest > 0 else 0.0
        run = WorkersRun(
            label, len(times), times[0], pace, batch.fill.busy, dict(batch.ray.made) if batch.ray else {}
        )
    print(run, flush=True)
    return run, outcomes


def sameness(label: str, found: dict[int, PictureOutcome], expected: dict[int, PictureOutcome]) -> Sameness:
    """Compares all pictures of one run with those of another."""
    largest, lowest = 0, float("inf")
    for index, outcome in expected.items():
        ours = found[index].file if index in found else None
        if outcome.file is None or ours is None:
            raise SystemExit(f"{label}: picture {index} is missing: {outcome.error or found.get(index)}")
        one, other = (np.asarray(Image.open(file), dtype=np.float64) for file in (ours, outcome.file))
        largest = max(largest, int(np.abs(one - other).max()))
        error = float(((one - other) ** 2).mean())
        lowest = min(lowest, 10 * np.log10(255**2 / error) if error else float("inf"))
    same = Sameness(label, len(expected), largest, float(lowest))
    print(same, "holds" if same.holds else "DOES NOT HOLD", flush=True)
    return same


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny-sdxl")
    parser.add_argument("--device", help="cpu leaves GPUs alone")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--jobs", type=int, default=64, help="of the comparison and of the kill")
    parser.add_argument("--paced", type=int, default=64, help="jobs of which the pace is taken")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--row-limit", type=int, default=32)
    parser.add_argument("--address", help="of a running cluster")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(words)
    home = Home.resolve()
    jobs = jobs_of(max(args.jobs, args.paced), home, args.model)
    opening = Opening(source=args.model, device=args.device, dtype=args.dtype, row_limit=args.row_limit)
    runs, same = [], []
    with tempfile.TemporaryDirectory(prefix="lora-studio-") as folder:

        def order(name: str, count: int, workers: int | None) -> BatchOrder:
            return BatchOrder(
                jobs[:count],
                Path(folder) / name,
                opening,
                engine="local" if workers is None else "ray",
                address=None if workers is None else args.address,
                workers=workers,
            )

        run, expected = rendered("default engine", order("local", args.jobs, None), home)
        runs.append(run)
        most = max(args.workers)
        run, found = rendered(
            f"{most} workers, one killed", order("killed", args.jobs, most), home, kill=True
        )
        runs.append(run)
        same.append(sameness(run.label, found, expected))
        for workers in args.workers:
            run, found = rendered(f"workers: {workers}", order(f"ray-{workers}", args.paced, workers), home)
            runs.append(run)
            both = {index: outcome for index, outcome in expected.items() if index in found}
            same.append(sameness(run.label, found, both))
    if args.out is not None:
        figures = {"runs": [asdict(run) for run in runs], "sameness": [asdict(one) for one in same]}
        args.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0 if all(one.holds for one in same) else 1


if __name__ == "__main__":
    raise SystemExit(main())
