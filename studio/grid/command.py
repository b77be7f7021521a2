"""`lora-studio grid`: flags in, cells, a contact sheet and a page out."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any
from zlib import crc32

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.home.files import write_whole
from studio.batch.command import render
from studio.batch.manifest import Outcome
from studio.batch.prompts import plain_wanted
from studio.batch.run import Batch, Order
from studio.drafts.flags import first_example, flag_draft
from studio.grid.axes import read_axis
from studio.grid.grid import Grid, make_grid
from studio.grid.page import write_page
from studio.grid.sheet import draw_sheet
from studio.rendering.opening import model_name, opening_of
from studio.terminal.progress import Teller

WIDEST_CELL = 4_096
CELLS = "{index:04d}_{name}_{seed}"


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """The exit code: 0 all done, 1 some failed, 130 interrupted. Raises StudioError for bad input (2)."""
    if args.cell is not None and not 1 <= args.cell <= WIDEST_CELL:
        raise RequestError(f"--cell {shown(args.cell)} must be a number of pixels in 1 … {WIDEST_CELL}")
    axes = [None if text is None else read_axis(text) for text in (args.x, args.y, args.z)]
    grid = make_grid(_fields(args, home), axes, args.title)
    out = Path(args.out).expanduser() if args.out else home.outputs / date.today().isoformat() / "grid"
    varies_model = any(axis is not None and axis.name == "model" for axis in axes)
    opening = opening_of(args)
    if varies_model and opening.source is not None:
        raise RequestError("give the models either as an axis or with --model")
    order = Order(jobs=grid.jobs(), out=out / "cells", opening=opening, template=CELLS)
    with Batch(order, home, teller.say) as batch:
        outcomes = list(batch.earlier)
        code = render(batch, teller, as_json=args.json, tell=outcomes.append, files=False)
    if code != 130:
        for file in write_grid(grid, grid_folder=out, outcomes=outcomes, cell_width=args.cell):
            print(file)
    return code


def write_grid(
    grid: Grid, *, grid_folder: Path, outcomes: list[Outcome], cell_width: int | None
) -> tuple[Path, Path]:
    """Writes sheet and page; returns their files."""
    cells = grid.cells(outcomes)
    sheet = draw_sheet(grid, cells, cell_width)
    page = write_page(grid, cells)
    picture = write_whole(
        grid_folder / "grid.png", lambda path: sheet.save(path, format="PNG", optimize=True), force=True
    )
    text = write_whole(grid_folder / "grid.html", page, force=True)
    return picture, text


def _fields(args: Namespace, home: Home) -> Mapping[str, Any]:
    """The job that all cells share, from the flags."""
    if args.prompt and len(args.prompt) > 1:
        raise RequestError("a grid has one --prompt; vary it with an axis, as in --y prompt=fox,owl")
    if args.count != 1:
        raise RequestError("a grid has one picture a cell; vary the seed with an axis, as in --x seed=1-4")
    name = model_name(opening_of(args), home)
    prompt = args.prompt[0] if args.prompt else first_example(name, home.find_model(name))
    draft = flag_draft(args)
    fields = {key: value for key, value in draft.values.items() if value is not None}
    if draft.init_image is not None:
        fields["init_image"] = str(draft.init_image.absolute())
    if args.composer:
        if len(args.composer) > 1:
            raise RequestError(
                "a grid has one --composer; vary it with an axis, as in --x method=merge,switch"
            )
        fields["composer"] = args.composer[0]
    fields.setdefault(
        "seed", crc32(prompt.encode())
    )  # not drawn: the same command goes on with the same grid
    return {"prompt": prompt, "adapters": [plain_wanted(wanted) for wanted in draft.wanted], **fields}
