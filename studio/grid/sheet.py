"""The contact sheet: all cells with their labels, in one PNG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from studio.drafts import picture_file
from studio.grid.grid import Cell, Grid

GAP = 8
PAPER, INK, MUTED, MISSING = "#ffffff", "#1c1c22", "#5c5c66", "#ececf0"
MOST_PIXELS = 400_000_000
"""Most pixels of a sheet; it takes about 1.2 GB while it is drawn. Cells shrink where a sheet would be larger."""
SMALLEST_CELL = 160
"""Small pictures are enlarged to about this width in pixels, by whole factors, so that they stay crisp."""


def draw_sheet(grid: Grid, cells: Sequence[Cell], width: int | None = None) -> Image.Image:
    """The grid as one picture. width: of a cell, in pixels; None is that of the pictures, times a whole number where
    they are small."""
    columns, rows, sheets = len(grid.x.cells), len(grid.y.cells), len(grid.z.cells)
    side = _fitting(_cell_size(cells, width), columns * rows * sheets)
    font = _font(max(13, side[0] // 12))
    line = round(font.size * 1.35)
    left = GAP + _row_label_width(grid, side, font)
    head = _lines(grid.title, left + columns * (side[0] + GAP) - 2 * GAP, font)[:3]
    top = GAP + line * len(head) + (GAP if head else 0)
    column_labels = [_lines(_label(grid.x.name, label), side[0], font)[:3] for label, _ in grid.x.cells]
    label_height = line * max(map(len, column_labels)) + GAP // 2
    sheet_height = (line if grid.z.name else 0) + label_height + rows * (side[1] + GAP)
    paper = Image.new("RGB", (left + columns * (side[0] + GAP), top + sheets * (sheet_height + GAP)), PAPER)
    pen = ImageDraw.Draw(paper)
    _write(pen, (GAP, GAP), head, font, INK)
    for sheet in range(sheets):
        y = top + sheet * (sheet_height + GAP)
        if grid.z.name:
            _write(pen, (GAP, y), [_label(grid.z.name, grid.z.cells[sheet][0])], font, INK)
            y += line
        for column, labels in enumerate(column_labels):
            _write(pen, (left + column * (side[0] + GAP), y), labels, font, MUTED)
        y += label_height
        for row, (label, _) in enumerate(grid.y.cells):
            texts = _lines(_label(grid.y.name, label), left - 2 * GAP, font)
            _write(pen, (GAP, y + row * (side[1] + GAP)), texts, font, MUTED)
        for cell in (cell for cell in cells if cell.place[2] == sheet):
            corner = (left + cell.place[0] * (side[0] + GAP), y + cell.place[1] * (side[1] + GAP))
            _put(paper, pen, cell, corner, side, font)
    return paper


def _put(
    paper: Image.Image,
    pen: ImageDraw.ImageDraw,
    cell: Cell,
    corner: tuple[int, int],
    side: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    if cell.file is None:
        pen.rectangle((*corner, corner[0] + side[0] - 1, corner[1] + side[1] - 1), fill=MISSING)
        _write(
            pen,
            (corner[0] + GAP, corner[1] + GAP),
            _lines(cell.error or "", side[0] - 2 * GAP, font)[:5],
            font,
            MUTED,
        )
        return
    image = picture_file.upright(cell.file, cell.file.name)
    scale = min(side[0] / image.width, side[1] / image.height)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    whole = size[0] % image.width == 0
    shown = image.convert("RGB").resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
    paper.paste(shown, corner)


def _cell_size(cells: Sequence[Cell], width: int | None) -> tuple[int, int]:
    sizes = []
    for cell in cells:
        if cell.file is not None:
            sizes.append(picture_file.size(cell.file, cell.file.name))
    own = (
        max((w for w, _ in sizes), default=SMALLEST_CELL),
        max((h for _, h in sizes), default=SMALLEST_CELL),
    )
    if width is None:
        factor = max(1, -(-SMALLEST_CELL // own[0]))
        return own[0] * factor, own[1] * factor
    return width, max(round(own[1] * width / own[0]), 1)


def _fitting(side: tuple[int, int], count: int) -> tuple[int, int]:
    """The cells' size at which so many of them fit onto a sheet."""
    factor = math.sqrt(min(MOST_PIXELS / (side[0] * side[1] * count), 1.0))
    return max(int(side[0] * factor), 1), max(int(side[1] * factor), 1)


def _label(name: str, value: str) -> str:
    return f"{name} {value}".strip()


def _row_label_width(grid: Grid, side: tuple[int, int], font: ImageFont.FreeTypeFont) -> int:
    if not grid.y.name:
        return 0
    widest = max(font.getlength(_label(grid.y.name, label)) for label, _ in grid.y.cells)
    return min(int(widest) + 1, side[0]) + 2 * GAP


def _lines(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text, broken into lines that fit into the width."""
    if font.getlength(text) <= width:
        return [text] if text else []
    letters = max(int(width / max(font.getlength("n"), 1)), 4)
    return textwrap.wrap(text, letters)


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    colour: str,
) -> None:
    for number, line in enumerate(lines):
        pen.text((corner[0], corner[1] + number * round(font.size * 1.35)), line, fill=colour, font=font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and covers most scripts."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)
