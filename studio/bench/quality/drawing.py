"""Draws the pictures as a batch, which shares passes and can be resumed. Several processes can draw a part each.

OUT/plan.json                what the folder holds; another plan is refused
OUT/pictures/                pictures and manifest (see `studio.batch`), a part's in pictures-2-of-8/
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import SetupError
from pipelines.home import Home
from pipelines.home.files import write_whole
from studio.batch.manifest import MANIFEST
from studio.batch.progress import render
from studio.batch.run import Batch, BatchOrder
from studio.bench.quality.cells import CellPlan, QualityCell
from studio.pictures.identity import is_whole
from studio.rendering.opening import Opening
from studio.terminal.progress import Teller

TEMPLATE = "{name}_{seed}"


@dataclass(frozen=True)
class Shot:
    """A finished picture. full_rows, shallow_rows: UNet rows that it took. seconds: its share of the UNet calls'
    time."""

    file: Path
    full_rows: int
    shallow_rows: int
    seconds: float
    composer: str
    device: str
    dtype: str


def draw(
    plan: CellPlan,
    cells: list[QualityCell],
    out: Path,
    opening: Opening,
    home: Home,
    teller: Teller,
    *,
    part: str = "",
) -> int:
    """Draws what is missing; returns the exit code, as `batch` does. part: "2-of-8" if a process draws only this part.

    Raises StudioError before any work, with every mistake.
    """
    _hold_to(plan, out, opening)
    there = drawn(plan, cells, out)
    missing = [cell for cell in cells if cell not in there]
    if not missing:
        return 0
    folder = out / (f"pictures-{part}" if part else "pictures")
    order = BatchOrder([plan.job(cell) for cell in missing], folder, opening, template=TEMPLATE)
    with Batch(order, home, teller.say) as batch:
        return render(batch, teller, as_json=False, files=False)


def drawn(plan: CellPlan, cells: Iterable[QualityCell], out: Path) -> dict[QualityCell, Shot]:
    """The finished pictures of these cells, whichever process drew them."""
    by_name = {(job["name"], job["seed"]): cell for cell in cells for job in [plan.job(cell)]}
    found = {}
    for folder, entry in _entries(out):
        cell = by_name.get((entry["name"], entry["seed"]))
        if cell is None or entry["status"] != "done" or not is_whole(folder / entry["file"]):
            continue
        record = entry["record"]
        found[cell] = Shot(
            file=folder / entry["file"],
            full_rows=record["unet_rows"],
            shallow_rows=record["shallow_rows"],
            seconds=record["device_seconds"],
            composer=record["composer"],
            device=record["device"],
            dtype=record["dtype"],
        )
    return found


def _entries(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for manifest in sorted(out.glob(f"pictures*/{MANIFEST}")):
        for line in manifest.read_bytes().splitlines():
            try:
                yield manifest.parent, json.loads(line)
            except ValueError:  # a line that another process is writing, or was when it was killed
                continue


def _hold_to(plan: CellPlan, out: Path, opening: Opening) -> None:
    """Raises SetupError if the folder holds pictures of another model or other settings. Methods and seeds may be
    added."""
    said = {
        "set": plan.suite.name,
        "prompt": [plan.suite.prompt, plan.prompt],
        "settings": dict(plan.suite.settings),
        "model": opening.source,
        "vae": opening.vae,
        "dtype": opening.dtype,
    }
    text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
    file = out / "plan.json"
    if file.is_file():
        if file.read_text(encoding="utf-8") != text:
            raise SetupError(f"{out} holds pictures of other settings ({file}); choose another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, text, force=True)
