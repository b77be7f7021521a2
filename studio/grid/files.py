"""The files of a grid: its sheet and its page."""

from __future__ import annotations

from pathlib import Path

from pipelines.home.files import write_whole
from studio.batch.manifest import PictureOutcome
from studio.grid.grid import Grid
from studio.grid.page import write_page
from studio.grid.sheet import draw_sheet


def write_grid(
    grid: Grid, *, grid_folder: Path, outcomes: list[PictureOutcome], cell_width: int | None
) -> tuple[Path, Path]:
    """Writes the sheet and the page; returns their paths."""
    cells = grid.cells(outcomes)
    sheet = draw_sheet(grid, cells, cell_width)
    page = write_page(grid, cells)
    picture = write_whole(
        grid_folder / "grid.png", lambda path: sheet.save(path, format="PNG", optimize=True), force=True
    )
    text = write_whole(grid_folder / "grid.html", page, force=True)
    return picture, text
