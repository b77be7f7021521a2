"""The files of a grid: its sheet and its page."""

from __future__ import annotations

from pathlib import Path

from studio.batch.manifest import Outcome
from studio.grid.grid import Grid
from studio.grid.page import write_page
from studio.grid.sheet import draw_sheet
from studio.pictures.files import write_whole


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
    text = write_whole(grid_folder / "grid.html", lambda path: _write_text(path, page), force=True)
    return picture, text


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
