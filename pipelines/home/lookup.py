"""Files that a name means though it is not theirs alone: identical copies, and files that call themselves so.

What was decided is told with the file: `note_on` gives it to whoever loads it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pipelines.errors import StudioError
from pipelines.home.answers import answered, each
from pipelines.home.files import open_regular, sha256_of
from pipelines.home.headers import LONGEST_HEADER
from pipelines.home.names import Entry, same_name
from pipelines.home.plain import read_json
from pipelines.home.scanning import scan

MOST_COPIES = 16
"""Most files of one name and size that are compared."""
PATIENCE = 5.0
"""Seconds in which headers are looked through for a name. What was read by then is remembered."""

_MOST_NOTES = 1_000
_NOTES: dict[Path, str] = {}


def note_on(path: Path) -> str:
    """What is to be told of how this file was found; "" where nothing is."""
    return _NOTES.get(path, "")


def _told(entry: Entry, note: str) -> Entry:
    while len(_NOTES) >= _MOST_NOTES:
        _NOTES.pop(next(iter(_NOTES)), None)
    _NOTES[entry.path] = note
    return replace(entry, note=note)


def one_of_copies(found: Sequence[Entry]) -> Entry | None:
    """The first of several files if all hold the same bytes; else None. Nothing is read where their sizes differ."""
    if not 2 <= len(found) <= MOST_COPIES:
        return None
    try:
        stamps = [_stamp(entry.path) for entry in found]
        if len({size for size, _ in stamps}) > 1 or not stamps[0][0]:
            return None
        digests = {_digest(entry.path, *stamp) for entry, stamp in zip(found, stamps, strict=True)}
    except (OSError, StudioError):
        return None
    if len(digests) > 1:
        return None
    first, *others = found
    copies = ", ".join(repr(_place(entry.path)) for entry in others)
    return _told(first, f"{_place(first.path)!r} is used; an identical copy is {copies}")


def _place(path: Path) -> str:
    """A file with the folder that it is in: more of its path is not for everybody."""
    return f"{path.parent.name}/{path.name}"


def by_own_name(name: str, entries: Sequence[Entry]) -> list[Entry]:
    """The files whose header calls them so (`ss_output_name`, which A1111 takes for an alias)."""
    end = time.monotonic() + PATIENCE

    def look(path: Path) -> str:
        try:
            return "" if time.monotonic() > end else _own_name(path, *_stamp(path))
        except (OSError, StudioError):
            return ""

    own = each((entry.path for entry in entries if not entry.embedded), look)
    return [
        _told(
            entry, f"{entry.name!r} was found by the name in its header (ss_output_name), {own[entry.path]!r}"
        )
        for entry in entries
        if own.get(entry.path) and same_name(own[entry.path], name)
    ]


_PICKLE = "a pickle, which can run code when it is opened, and is not read; use its .safetensors file"
_NOT_OPENED = {
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), _PICKLE),
    ".gguf": "a GGUF file (quantized), which is not read; use a .safetensors file",
    ".sft": "not listed; rename it to .safetensors",
}
"""Endings of weights that are not listed -> what to say of such a file."""


def of_another_ending(name: str, roots: Sequence[Path]) -> str:
    """What to say of a name that only a file under the roots has which is not opened; "" for other names."""
    wanted = name.replace("\\", "/").rpartition("/")[2]
    stem = wanted.rpartition(".")[0] if Path(wanted).suffix.lower() in _NOT_OPENED else wanted
    if not stem:
        return ""

    def is_it(folder: Path, name: str, is_folder: bool) -> bool:
        before, _, ending = name.rpartition(".")
        return not is_folder and f".{ending.lower()}" in _NOT_OPENED and same_name(before, stem)

    found = scan(roots, is_it)
    return f"{found[0].name} is {_NOT_OPENED[found[0].suffix.lower()]}" if found else ""


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file: what was read of it holds until they change."""
    stat = answered(path, path.stat)
    return stat.st_size, stat.st_mtime_ns


@lru_cache(4096)
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


_OWN_NAME = re.compile(rb'"ss_output_name"\s*:\s*("(?:[^"\\]|\\.){1,300}")')


@lru_cache(2**15)
def _own_name(path: Path, size: int, changed: int) -> str:
    """The `ss_output_name` in a file's header, "" where there is none. The header is searched, not parsed."""

    def read() -> bytes:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            return file.read(length) if length <= min(LONGEST_HEADER, size) else b""

    found = _OWN_NAME.search(answered(path, read))
    try:
        return "" if found is None else str(read_json(found[1], "the name", mended=True))
    except StudioError:
        return ""
