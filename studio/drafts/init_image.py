"""Initial images: read whole, or only by size, and identified by a hash of their pixels."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from studio.drafts import picture_file

MOST_INIT_PIXELS = 40_000_000
"""Most pixels of an initial image, which is decoded for every picture that starts from it. A camera's picture has half
as many."""
MOST_JUDGED = 256
"""Initial images whose sizes are remembered at once."""


def read_init_image(path: Path) -> Image.Image:
    """The initial image, turned upright; the first one of a file that holds several. Raises RequestError."""
    image = picture_file.upright(path, f"init image {path.name}", MOST_INIT_PIXELS)
    return image if image.mode == "RGB" else image.convert("RGB")


class Sized(Image.Image):
    """A picture's size without its pixels. Nothing more is needed to judge a request."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._mode, self._size = "RGB", size


_judged: dict[tuple[object, ...] | None, tuple[int, int]] = {}
_judging = threading.Lock()  # guards the mapping; never held while files are looked at


def sized_like(path: Path) -> Sized:
    """The size of an initial image. The file is decoded once, and again only after it changes: thousands of pictures
    may start from it. Raises RequestError for a file that is no picture."""
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
    """A value that changes when the file changes; None where it cannot be looked at."""
    try:
        seen = path.stat()
    except (OSError, ValueError):
        return None
    return path, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def picture_mark(image: Image.Image) -> dict[str, Any]:
    """What identifies an initial image: its size and the sha256 of its pixels."""
    pixels = image.convert("RGB")
    return {"size": pixels.size, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
