"""Contact sheets: rows of pictures under titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipelines.blora.probe import Effect, Probe

MARGIN = 4
LINE = 13
INK, PAPER, BEST = (20, 20, 20), (255, 255, 255), (0, 110, 60)


def probe_sheet(probe: Probe, side: int = 128) -> Image.Image:
    """A sheet with a row for each pair and seed, and a column for each block and level.

    Below each column stands how far it moves content and style. The proposed blocks are marked. side: the longest side
    of a picture on the sheet, in pixels.
    """
    columns = ["A", "B", *(effect.block for effect in probe.effects)]
    first = next(iter(probe.rows[0].pictures.values()))
    scale = side / max(first.shape[1:])
    width, height = (max(round(pixels * scale), 8) for pixels in (first.shape[2], first.shape[1]))
    chosen = {block: part for part, blocks in probe.block_map.items() for block in blocks}
    row_height = height + LINE + 2 * MARGIN
    top = 2 * LINE + MARGIN
    sheet = Image.new(
        "RGB",
        (len(columns) * (width + MARGIN) + MARGIN, top + len(probe.rows) * row_height + 3 * LINE + MARGIN),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    effects = {effect.block: effect for effect in probe.effects}
    for place, name in enumerate(columns):
        left = MARGIN + place * (width + MARGIN)
        colour = BEST if name in chosen else INK
        draw.text((left, MARGIN), short_name(name), fill=colour, font=font)
        if name in chosen:
            draw.text((left, MARGIN + LINE), f"= {chosen[name]}", fill=colour, font=font)
        for line, text in enumerate(_figures(effects.get(name))):
            draw.text((left, top + len(probe.rows) * row_height + line * LINE), text, fill=colour, font=font)
    for index, row in enumerate(probe.rows):
        y = top + index * row_height
        title = f"{row.pair.part}: A = {row.pair.first}   B = {row.pair.second}   (seed {row.seed})"
        draw.text((MARGIN, y), title, fill=INK, font=font)
        for place, name in enumerate(columns):
            cell = to_image(row.pictures[name]).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(cell, (MARGIN + place * (width + MARGIN), y + LINE + MARGIN))
    return sheet


def grid(rows: Sequence[Mapping[str, Image.Image]], side: int = 128, titles: bool = True) -> Image.Image:
    """A sheet of rows of pictures, title -> picture, each row with its titles above. side: of a picture, in pixels."""
    line = LINE + MARGIN if titles else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB", (columns * (side + MARGIN) + MARGIN, len(rows) * (side + line + MARGIN) + MARGIN), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for index, row in enumerate(rows):
        y = MARGIN + index * (side + line + MARGIN)
        for place, (title, picture) in enumerate(row.items()):
            x = MARGIN + place * (side + MARGIN)
            if titles:
                draw.text((x, y), title.strip(), fill=INK, font=font)
            sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (x, y + line))
    return sheet


def short_name(block: str) -> str:
    """ "up_blocks.0.attentions.1" -> "up.0.a1"; a whole level -> "up.0 all"."""
    name = block.replace("_blocks", "").replace("mid_block", "mid").replace("attentions.", "a")
    return f"{name} all" if name[:2] in ("do", "up") and ".a" not in name else name


def to_image(picture: Tensor) -> Image.Image:
    """The picture of a tensor [3, height, width] in 0 … 1."""
    pixels = (picture.float().clamp(0, 1) * 255).round().to("cpu").permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.astype(np.uint8))


def _figures(effect: Effect | None) -> tuple[str, ...]:
    if effect is None:
        return ("moves", "content", "style")
    return ("", *("-" if value is None else f"{value:.2f}" for value in (effect.content, effect.style)))
