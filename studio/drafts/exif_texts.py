"""The texts in EXIF data. A text is decoded by what it holds, since programs differ from the standard and each other.

EXIF data is a TIFF structure: directories of tags, each with a type, a count and a value (Exif 3.0, 4.6.2; TIFF 6.0).
It is read here because a library reads every tag, and a hostile file can point thousands of tags at the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import IO

NAMES: Mapping[int, str] = {
    0x010E: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x02BC: "XMP",
    0x927C: "MakerNote",
    0x9286: "UserComment",
    0x9C9C: "XPComment",
}
"""Tags that hold texts of programs that make pictures. XMP is a text only in a TIFF file."""
MOST_TAGS = 2_000
"""Most tags of one directory that are looked at."""
_EXIF = 0x8769
_BYTES = (1, 2, 6, 7, 129)
"""Types of one byte each: BYTE, ASCII, SBYTE, UNDEFINED, UTF-8."""
_CHARSET = re.compile(rb'charset="?[\w-]++"?[ \0]', re.IGNORECASE)


def texts(source: bytes | IO[bytes], longest: int) -> dict[str, str]:
    """The texts by the names of their tags; {} for what is no EXIF data. source: the data, or a TIFF file. longest:
    bytes of one text; a longer one is cut off there. A tag of the Exif directory goes before the same one outside."""
    if isinstance(source, bytes):
        source = io.BytesIO(source.removeprefix(b"Exif\0\0"))
    reading = _Reading(source, longest)
    found: dict[str, str] = {}
    for tag, data in reading.tags():
        text = comment(data, big=reading.big) if tag != 0x9C9C else _decoded(data, "utf-16-le")
        if text.strip():
            found[NAMES[tag]] = text
    return found


class _Reading:
    """Reads the directories of a TIFF structure. What lies outside of the file counts as absent."""

    def __init__(self, file: IO[bytes], longest: int) -> None:
        self._file, self._longest = file, longest
        head = self._at(0, 8)
        self.big = head[:2] == b"MM"
        self._sound = len(head) == 8 and head[:4] in (b"MM\0*", b"II*\0")
        self._first = self._number(head[4:])

    def tags(self) -> Iterator[tuple[int, bytes]]:
        """The wanted tags of the first directory, then those of its Exif directory."""
        if not self._sound:
            return
        within = 0
        for tag, kind, value in self._entries(self._first):
            if tag == _EXIF:
                within = self._number(value[4:])
            elif tag in NAMES and kind in _BYTES:
                yield tag, self._value(value)
        if within:
            for tag, kind, value in self._entries(within):
                if tag in NAMES and kind in _BYTES:
                    yield tag, self._value(value)

    def _entries(self, place: int) -> Iterator[tuple[int, int, bytes]]:
        """(tag, type, count and value) of each entry; of two with one tag, the first."""
        count = self._number(self._at(place, 2))
        data = self._at(place + 2, 12 * min(count, MOST_TAGS))
        seen = set()
        for start in range(0, len(data) - 11, 12):
            tag = self._number(data[start : start + 2])
            if tag not in seen:
                yield tag, self._number(data[start + 2 : start + 4]), data[start + 4 : start + 12]
            seen.add(tag)

    def _value(self, value: bytes) -> bytes:
        count = min(self._number(value[:4]), self._longest)
        return value[4 : 4 + count] if count <= 4 else self._at(self._number(value[4:]), count)

    def _at(self, place: int, count: int) -> bytes:
        self._file.seek(place)
        return self._file.read(count)

    def _number(self, data: bytes) -> int:
        return int.from_bytes(data, "big" if self.big else "little")


def comment(data: bytes, *, big: bool = True) -> str:
    """The text of a user comment, with or without the eight bytes that name its characters: UTF-16 of either order,
    with or without a byte-order mark, UTF-8, JIS or latin-1. big: the byte order of the EXIF data, for a UTF-16 text
    that does not show its own."""
    head, rest = data[:8].upper(), data[8:]
    if head == b"UNICODE\0":
        return _guessed(rest, wide=True, big=big)
    if head == b"JIS\0\0\0\0\0":
        for code in ("iso2022_jp", "utf-8", "cp932"):
            try:
                return _cleaned(rest.decode(code))
            except UnicodeDecodeError:
                continue
        return _guessed(rest, big=big)
    if head in (b"ASCII\0\0\0", bytes(8)):
        return _guessed(rest, big=big)
    if (named := _CHARSET.match(data)) is not None:
        return _guessed(data[named.end() :], big=big)
    return _guessed(data, big=big)


def _guessed(data: bytes, *, wide: bool = False, big: bool) -> str:
    """wide: whether it is said to be UTF-16, which it is not always."""
    for mark, code in ((b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"), (b"\xef\xbb\xbf", "utf-8")):
        if data.startswith(mark):
            return _decoded(data[len(mark) :], code)
    body = data.rstrip(b"\0")
    first, second = body[0::2].count(0), body[1::2].count(0)  # a space, a comma, a digit: a zero and a letter
    if first != second and (wide or first + second > len(body) // 8):
        return _decoded(data, "utf-16-be" if first > second else "utf-16-le")
    try:
        if not wide or not body or body.isascii():
            return _cleaned(body.decode("utf-8"))
    except UnicodeDecodeError:
        return _decoded(body, "latin-1")
    return _decoded(data, "utf-16-be" if big else "utf-16-le")


def _decoded(data: bytes, code: str) -> str:
    if code.startswith("utf-16"):
        data = data[: len(data) // 2 * 2]
    return _cleaned(data.decode(code, "replace"))


def _cleaned(text: str) -> str:
    return text.replace("\0", "").lstrip("\ufeff")
