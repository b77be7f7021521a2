"""The one place that opens pictures, with distrust: their headers are judged before a pixel is decoded.

Only `FORMATS` are opened, and Pillow never starts another program.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import EpsImagePlugin, Image, ImageOps, UnidentifiedImageError

from pipelines.bounds import MOST_PIXELS, check_pixels
from pipelines.errors import RequestError, StudioError
from pipelines.home.files import open_regular
from pipelines.home.plain import short
from studio.drafts import exif_texts, png_texts, xmp_texts

LARGEST_FILE = 256 * 2**20
"""Most bytes of a picture's file."""
LONGEST_TEXT = 4_000_000
"""Most characters of all texts in a picture; a large workflow has a tenth of that."""
MOST_SAID = 200_000
"""Most values in one JSON text of a picture."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""Formats that are read. Others that Pillow knows need further programs, or are documents rather than pictures."""

EpsImagePlugin.gs_binary = (
    False  # whoever opens a picture beside this module: Pillow never starts Ghostscript
)

_DECODING = threading.BoundedSemaphore(4)
"""Allows only so many pictures to be decoded at a time, however many users give some."""


def upright(source: Path | IO[bytes], name: str, most: int = MOST_PIXELS) -> Image.Image:
    """The picture, turned upright as its camera noted. most: pixels allowed. Raises RequestError."""
    with _DECODING, _opened(source, name, most) as image:
        return _turned(image)


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # its notes are damaged, its pixels are not
        return image.copy()


def size(source: Path | IO[bytes], name: str) -> tuple[int, int]:
    """Width and height of a picture, by its header. Raises RequestError."""
    with _opened(source, name, decoded=False) as image:
        return image.size


def check_upload(file: Path) -> None:
    """Raises RequestError for a picture of too many pixels, whatever its format; libraries that get it may decode it. A
    file that is no picture passes."""
    try:
        with Image.open(file) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(f"{file.name} has too many pixels to be read; make it smaller") from error
    except Exception:  # no picture, or a damaged one, which nobody can decode either
        return
    check_pixels(file.name, width, height)


def texts(source: Path | IO[bytes], name: str) -> dict[str, str]:
    """The texts in a picture: those of a PNG by the names of their chunks, those of EXIF and XMP by the names of their
    tags ("UserComment", …), a JPEG's or GIF's own as "comment". Where two have a name, a PNG's goes before one in EXIF,
    and that before one in XMP. No pixel is decoded. Raises RequestError."""
    with _told(source, name):
        if isinstance(source, Path):
            with open_regular(source) as file:
                found = _texts(file, name)
        else:
            found = _texts(source, name)
    length = sum(map(len, found.values()))
    if length > LONGEST_TEXT:
        raise _too_long(name, length)
    return found


def _texts(file: IO[bytes], name: str) -> dict[str, str]:
    size = png_texts.size(file)
    if size is None:
        return _texts_of_another(file, name)
    check_pixels(name, *size)
    try:
        found, exif = png_texts.texts_and_exif(file, LONGEST_TEXT)
    except png_texts.TooLong as error:
        raise _too_long(name, error.length) from error
    xmp = found.get(xmp_texts.CHUNK, "")
    return xmp_texts.texts(xmp) | exif_texts.texts(exif, LONGEST_TEXT) | found


def _texts_of_another(file: IO[bytes], name: str) -> dict[str, str]:
    """The texts of a picture that is no PNG."""
    file.seek(0)
    with _opened(file, name, decoded=False) as image:
        info = dict(image.info)
        tiff = image.format == "TIFF"
    found = {str(chunk): text for chunk, text in info.items() if isinstance(text, str) and chunk != "xmp"}
    comment, exif, xmp = (info.get(key) for key in ("comment", "exif", "xmp"))
    if isinstance(comment, bytes) and (said := exif_texts.comment(comment)).strip():
        found["comment"] = said
    within = exif_texts.texts(file if tiff else exif if isinstance(exif, bytes) else b"", LONGEST_TEXT)
    xmp = within.pop("XMP", None) or xmp
    return xmp_texts.texts(xmp if isinstance(xmp, str | bytes) else "") | within | found


def _too_long(name: str, length: int) -> RequestError:
    return RequestError(
        f"{name} says {length} characters about itself; at most {LONGEST_TEXT} are read: set it up by hand"
    )


@contextmanager
def _told(source: Path | IO[bytes], name: str) -> Iterator[None]:
    """While the block runs, whatever goes wrong with the picture becomes a RequestError that names it."""
    try:
        if isinstance(source, Path):
            _check_file(source, name)
        yield
    except StudioError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"{name} does not exist; check the path") from error
    except Exception as error:  # a damaged picture makes Pillow raise nearly anything
        raise RequestError(f"{name} cannot be read as a picture ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The reason without folder names, which messages of Pillow and of the system contain."""
    if isinstance(error, UnidentifiedImageError):
        return "it is of no kind that is read, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return short(error)


@contextmanager
def _opened(
    source: Path | IO[bytes], name: str, most: int = MOST_PIXELS, *, decoded: bool = True
) -> Iterator[Image.Image]:
    """The picture, or the first one of several. decoded: with its pixels; else by its header alone. Raises RequestError
    for whatever goes wrong in the block."""
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    with _told(source, name), Image.open(source, formats=formats) as image:
        check_pixels(name, *image.size)
        if image.width * image.height > most:
            raise RequestError(
                f"{name} has {image.width}x{image.height} pixels, {image.width * image.height / 1e6:.0f} million; "
                f"at most {most // 10**6} million are read: make it smaller"
            )
        if decoded:
            image.load()
        yield image


def _check_file(file: Path, name: str) -> None:
    size = file.stat().st_size
    if not file.is_file():
        raise RequestError(f"{name} cannot be read as a picture (it is no file)")
    if size > LARGEST_FILE:
        raise RequestError(
            f"{name} has {size / 2**20:.0f} MB; at most {LARGEST_FILE // 2**20} are read: make it smaller"
        )
