"""`lora-studio grid`: flags in, cells, a contact sheet and a page out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import INTERRUPTED

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.home import Home
    from studio.drafts.flags import Asked
    from studio.rendering.opening import Opening
    from studio.terminal.progress import Teller

WIDEST_CELL = 4_096
CELLS = "{index:04d}_{name}_{seed}"

HELP = """axes, as NAME=VALUES:
  seed=1-4   steps=10,20,30   guidance=1-7 [4]   sampler=Euler,DDIM   method=merge,switch:interval=3
  model=tiny-sdxl,other       lora=none,fox,owl=0.5               weight:fox=0-1 [5]
  prompt=fox,owl,cat          replaces the first word, which the prompt must contain, by each of them
Values are separated by commas, or by | if they contain commas."""


@dataclass(frozen=True)
class GridValues:
    """What `grid` is to do. asked: what all cells share. axes: x, y and z, as text. title: None is the prompt. cell:
    the width of one, in pixels."""

    asked: Asked
    opening: Opening
    axes: tuple[str | None, ...]
    out: Path | None = None
    title: str | None = None
    cell: int | None = None
    as_json: bool = False


def add(command: ArgumentParser) -> None:
    """The axes, and what all cells share."""
    for name, what in (("x", "columns"), ("y", "rows"), ("z", "one grid below the other")):
        command.add_argument(f"--{name}", metavar="AXIS", help=f"{what}: NAME=VALUES")
    command.add_argument("--out", "-o", metavar="DIR", help="where grid.png, grid.html and the cells go")
    command.add_argument("--title", metavar="TEXT", help="above the grid (default: the prompt)")
    command.add_argument("--cell", type=int, metavar="N", help="the cells' width in grid.png, in pixels")
    flags.telling_flags(command)
    flags.picture_flags(command)
    flags.machine_flags(command)


def read(args: Namespace) -> GridValues:
    """Raises RequestError."""
    from composers.shown import shown
    from pipelines.errors import RequestError

    if args.cell is not None and not 1 <= args.cell <= WIDEST_CELL:
        raise RequestError(f"--cell {shown(args.cell)} must be a number of pixels in 1 … {WIDEST_CELL}")
    return GridValues(
        asked=flags.read_asked(args),
        opening=flags.read_opening(args),
        axes=(args.x, args.y, args.z),
        out=flags.path(args.out or None),
        title=args.title,
        cell=args.cell,
        as_json=args.json,
    )


def run(values: GridValues, home: Home, teller: Teller) -> int:
    """Renders the grid. Exit code: 0 all done, 1 some failed, 130 interrupted. Raises StudioError for bad input (2)."""
    from datetime import date

    from pipelines.errors import RequestError
    from studio.batch.progress import render
    from studio.batch.run import Batch, BatchOrder
    from studio.grid.axes import read_axis
    from studio.grid.files import write_grid
    from studio.grid.grid import make_grid

    axes = [None if text is None else read_axis(text) for text in values.axes]
    grid = make_grid(_fields(values, home), axes, values.title)
    out = values.out or home.outputs / date.today().isoformat() / "grid"
    varies_model = any(axis is not None and axis.name == "model" for axis in axes)
    if varies_model and values.opening.source is not None:
        raise RequestError("give the models either as an axis or with --model")
    order = BatchOrder(jobs=grid.jobs(), out=out / "cells", opening=values.opening, template=CELLS)
    with Batch(order, home, teller.say) as batch:
        outcomes = list(batch.earlier)
        code = render(batch, teller, as_json=values.as_json, tell=outcomes.append, files=False)
    if code != INTERRUPTED:
        for file in write_grid(grid, grid_folder=out, outcomes=outcomes, cell_width=values.cell):
            print(file)
    return code


def _fields(values: GridValues, home: Home) -> Mapping[str, Any]:
    """The job that all cells share, from the flags."""
    from pathlib import Path
    from zlib import crc32

    from pipelines.errors import RequestError
    from studio.batch.prompts import plain_wanted
    from studio.drafts.flags import first_example
    from studio.rendering.opening import model_name

    asked = values.asked
    if len(asked.prompts) > 1:
        raise RequestError("a grid has one --prompt; vary it with an axis, as in --y prompt=fox,owl")
    if asked.count != 1:
        raise RequestError("a grid has one picture a cell; vary the seed with an axis, as in --x seed=1-4")
    name = model_name(values.opening, home)
    prompt = asked.prompts[0] if asked.prompts else first_example(name, home.find_model(name))
    draft = asked.draft
    fields = {key: value for key, value in draft.values.items() if value is not None}
    for name, source in draft.images.items():
        fields[name] = str(source.absolute() if isinstance(source, Path) else source)
    if asked.composers:
        if len(asked.composers) > 1:
            raise RequestError(
                "a grid has one --composer; vary it with an axis, as in --x method=merge,switch"
            )
        fields["composer"] = asked.composers[0]
    fields.setdefault(
        "seed", crc32(prompt.encode())
    )  # not a random one: the same command must go on with the same grid
    return {"prompt": prompt, "adapters": [plain_wanted(wanted) for wanted in draft.wanted], **fields}


COMMANDS = (
    Command(
        "grid",
        place=40,
        help="compare settings in a labelled grid",
        description="Render every combination of two or three axes as one labelled picture and one page.",
        epilog=HELP,
        add=add,
        read=read,
        run=run,
    ),
)
