"""Lists what is under some folders. Links that lead out of them are not listed, but told (`LeftOut`)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipelines.home.answers import NoAnswer, Question, ask, is_silent, sign
from pipelines.home.files import is_whole_text, whole_text
from pipelines.home.names import LeftOut, stem_of

MOST_LEFT_OUT = 1_000

_OTHERS = (
    ".json", ".info", ".txt", ".md", ".yaml", ".yml", ".toml", ".csv", ".html", ".log", ".png", ".jpg", ".jpeg", ".gif",
    ".webp", ".mp4", ".ckpt", ".pt", ".pth", ".bin", ".zip", ".py", ".sh",
)  # fmt: skip
"""Endings of what certainly is no folder."""


Wanted = Callable[[Path, str, bool], bool]
"""(folder, name in it, whether that is a folder) -> whether it is to be listed."""


def scan(roots: Sequence[Path], wanted: Wanted, left_out: list[LeftOut] | None = None) -> list[Path]:
    """All that is wanted under the roots, root by root, sorted by path within each. No file is opened.

    Links are followed if they lead to a place under a root. Left out are: hidden files and folders; what is inside a
    folder that is itself wanted; what is neither a folder nor a regular file; names that cannot be written as UTF-8.
    A root that does not exist, or does not answer at present (see `answers`), counts as empty.

    left_out: gets what looks as if it should be listed, at most `MOST_LEFT_OUT`: links that lead elsewhere, and names
    that are no UTF-8.
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
            walk.left_out += links.left_out
        found += sorted(map(Path, files))
    if left_out is not None:
        listed = dict.fromkeys(one for walk in walks for one in walk.left_out)
        left_out += sorted(listed, key=lambda one: str(one.path))[:MOST_LEFT_OUT]
    return found


@dataclass
class _Walk:
    """A walk through a root, and what it has found so far.

    named: the root as it was given. root: its real path. folders: those still to be listed, each with its real path (""
    where that is not known yet). links: those still to be followed. files: real path of a folder -> what is wanted in
    it. left_out: what looks as if it should be among them. ended: nobody waits for the rest.
    """

    named: str
    root: str = ""
    folders: list[tuple[str, str]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    ended: bool = False

    def without_what_hangs(self) -> _Walk:
        """End this walk, and return one that another thread can continue.

        This one's thread hangs in a folder that it has already taken off the lists.
        """
        self.ended = True
        files = {real: list(listed) for real, listed in list(self.files.items())}
        return _Walk(self.named, self.root, list(self.folders), list(self.links), files, list(self.left_out))

    def leave_out(self, path: str, why: str) -> None:
        if len(self.left_out) < MOST_LEFT_OUT:
            self.left_out.append(LeftOut(Path(path), why))


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
            if is_silent(link) or is_silent(target):
                continue
            if not _within(link, inside):
                _leave_out(
                    walk, link, wanted, f"it is a link that leads outside the folders, to {_away(link)}"
                )
                continue
            mode = os.stat(link).st_mode
        except (OSError, ValueError):  # it leads nowhere, or in a circle
            _leave_out(walk, link, wanted, "it is a link that leads nowhere", folders=False)
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
            if entry.name.startswith("."):
                continue
            if not is_whole_text(entry.name):
                _leave_out(walk, entry.path, wanted, "its name is no UTF-8; rename it")
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


def _leave_out(walk: _Walk, path: str, wanted: Wanted, why: str, *, folders: bool = True) -> None:
    """Note what might be a file that is wanted, or a folder of such. It is not looked at: it may not answer."""
    folder, name = os.path.split(path)
    maybe_folder = folders and os.path.splitext(name)[1].lower() not in _OTHERS
    if wanted(Path(folder), name, False) or maybe_folder:
        walk.leave_out(path, why)


def _away(link: str) -> str:
    """Where a link leads, and what to do about it: the folder to add is its target, or the one that holds it."""
    real = whole_text(os.path.realpath(link))
    return f"{real}; add that folder ({real if stem_of(link) == link else os.path.dirname(real)})"


def _within(path: str, roots: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, root]) == root for root in roots if os.path.isabs(root))
