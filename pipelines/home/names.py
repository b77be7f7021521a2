"""Files by name: what lies under some folders, the shortest name that tells each from the others, and lookup.

A name is a file's stem (for a model folder, the folder's name), upper and lower case alike. Where two share
it, both are written `folder/stem`, with more folders in front if need be. Names are looked up in the listing
and never joined to a path, so that no name leads out of the folders; links that do are not listed.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A file or model folder and the name it goes by.

    model: the embedded model an embedded adapter is made for; None for the user's own files.
    embedded: it ships with the program.
    """

    name: str
    path: Path
    model: str | None = None
    embedded: bool = False


Wanted = Callable[[Path, str, bool], bool]
"""(folder, name in it, whether that is a folder) -> whether it is one of the things to list."""


def scan(roots: Sequence[Path], wanted: Wanted) -> list[Path]:
    """What is wanted under the roots, sorted by path within each; no file is opened.

    Links are followed as long as they stay under a root; hidden folders are left out, and so is all inside a
    folder that is itself wanted. Roots that do not exist are empty.
    """
    inside = [os.path.realpath(root) for root in roots]
    seen: set[str] = set()
    return [path for root in roots for path in sorted(_walk(str(root), inside, seen, wanted))]


def _walk(folder: str, inside: Sequence[str], seen: set[str], wanted: Wanted) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:  # a root inside another, or a link in a circle
        return
    seen.add(real)
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") or (entry.is_symlink() and not _within(entry.path, inside)):
            continue
        is_folder = entry.is_dir()
        if wanted(Path(folder), entry.name, is_folder):
            yield Path(entry.path)
        elif is_folder:
            yield from _walk(entry.path, inside, seen, wanted)


def _within(path: str, roots: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, root]) == root for root in roots if os.path.isabs(root))


def name_entries(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same entries, each under the shortest name that no other has; `name` on entry is ignored."""
    spellings = {entry.path: _spellings(entry.path) for entry in entries}
    counts = Counter(spelling.casefold() for names in spellings.values() for spelling in set(names))

    def shortest(path: Path) -> str:
        return next((name for name in spellings[path] if counts[name.casefold()] == 1), spellings[path][-1])

    return tuple(Entry(shortest(e.path), e.path, e.model, e.embedded) for e in entries)


def find(name: str, entries: Sequence[Entry], model: str | None = None) -> Entry | list[Entry]:
    """The entry of that name, or, where there is not exactly one, those that it could mean (perhaps none).

    A name may be written with more folders than needed, and with the ending .safetensors. Adapters made for
    `model` come before others, and those of another embedded model come last.
    """
    wanted = name.replace("\\", "/").removesuffix(".safetensors").strip("/")
    for spelled in (str, str.casefold):
        matches = [e for e in entries if spelled(wanted) in {spelled(s) for s in _spellings(e.path)}]
        for group in (
            [e for e in matches if model is not None and e.model == model],
            [e for e in matches if e.model is None or model is None],
            matches,
        ):
            if len(group) == 1:
                return group[0]
            if group:
                return group
    return []


def near(name: str, entries: Sequence[Entry], count: int = 3) -> list[str]:
    """The names most like this one."""
    names = {entry.name.casefold(): entry.name for entry in entries}
    stems = {entry.name.casefold().rpartition("/")[2]: entry.name for entry in entries}
    table = stems | names
    matches = difflib.get_close_matches(name.casefold(), table, n=count + 2, cutoff=0.5)
    return list(dict.fromkeys(table[match] for match in matches))[:count]


def _spellings(path: Path) -> list[str]:
    """From the bare stem to the whole path: every way to write a file's name."""
    stem = path.name.removesuffix(".safetensors")
    folders = [part for part in path.parts[:-1] if part != path.anchor]
    return [stem, *("/".join([*folders[-count:], stem]) for count in range(1, len(folders) + 1))]
