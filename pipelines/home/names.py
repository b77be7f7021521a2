"""Files by name: naming each file as shortly as possible, and looking names up.

A name is a file's stem, or the name of a model's folder; case does not matter, nor does how Unicode writes an accent.
A file that is called as its writer calls all (`pytorch_lora_weights`) has its folder's name. Where two are equal, both
are written `folder/stem`, with more folders in front if need be. Names are looked up in the listing
(`pipelines.home.scanning`) and never joined to a path, so no name leads out of the folders.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.home.files import whole_text


@dataclass(frozen=True)
class Entry:
    """A file or a model's folder, and the name by which it is known.

    model: for an embedded adapter, the name of the embedded model that it is made for; else None.
    embedded: whether it ships with the program. foldered: whether it has its folder's name.
    note: what is to be told of how it was found, "" where nothing is.
    """

    name: str
    path: Path
    model: str | None = None
    embedded: bool = False
    foldered: bool = False
    note: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Something in the folders that is not listed, though it looks as if it should be. why: a sentence on it."""

    path: Path
    why: str

    @property
    def name(self) -> str:
        """Its name as it can be written."""
        return whole_text(stem_of(self.path.name))


WRITERS_NAMES = ("adapter_model", "pytorch_lora_weights")
"""What PEFT and diffusers call every adapter; the folder tells which it is."""

WEIGHTS = ".safetensors"


def name_entries(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same entries, each with the shortest name that no other has. Their present names are ignored.

    Files that differ by case alone keep theirs; a file goes before a folder of its name, and a model's folder before a
    file, which then has its ending.
    """
    spellings = {entry.path: {name: _folded(name) for name in _spellings(entry)} for entry in entries}
    files = [spellings[entry.path] for entry in entries if not entry.foldered]
    all_folded = Counter(one for names in spellings.values() for one in set(names.values()))
    folded = Counter(one for names in files for one in set(names.values()))
    exact = Counter(name for names in files for name in names)

    def shortest(entry: Entry) -> str:
        names = spellings[entry.path]
        last = next(reversed(names))
        if entry.foldered:
            own = (name for name, one in names.items() if all_folded[one] == 1 and one not in WRITERS_NAMES)
            return next(own, last)
        if (name := next((name for name, one in names.items() if folded[one] == 1), None)) is not None:
            return name
        alike = exact[last]  # more than one where a folder and a file differ by the ending alone
        name = next(name for name in names if exact[name] == alike)
        return name if alike == 1 else name + entry.path.name[len(stem_of(entry.path.name)) :]

    return tuple(replace(entry, name=shortest(entry)) for entry in entries)


def find(
    name: str, entries: Sequence[Entry], model: str | None = None, roots: Sequence[Path] = ()
) -> Entry | list[Entry]:
    """The entry of that name; or, where there is not exactly one, a list of those that it could mean, perhaps empty.

    The name that it is listed by comes first. A name may have more folders than needed, folders written with "\\", and
    the ending .safetensors. Entries that are made for `model` are taken first, then those that are made for no embedded
    model, then all others.

    roots: where given, a name may have folders up to these, but none above: where they are is not for everybody.
    """
    listed = [entry for entry in entries if entry.name == name != ""]
    if len(listed) == 1:
        return listed[0]
    said = name.replace("\\", "/").strip()
    whole, stem = said.strip("/"), stem_of(said).strip("/")
    return _find(stem, entries, model, roots) or _find(whole, entries, model, roots)


def _find(
    wanted: str, entries: Sequence[Entry], model: str | None, roots: Sequence[Path]
) -> Entry | list[Entry]:
    stem = _folded(wanted.rpartition("/")[2])
    likely = [
        (entry, spellings)
        for entry in entries
        if stem == _folded(stem_of(entry.path.name))
        or (entry.foldered and stem == _folded(entry.path.parent.name))
        for spellings in (_spellings(entry, roots),)
    ]
    for spelled in (str, _composed, _folded):
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


def same_name(one: str, other: str) -> bool:
    """Whether two names mean the same: case, and how Unicode writes an accent, do not matter."""
    return _folded(stem_of(one.strip())) == _folded(stem_of(other.strip()))


def near(name: str, entries: Sequence[Entry], count: int = 3) -> list[str]:
    """The names most like this one, at most `count`. [] for one that is too long to be a name."""
    if len(name) > _LONGEST:
        return []
    names = {_folded(entry.name): entry.name for entry in entries}
    stems = {_folded(entry.name).rpartition("/")[2]: entry.name for entry in entries}
    table = stems | names
    matches = difflib.get_close_matches(_folded(name), table, n=count + 2, cutoff=0.5)
    return list(dict.fromkeys(table[match] for match in matches))[:count]


def _spellings(entry: Entry, roots: Sequence[Path] = ()) -> list[str]:
    """All ways to write a file's name, from the bare stem to the whole path; by its folder first if that names it.

    With `roots`: up to the root that the file is in, and its listed name.
    """
    path = entry.path
    folders = [part for part in path.parts[:-1] if part != path.anchor]
    named = [[*folders, stem_of(path.name)]]
    if entry.foldered:
        named.insert(0, folders)
    above = 0
    if roots:
        inside = (len(root.parts) - 2 for root in roots if path.is_relative_to(root))
        above = max(0, next(inside, len(folders) - 1))
    spelled = ["/".join(parts[-count:]) for parts in named for count in range(1, len(parts) - above + 1)]
    return [*spelled, entry.name] if roots else spelled


def stem_of(name: str) -> str:
    """A name without .safetensors, in any case."""
    return name[: -len(WEIGHTS)] if name.lower().endswith(WEIGHTS) else name


def _composed(name: str) -> str:
    """The name with every accent in one character with its letter (NFC). macOS writes two."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """The name without what does not matter: case, accents' form, and blanks at the ends of its parts."""
    folded = _composed(_composed(name).casefold())
    return "/".join(map(str.strip, folded.split("/"))) if " " in folded else folded


_LONGEST = 300  # characters; comparing thousands of names with a longer one takes too long
