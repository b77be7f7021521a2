"""Small copies of the library's previews, in a folder from which pages may show them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

from pipelines import StudioError
from pipelines.home import Home
from pipelines.home.answers import answered
from pipelines.home.files import read_regular, write_whole
from studio.drafts.picture_file import upright
from studio.library.card import Card

LARGEST = 64 * 2**20
"""Most bytes of a preview that is read."""
SIDE = 256
"""Pixels of the longer side of a copy."""


def thumb(card: Card, home: Home) -> Path | None:
    """A small copy of the card's preview, made once, and again when the preview changes; None where there is no preview
    that can be read."""
    if card.preview is None:
        return None
    try:
        stat = answered(card.preview, card.preview.stat)
        mark = hashlib.sha256(f"{card.preview}|{stat.st_mtime_ns}|{stat.st_size}".encode()).hexdigest()[:20]
        file = home.made(home.cache / "web" / "thumbs") / f"{mark}.webp"
        if not file.is_file():
            small = upright(io.BytesIO(read_regular(card.preview, LARGEST)), card.preview.name).convert("RGB")
            small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            write_whole(file, lambda path: small.save(path, format="WEBP", quality=85), force=True)
    except (OSError, ValueError, StudioError):
        return None
    return file
