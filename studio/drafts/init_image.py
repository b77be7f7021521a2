"""A picture to start from: read, told from others, and judged by its size alone."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from studio.drafts import picture_file

MOST_INIT_PIXELS = 40_000_000
"""Of an initial image, which is decoded for every picture that starts from it; a camera's picture has a half of it."""
MOST_JUDGED = 256
"""Initial images whose sizes are remembered."""


def read_init_image(path: Path) -> Image.Image:
    """A picture to start from, upright; of several in one file the first. Raises RequestError."""
    image = picture_file.upright(path, f"init image {path.name}", MOST_INIT_PIXELS)
    return image if image.mode == "RGB" else image.convert("RGB")


class Sized(Image.Image):
    """A picture's size without its pixels: all that a request's judgement asks of an initial image."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._mode, self._size = "RGB", size


_judged: dict[tuple[object, ...] | None, tuple[int, int]] = {}
_judging = threading.Lock()  # guards the mapping, and is never held while files are looked at


def sized_like(path: Path) -> Sized:
    """Of the size of a picture to start from. It is decoded once, and not again until the file changes: a thousand
    pictures may start from it. Raises RequestError for what is no picture."""
    sign = _sign(path)
    with _judging:
        size = _judged.get(sign)
    if size is None or sign is None:
        size = read_init_image(path).size
        with _judging:
            if sign is not None:
                _judged[sign] = size
            while len(_judged) > MOST_JUDGED:
                del _judged[next(iter(_judged))]
    return Sized(size)


def _sign(path: Path) -> tuple[object, ...] | None:
    """What tells a file from what it was before; None where it cannot be looked at."""
    try:
        seen = path.stat()
    except (OSError, ValueError):
        return None
    return path, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def picture_mark(image: Image.Image) -> dict[str, Any]:
    """What tells an initial image from others: its size and the sha256 of its pixels."""
    pixels = image.convert("RGB")
    return {"size": pixels.size, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
