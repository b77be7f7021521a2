"""Files by name: listing what is under some folders, naming each file as shortly as possible, and looking names up.

A name is a file's stem, or the name of a model's folder; case does not matter. Where two are equal, both are written
`folder/stem`, with more folders in front if need be. Names are looked up in the listing and never joined to a path, so
no name leads out of the folders. Links that lead out are not listed.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipelines.home.answers import NoAnswer, Question, ask, is_silent, sign
from pipelines.home.files import is_whole_text


@dataclass(frozen=True)
class Entry:
    """A file or a model's folder, and the name by which it is known.

    model: for an embedded adapter, the name of the embedded model that it is made for; else None.
    embedded: whether it ships with the program.
    """

    name: str
    path: Path
    model: str | None = None
    embedded: bool = False


Wanted = Callable[[Path, str, bool], bool]
"""(folder, name in it, whether that is a folder) -> whether it is to be listed."""


def scan(roots: Sequence[Path], wanted: Wanted) -> list[Path]:
    """All that is wanted under the roots, root by root, sorted by path within each. No file is opened.

    Links are followed if they lead to a place under a root. Left out are: hidden files and folders; what is inside a
    folder that is itself wanted; what is neither a folder nor a regular file; names that cannot be written as UTF-8.
    A root that does not exist, or does not answer at present (see `answers`), counts as empty.
    """
    walks = [_Walk(str(root), folders=[(str(root), "")]) for root in roots]
    calls = [_ask(walk.named, partial(_walk, walk, wanted)) for walk in walks]  # all at once
    walks = [
        _told(walk, call, partial(_walk, wanted=wanted)) for walk, call in zip(walks, calls, strict=True)
    ]
    inside = [walk.root for walk in walks if walk.root]
    seen = {real for walk in walks for real in walk.files}
    found: list[Path] = []
    taken: set[str] = set()
    for walk in walks:
        files = [file for real, listed in walk.files.items() if real not in taken for file in listed]
        taken |= walk.files.keys()
        if walk.links:
            follow = partial(_follow, inside=inside, seen=frozenset(seen), wanted=wanted)
            links = _Walk(f"{walk.named} (its links)", links=walk.links)
            links = _told(links, _ask(links.named, partial(follow, links)), follow)
            files += [file for listed in links.files.values() for file in listed]
            seen |= links.files.keys()
        found += sorted(map(Path, files))
    return found


@dataclass
class _Walk:
    """A walk through a root, and what it has found so far.

    named: the root as it was given. root: its real path. folders: those still to be listed, each with its real path (""
    where that is not known yet). links: those still to be followed. files: real path of a folder -> what is wanted in
    it. ended: nobody waits for the rest.
    """

    named: str
    root: str = ""
    folders: list[tuple[str, str]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    ended: bool = False

    def without_what_hangs(self) -> _Walk:
        """End this walk, and return one that another thread can continue.

        This one's thread hangs in a folder that it has already taken off the lists.
        """
        self.ended = True
        files = {real: list(listed) for real, listed in list(self.files.items())}
        return _Walk(self.named, self.root, list(self.folders), list(self.links), files)


def _ask(named: str, work: Callable[[], None]) -> Question[None] | None:
    try:
        return ask(named, work)
    except NoAnswer:
        return None


def _told(walk: _Walk, call: Question[None] | None, go_on: Callable[[_Walk], None]) -> _Walk:
    """Wait for a walk to be over, and return it.

    Where a folder does not answer, `go_on` continues the walk on another thread, without that folder. Where the root
    itself does not answer, the walk ends.
    """
    while call is not None:
        try:
            call.result()
            break
        except NoAnswer:
            walk = walk.without_what_hangs()
            call = _ask(walk.named, partial(go_on, walk))
    return walk


def _walk(walk: _Walk, wanted: Wanted) -> None:
    """List a root and the folders in it. No link is followed: it might lead to a folder that does not answer."""
    walk.root = walk.root or os.path.realpath(walk.named)
    _list(walk, wanted, frozenset())


def _follow(walk: _Walk, inside: Sequence[str], seen: Set[str], wanted: Wanted) -> None:
    """Follow a walk's links, if they lead to a place inside the roots; to folders only if these were not seen yet."""
    while (walk.links or walk.folders) and not walk.ended:
        _list(walk, wanted, seen)
        if not walk.links:
            break
        link = walk.links.pop()
        sign(link)
        try:
            target = os.path.join(os.path.dirname(link), os.readlink(link))
            if is_silent(link) or is_silent(target) or not _within(link, inside):
                continue
            mode = os.stat(link).st_mode
        except (OSError, ValueError):  # it leads nowhere, or in a circle
            continue
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            continue
        folder, name = os.path.split(link)
        if wanted(Path(folder), name, stat.S_ISDIR(mode)):
            walk.files[link] = [link]
        elif stat.S_ISDIR(mode):
            walk.folders.append((link, ""))


def _list(walk: _Walk, wanted: Wanted, seen: Set[str]) -> None:
    """List the folders of a walk, and all folders in them."""
    while walk.folders and not walk.ended:
        folder, real = walk.folders.pop()
        sign(folder)
        if is_silent(folder):
            continue
        try:
            real = real or os.path.realpath(folder)
            if real in seen or real in walk.files:  # a root inside another, or a link in a circle
                continue
            if folder != walk.named and wanted(Path(folder).parent, os.path.basename(folder), True):
                walk.files[real] = [folder]
                continue
            entries = list(os.scandir(folder))
        except (OSError, ValueError):
            continue
        sign()
        files, path = walk.files.setdefault(real, []), Path(folder)
        for entry in entries:
            if entry.name.startswith(".") or not is_whole_text(entry.name):
                continue
            try:
                if entry.is_symlink():
                    walk.links.append(entry.path)
                elif not entry.is_dir(follow_symlinks=False):
                    if entry.is_file(follow_symlinks=False) and wanted(path, entry.name, False):
                        files.append(entry.path)
                else:  # on Windows, a folder that is no link may still lead elsewhere
                    below = os.path.join(real, entry.name) if os.name == "posix" else ""
                    walk.folders.append((entry.path, below))
            except OSError:
                continue
            sign()


def _within(path: str, roots: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, root]) == root for root in roots if os.path.isabs(root))


def name_entries(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same entries, each with the shortest name that no other has. Their present names are ignored."""
    spellings = {entry.path: _spellings(entry.path) for entry in entries}
    counts = Counter(spelling.casefold() for names in spellings.values() for spelling in set(names))

    def shortest(path: Path) -> str:
        return next((name for name in spellings[path] if counts[name.casefold()] == 1), spellings[path][-1])

    return tuple(Entry(shortest(e.path), e.path, e.model, e.embedded) for e in entries)


def find(name: str, entries: Sequence[Entry], model: str | None = None) -> Entry | list[Entry]:
    """The entry of that name; or, where there is not exactly one, a list of those that it could mean, perhaps empty.

    A name may have more folders than needed, and the ending .safetensors. Entries that are made for `model` are taken
    first, then those that are made for no embedded model, then all others.
    """
    wanted = name.replace("\\", "/").removesuffix(".safetensors").strip("/")
    stem = wanted.rpartition("/")[2].casefold()
    likely = [(e, _spellings(e.path)) for e in entries if _stem(e.path).casefold() == stem]
    for spelled in (str, str.casefold):
        matches = [e for e, spellings in likely if spelled(wanted) in {spelled(s) for s in spellings}]
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
    """The names most like this one, at most `count`. [] for one that is too long to be a name."""
    if len(name) > _LONGEST:
        return []
    names = {entry.name.casefold(): entry.name for entry in entries}
    stems = {entry.name.casefold().rpartition("/")[2]: entry.name for entry in entries}
    table = stems | names
    matches = difflib.get_close_matches(name.casefold(), table, n=count + 2, cutoff=0.5)
    return list(dict.fromkeys(table[match] for match in matches))[:count]


def _spellings(path: Path) -> list[str]:
    """All ways to write a file's name, from the bare stem to the whole path."""
    stem = _stem(path)
    folders = [part for part in path.parts[:-1] if part != path.anchor]
    return [stem, *("/".join([*folders[-count:], stem]) for count in range(1, len(folders) + 1))]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".safetensors")


_LONGEST = 300  # characters; comparing thousands of names with a longer one takes too long
