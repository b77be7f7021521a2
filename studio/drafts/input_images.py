"""Pictures that a request is given: its initial image and its mask. They are read whole, or only by size, and
identified by a hash of their pixels.

They come as files. A mask may also come as text, as pictures of ours hold it: a `data:` URL of a PNG (RFC 2397).
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from pipelines.errors import RequestError
from pipelines.home.paths import expanded
from pipelines.inpainting import grey
from studio.drafts import picture_file

MOST_INPUT_PIXELS = 40_000_000
"""Most pixels of such a picture, which is decoded for every picture that needs it. A camera's picture has half as
many."""
MOST_JUDGED = 256
"""Pictures whose sizes are remembered at once."""
PREFIX = "data:image/png;base64,"
LONGEST_INLINE = 300_000
"""Most characters of a picture that is text."""
MASK = "mask"
"""The field whose picture is read as a mask, and stored in pictures."""


@dataclass(frozen=True)
class Inline:
    """A small picture that is text: a `data:` URL of a PNG. field: whose it is, for messages.

    Raises RequestError for any other text. Its pixels are judged when they are read.
    """

    text: str
    field: str = MASK

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST_INLINE:
            raise RequestError(
                f"{self.field}: {len(self.text)} characters are more than {LONGEST_INLINE}; give it as a file"
            )
        try:
            if not self.text.startswith(PREFIX):
                raise ValueError("another type")
            base64.b64decode(self.text[len(PREFIX) :], validate=True)
        except ValueError as error:
            raise RequestError(
                f"{self.field}: as text it must begin with {PREFIX} and go on in base64; or give the path of a file"
            ) from error

    @property
    def data(self) -> bytes:
        """The PNG file's bytes."""
        return base64.b64decode(self.text[len(PREFIX) :])

    def __str__(self) -> str:
        return self.text


InputImage: TypeAlias = Path | Inline


def input_image(field: str, text: str, folder: Path | None = None) -> InputImage:
    """What a text names: a `data:` URL, or a path, relative to `folder`. Raises RequestError."""
    return Inline(text, field) if text.startswith("data:") else (folder or Path()) / expanded(text)


def read_input(field: str, source: InputImage) -> Image.Image:
    """The picture, turned upright, the first one of a file that holds several: "L" for a mask, else RGB. Raises
    RequestError."""
    said = field.replace("_", " ")
    if isinstance(source, Inline):
        image = picture_file.upright(io.BytesIO(source.data), f"{said}, as text,", MOST_INPUT_PIXELS)
    else:
        image = picture_file.upright(source, f"{said} {source.name}", MOST_INPUT_PIXELS)
    if field == MASK:
        return grey(image)
    return image if image.mode == "RGB" else image.convert("RGB")


class Sized(Image.Image):
    """A picture's size without its pixels. Nothing more is needed to judge a request."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._mode, self._size = "RGB", size


_judged: dict[tuple[object, ...] | None, tuple[int, int]] = {}
_judging = threading.Lock()  # guards the mapping; never held while files are looked at


def sized_like(field: str, source: InputImage) -> Sized:
    """The size of a picture. A file is decoded once, and again only after it changes: thousands of pictures may start
    from it. Raises RequestError for what is no picture."""
    sign = _sign(source)
    with _judging:
        size = _judged.get(sign)
    if size is None or sign is None:
        size = read_input(field, source).size
        with _judging:
            if sign is not None:
                _judged[sign] = size
            while len(_judged) > MOST_JUDGED:
                del _judged[next(iter(_judged))]
    return Sized(size)


def _sign(source: InputImage) -> tuple[object, ...] | None:
    """A value that changes when the picture changes; None where a file cannot be looked at."""
    if isinstance(source, Inline):
        return (hashlib.sha256(source.text.encode()).digest(),)
    try:
        seen = source.stat()
    except (OSError, ValueError):
        return None
    return source, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def picture_mark(image: Image.Image) -> dict[str, Any]:
    """What identifies an initial image: its size and the sha256 of its pixels."""
    pixels = image.convert("RGB")
    return {"size": pixels.size, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}


def mask_mark(mask: Image.Image) -> dict[str, Any]:
    """A mask as a record holds it: what identifies it, and under "png" its pixels as text. A mask that is too large for
    that is stored smaller; "size" tells that of the mask itself."""
    own = grey(mask)
    mark = {"size": own.size, "sha256": hashlib.sha256(own.tobytes()).hexdigest()}
    while True:
        file = io.BytesIO()
        own.save(file, format="PNG", optimize=True)
        text = PREFIX + base64.b64encode(file.getvalue()).decode()
        if len(text) <= LONGEST_INLINE:
            return {**mark, "png": text}
        own = own.resize((max(own.width // 2, 1), max(own.height // 2, 1)), Image.Resampling.BOX)


def stored_mask(mark: object) -> Inline | None:
    """The mask in a record; None where there is none that can be read."""
    text = mark.get("png") if isinstance(mark, Mapping) else None
    try:
        return Inline(text) if isinstance(text, str) else None
    except RequestError:
        return None
