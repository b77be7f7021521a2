"""Pictures that somebody gives, opened with distrust: judged by their headers before a pixel is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

from pipelines.bounds import check_pixels
from pipelines.errors import RequestError, StudioError

LARGEST_FILE = 256 * 2**20
"""Bytes of a picture's file."""
LONGEST_TEXT = 4_000_000
"""Characters of all that a picture says of itself; a large workflow has a tenth of it."""
MOST_SAID = 200_000
"""Values of a text of a picture."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""What is read. Others that Pillow knows need programs of their own, or are documents rather than pictures."""


def upright(source: Path | IO[bytes], name: str) -> Image.Image:
    """The picture, turned as its camera says. Raises RequestError."""
    with _opened(source, name) as image:
        return ImageOps.exif_transpose(image)


def texts(source: Path | IO[bytes], name: str) -> dict[str, str]:
    """The texts that a picture holds, by the names of their chunks. Raises RequestError."""
    with _opened(source, name) as image:  # decoded, for texts may stand behind the pixels
        found = {str(chunk): text for chunk, text in image.info.items() if isinstance(text, str)}
    length = sum(map(len, found.values()))
    if length > LONGEST_TEXT:
        raise RequestError(
            f"{name} says {length} characters about itself; at most {LONGEST_TEXT} are read: set it up by hand"
        )
    return found


@contextmanager
def _opened(source: Path | IO[bytes], name: str) -> Iterator[Image.Image]:
    """The picture, or the first one of several, decoded. Raises RequestError, whatever happens within."""
    Image.init()
    try:
        if isinstance(source, Path):
            _check_file(source, name)
        with Image.open(source, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
            check_pixels(name, *image.size)
            image.load()
            yield image
    except StudioError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"{name} does not exist; check the path") from error
    except Exception as error:  # a damaged picture makes Pillow raise nearly anything
        raise RequestError(f"{name} cannot be read as a picture ({str(error)[:200]})") from error


def _check_file(file: Path, name: str) -> None:
    size = file.stat().st_size
    if not file.is_file():
        raise RequestError(f"{name} cannot be read as a picture (it is no file)")
    if size > LARGEST_FILE:
        raise RequestError(
            f"{name} has {size / 2**20:.0f} MB; at most {LARGEST_FILE // 2**20} are read: make it smaller"
        )
