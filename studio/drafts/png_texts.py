"""The texts in a PNG, and its EXIF data. Its pixels are skipped, never decoded.

A PNG is a signature, then chunks of length, type, data and checksum. Texts lie before or behind the pixels, in chunks
tEXt (latin-1), zTXt (the same, compressed) and iTXt (UTF-8, compressed or not):
https://www.w3.org/TR/png-3/#11textinfo. Malformed chunks are skipped as Pillow skips them, so that the result equals
Pillow's `image.info`, with two exceptions. Some programs write UTF-8 where latin-1 belongs; it is read as what it is.
Of two texts with one name the last counts, as in Pillow, but an empty one never does, and the one before is kept too.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 200_000
"""Most chunks of one picture. Programs write its pixels in chunks of 8 kB and more."""
ROOM = 2**20
"""Bytes allowed for what precedes the texts: their names and languages."""
DENSEST = 1032
"""Bytes that one byte compressed by zlib can become, at most."""
KINDS = (b"tEXt", b"zTXt", b"iTXt")
EXIF = b"eXIf"
EARLIER = " (earlier)"
"""What stands behind a text's name where a later one of the same name says something else."""
PROFILES = ("Raw profile type exif", "Raw profile type APP1")
"""Texts that hold EXIF data: a line break, a name, a length, and the bytes as hexadecimal digits."""


class TooLong(ValueError):
    """The texts are too long. length: of what was read so far; there may be more."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length


def size(file: IO[bytes]) -> tuple[int, int] | None:
    """Width and height of a PNG, read from its start; None for any other file."""
    file.seek(0)
    head = file.read(24)
    if len(head) < 24 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def texts(file: IO[bytes], longest: int) -> dict[str, str]:
    """The texts of a PNG by name; of several with one name the last two, the first of these with `EARLIER`. longest:
    characters of all together.

    Raises TooLong, and ValueError for too many chunks and for texts that are compressed in an unknown way.
    """
    return texts_and_exif(file, longest)[0]


def texts_and_exif(file: IO[bytes], longest: int) -> tuple[dict[str, str], bytes]:
    """As `texts`, with the EXIF data, b"" where there is none."""
    reading = _Reading(file, longest)
    found: dict[str, str] = {}
    exif = b""
    length = 0
    for kind, data in reading.chunks():
        if kind == EXIF:
            exif = exif or data
            continue
        named = reading.text(kind, data)
        if named is not None:
            length += len(named[1])
            if length > longest:
                raise TooLong(length)
            name, text = named
            before = found.get(name, "")
            if before.strip() and text != before:
                if not text.strip():
                    continue
                found[name + EARLIER] = before
            found[name] = text
    for name in PROFILES:
        if not exif and name in found:
            exif = _profile(found[name])
    return found, exif


def _profile(text: str) -> bytes:
    digits = "".join(text.split("\n")[3:])
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _decoded(data: bytes) -> str:
    """The text of a chunk that should be latin-1; bytes that are UTF-8 are no other words by chance."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


class _Reading:
    """Reads chunks, and counts every byte that is read or decompressed, whether or not it becomes text."""

    def __init__(self, file: IO[bytes], longest: int) -> None:
        self._file = file
        self._taken, self._most = 0, 4 * longest + ROOM  # a character takes up to four bytes of UTF-8

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """The complete text chunks, up to the end or to the second frame of an animation."""
        file = self._file
        end = file.seek(0, os.SEEK_END)
        place, pixels = len(SIGNATURE), False
        for _ in range(MOST_CHUNKS):
            file.seek(place)
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if len(head) < 8 or kind == b"IEND" or (kind == b"fcTL" and pixels):
                return
            pixels = pixels or kind == b"IDAT"
            if kind in (*KINDS, EXIF) and place + 8 + length <= end:
                self._take(length)
                yield kind, file.read(length)
            place += 12 + length
            if place >= end:
                return
        raise ValueError(f"it has more than {MOST_CHUNKS} chunks")

    def text(self, kind: bytes, data: bytes) -> tuple[str, str] | None:
        """The name and the text of a chunk; None where it has no text."""
        key, _, rest = data.partition(b"\0")
        name = key.decode("latin-1")
        if kind == b"iTXt":
            text = self._international(rest)
            return None if text is None else (name, text)
        if kind == b"zTXt":
            if rest[:1] not in (b"", b"\0"):
                raise ValueError(f"its text {name[:40]!r} is packed in an unknown way")
            rest = self._unpacked(rest[1:]) or b""
        elif key == b"exif":  # not of text, whatever its chunk says
            return None
        return (name, _decoded(rest)) if key else None

    def _international(self, data: bytes) -> str | None:
        """The text of an iTXt chunk; None where it is damaged. data: whether and how it is compressed, a language, the
        name in that language, and the text."""
        parts = data[2:].split(b"\0", 2)
        if len(parts) < 3 or (data[0] and data[1]):
            return None
        text = self._unpacked(parts[2]) if data[0] else parts[2]
        try:
            parts[0].decode(), parts[1].decode()
            return None if text is None else text.decode()
        except UnicodeDecodeError:
            return None

    def _unpacked(self, data: bytes) -> bytes | None:
        """The decompressed data; None where it is damaged. Raises TooLong before more than is allowed comes out."""
        unpacking = zlib.decompressobj()
        try:
            text = unpacking.decompress(data, self._most - self._taken + 1)
        except zlib.error:
            self._take(min(len(data) * DENSEST, self._most // 16))  # as much may have come out before
            return None
        self._take(len(text))
        return text

    def _take(self, length: int) -> None:
        self._taken += length
        if self._taken > self._most:
            raise TooLong(self._taken)
