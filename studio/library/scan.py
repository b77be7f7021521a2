"""The library: every LoRA file, by its header alone. Cards are kept until the file or the notes beside it change.

folders -> stamps (size and time of the file and of the notes beside it) -> cards, from memory, cache or header
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.adapters import inspect_file
from pipelines.adapters.container import read_header
from pipelines.adapters.peft_settings import CONFIG_NAME
from pipelines.errors import AdapterFileError, AdapterFormatError, SetupError, StudioError
from pipelines.home import Entry, Home
from pipelines.home.answers import NoAnswer, answered, each, is_silent, sign
from pipelines.home.files import open_regular, slug, write_whole
from pipelines.home.names import WRITERS_NAMES, stem_of
from pipelines.home.plain import read_json, reading
from studio.library.card import (
    Card,
    card_from_json,
    card_to_json,
    left_out_card,
    read_card,
    read_card_and_metadata,
)
from studio.library.fit import Fit
from studio.library.hashes import is_adapter, plain_hash
from studio.library.search import words_of

NOTES = (".json", ".civitai.info", ".metadata.json", ".txt", ".png", ".jpg", ".jpeg", ".webp",
         ".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp")  # fmt: skip
"""Endings of the notes and previews beside a file, which change its card (see `pipelines.adapters.sidecars`)."""
LARGEST_ADDED = 8 * 2**30
"""Most bytes of a file that is dropped into the library."""
RECENT = 2.0
"""Seconds during which a search does not look for changed files again."""

FORMAT = 5
"""The version of the cache on disk. Raise it whenever cards change their meaning."""

PATIENCE = 0.5
"""Seconds that a glance waits for the whole list."""

Stamp = str


@dataclass(frozen=True)
class Glance:
    """The cards known at one moment. whole: whether these are all. Where they are not, `read` of `of` new or changed
    files were read; both are 0 while files are still being looked for."""

    cards: list[Card]
    whole: bool = True
    read: int = 0
    of: int = 0


@dataclass(frozen=True)
class Choice:
    """A choice of cards: those that contain all words and are of that family, category and type; None allows any.

    fit: cards that fit the model come first; fitting_only leaves the others out. Raises RequestError for a search that
    is too long.
    """

    words: str = ""
    family: str | None = None
    category: str | None = None
    kind: str | None = None
    fit: Fit | None = None
    fitting_only: bool = False

    def __post_init__(self) -> None:
        words_of(self.words)

    def among(self, cards: Iterable[Card]) -> list[Card]:
        words = words_of(self.words.casefold())
        found = [card for card in cards if self._means(card, words)]
        if self.fitting_only:
            return [card for card in found if not card.misfit(self.fit)]
        return sorted(found, key=lambda card: bool(card.misfit(self.fit)))

    def _means(self, card: Card, words: Sequence[str]) -> bool:
        searched = card.searched
        return (
            all(word in searched for word in words)
            and self.family in (None, card.family)
            and self.category in (None, card.category)
            and (self.kind is None or self.kind in card.kinds)
        )


class Library:
    """The LoRA files in the home's folders. Safe for several threads. home: called before every look, since folders
    can be added while a server runs."""

    def __init__(self, home: Callable[[], Home]) -> None:
        self._home = home
        self._known: dict[Path, tuple[Stamp, Card]] | None = None
        self._listed: tuple[float, list[Card]] = (-RECENT, [])
        self._guard = threading.Lock()  # guards the two below; never held while files are looked at
        self._coming: Future[list[Card]] | None = None
        self._after: Future[list[Card]] | None = None
        self._so_far = Glance([], whole=False)

    def cards(self) -> list[Card]:
        """The cards of all files as they are now, sorted by name. Folders that do not answer are left out (see
        `Home.silent`)."""
        with self._guard:
            if self._coming is None or self._coming.done():
                coming = self._begin()
            else:  # the look under way may have missed a later change: everybody who comes now shares the next one
                coming = self._after = self._after or Future()
        return list(self._result(coming))

    def glance(self, wait: float = PATIENCE, *, again: bool = True) -> Glance:
        """As `cards`, but after `wait` seconds it returns what was read by then; the rest is read in the background.
        again: look for changed files. Without it, the list last found will do."""
        with self._guard:
            coming = self._coming
            if coming is None:
                if not again and self._so_far.whole:
                    return self._so_far
                coming = self._begin()
        futures.wait([coming], wait)
        if not coming.done():
            seen = self._so_far
            return replace(seen, cards=sorted(seen.cards, key=_by_name), whole=False)
        return Glance(self._result(coming))

    def _begin(self) -> Future[list[Card]]:
        self._coming = Future()
        threading.Thread(target=self._read, args=(self._coming,), name="library", daemon=True).start()
        return self._coming

    def _result(self, coming: Future[list[Card]]) -> list[Card]:
        """The cards that a look found. Where it failed, this raises the reason once; the next call looks again."""
        try:
            return coming.result()
        except BaseException:
            with self._guard:
                if self._coming is coming:
                    self._coming = None
            raise

    def _read(self, coming: Future[list[Card]]) -> None:
        """Looks again and again while somebody waits for another look. Only this thread touches `_known`."""
        after: Future[list[Card]] | None = coming
        while after is not None:
            coming = after
            found: list[Card] = []
            failed: BaseException | None = None
            try:
                found = self._look()
            except BaseException as error:  # passed on to whoever waits for this look
                failed = error
            with self._guard:
                after, self._after = self._after, None
                if after is not None or failed is None:
                    self._coming = after
            if failed is not None:
                coming.set_exception(failed)
            else:
                coming.set_result(found)

    def _look(self) -> list[Card]:
        home = self._home()
        entries, left_out = home.look_for_loras()
        if self._known is None:
            self._known = _read_cache(home)
        known, stamps = self._known, _stamps(entries)
        fresh = {
            entry.path: entry
            for entry in entries
            if entry.path in stamps and known.get(entry.path, ("", None))[0] != stamps[entry.path]
        }
        found = [
            replace(known[entry.path][1], name=entry.name)  # the name depends on the other files
            for entry in entries
            if entry.path in stamps and entry.path not in fresh
        ]
        stated: dict[Path, Mapping[str, str]] = {}
        self._so_far = Glance(found, False, 0, len(fresh))

        def read(path: Path, seen: tuple[Card, Mapping[str, str]]) -> None:
            found.append(seen[0])
            self._so_far = Glance(found, False, self._so_far.read + 1, len(fresh))

        seen = each(fresh, lambda path: read_card_and_metadata(fresh[path]), read)
        for path, (card, metadata) in seen.items():
            known[path], stated[path] = (stamps[path], card), metadata
        gone = {path for path in known.keys() - stamps.keys() if not is_silent(path)}
        for path in gone:
            del known[path]
        if stated or gone:
            _write_cache(home, known, stated, gone)
        found = sorted([*found, *map(left_out_card, left_out)], key=_by_name)
        self._listed, self._so_far = (time.monotonic(), found), Glance(found)
        return found

    def _recent(self) -> list[Card]:
        """As `cards`, but files are looked at only every few seconds, so that typing stays quick."""
        listed, found = self._listed
        return found if time.monotonic() - listed < RECENT else self.cards()

    def with_metadata(self) -> list[tuple[Card, Mapping[str, str]]]:
        """The readable cards with the metadata in their headers. These come from the cache on disk: all together they
        are too large to be kept in memory. A file that disappears meanwhile is left out."""
        cards = [card for card in self.cards() if card.readable]
        stated = _read_metadata(self._home())
        # another program that uses this home with other folders may have deleted rows
        stated |= {
            path: metadata
            for path, metadata in each(
                (card.path for card in cards if card.path not in stated), _metadata
            ).items()
            if metadata is not None
        }
        return [(card, stated[card.path]) for card in cards if card.path in stated]

    def search(
        self,
        words: str = "",
        *,
        family: str | None = None,
        category: str | None = None,
        kind: str | None = None,
        fit: Fit | None = None,
        fitting_only: bool = False,
    ) -> list[Card]:
        """The cards that contain all words and are of that family, category and type, as `Choice` has them.

        Raises RequestError for a search that is too long.
        """
        chosen = Choice(words, family, category, kind, fit, fitting_only)
        return chosen.among(self._recent())

    def card(self, name: str, model: str | None = None) -> Card:
        """The card of that name. Raises AdapterFileError for an unknown or ambiguous name; it gives similar names."""
        return read_card(self._home().find_lora(name, model, paths=False))

    def named(self, names: Iterable[str]) -> list[Card]:
        """The cards of these names; unknown names are left out. Reads no other files."""
        wanted = {name.casefold() for name in names}
        return [read_card(entry) for entry in self._home().loras() if entry.name.casefold() in wanted]

    def with_hash(self, digest: str, size: int | None = None) -> Card | None:
        """The card of the file that a hash means: a sha256, the start of one, or A1111's short hash; None where there
        is none.

        Hashes that headers state are believed. Files are read only where `size`, in bytes, is given and is theirs.
        """
        digest = plain_hash(digest)
        if len(digest) < 8:
            return None
        cards = [card for card in self.cards() if card.readable]
        for card in cards:
            if any(_same(digest, stated) for _, stated in card.hashes):
                return card
        alike = [card for card in cards if card.size == size]
        return next((card for card in alike if is_adapter(card.path, digest)), None)

    def add(self, file: Path, name: str | None = None) -> Card:
        """Checks that a file is a LoRA, copies it into the home's LoRA folder, and returns its card.

        name: its original name. A file that is here already is not copied again. Where another file has the name, it
        gets the next free one. Raises AdapterError, with the reason, for a file that is no LoRA.
        """
        if answered(file, file.stat).st_size > LARGEST_ADDED:
            raise AdapterFileError(
                f"{file.name} is larger than {LARGEST_ADDED / 2**30:.0f} GB, no LoRA's size"
            )
        seen = inspect_file(file)
        if seen.refused:
            raise AdapterFormatError(f"{name or file.name} is not added: {seen.refused}")
        for card in self.cards():
            if card.size == seen.size and card.readable and _same_bytes(card.path, file):
                return card
        home = self._home()
        folder = home.made(home.path / "loras")
        stem = slug(stem_of(Path(name or file.name).name))
        added = write_whole(folder / f"{stem}.safetensors", lambda path: _copy(file, path), force=False)
        listed = next((card for card in self.cards() if card.path == added), None)
        return listed or read_card(Entry(added.stem, added))


def _by_name(card: Card) -> str:
    return card.name.casefold()


def _same(digest: str, stated: str) -> bool:
    stated = plain_hash(stated)
    return len(stated) >= 8 and (
        stated.startswith(digest) or (len(stated) < len(digest) and digest.startswith(stated))
    )


def _metadata(path: Path) -> Mapping[str, str] | None:
    try:
        return read_header(path).metadata
    except StudioError:
        return None


def _same_bytes(first: Path, second: Path) -> bool:
    def compare() -> bool:
        with open_regular(first) as one, open_regular(second) as other:
            while (chunk := one.read(2**20)) == other.read(2**20):
                sign()
                if not chunk:
                    return True
        return False

    try:
        return answered(first, compare)
    except (OSError, NoAnswer):
        return False


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as file, target.open("wb") as copy:
        while chunk := file.read(2**22):
            copy.write(chunk)


# -- what has changed --------------------------------------------------------------------------------------


def _stamps(entries: Sequence[Entry]) -> dict[Path, Stamp]:
    """File -> a text that changes when the file, or a note beside it, changes. Each folder is listed once. Files in
    folders that do not answer are left out."""
    listings = each(dict.fromkeys(entry.path.parent for entry in entries), _listing)
    stamps = {}
    for entry in entries:
        listed, stem = listings.get(entry.path.parent), stem_of(entry.path.name)
        if listed is None:
            continue
        beside = [f"{ending}={listed[stem + ending]}" for ending in NOTES if stem + ending in listed]
        if stem in WRITERS_NAMES and CONFIG_NAME in listed:
            beside.append(f"{CONFIG_NAME}={listed[CONFIG_NAME]}")
        stamps[entry.path] = ";".join([listed.get(entry.path.name, ""), *beside])
    return stamps


def _listing(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        entries = list(os.scandir(folder))
    except OSError:  # gone by now
        return found
    for entry in entries:
        try:
            stat = entry.stat()
        except OSError:  # a link to nowhere, or gone by now
            continue
        sign()
        found[entry.name] = f"{stat.st_size}.{stat.st_mtime_ns}"
    return found


# -- the cache ---------------------------------------------------------------------------------------------


def _open(home: Home) -> sqlite3.Connection:
    """The cache on disk. A cache of another format is emptied."""
    database = sqlite3.connect(home.made(home.cache) / "library.sqlite")
    [(format_found,)] = database.execute("PRAGMA user_version")
    if format_found != FORMAT:
        with database:
            database.execute("DROP TABLE IF EXISTS cards")
            database.execute(f"PRAGMA user_version = {FORMAT:d}")
    database.execute(
        "CREATE TABLE IF NOT EXISTS cards (path TEXT PRIMARY KEY, stamp TEXT, card TEXT, metadata TEXT)"
    )
    return database


def _read_cache(home: Home) -> dict[Path, tuple[Stamp, Card]]:
    """What earlier runs read. A cache that cannot be read is deleted: all that it holds can be read again."""
    known = {}
    try:
        with closing(_open(home)) as database:
            for path, stamp, text in database.execute("SELECT path, stamp, card FROM cards"):
                with suppress(StudioError):  # another version's, or damaged: the file is read anew
                    known[Path(path)] = (stamp, card_from_json(text))
    except sqlite3.OperationalError:  # in use, or on a disk that cannot be written to
        return {}
    except sqlite3.DatabaseError:
        with suppress(OSError):
            (home.cache / "library.sqlite").unlink(missing_ok=True)
        return {}
    except StudioError:  # the home cannot be written to, which only costs time
        return {}
    return known


def _read_metadata(home: Home) -> dict[Path, Mapping[str, str]]:
    """Empty where there is no cache. A row that cannot be read is left out."""
    found: dict[Path, Mapping[str, str]] = {}
    with suppress(sqlite3.Error, StudioError), closing(_open(home)) as database:
        for path, text in database.execute("SELECT path, metadata FROM cards"):
            with suppress(StudioError), reading(path, SetupError):
                found[Path(path)] = {
                    key: str(value) for key, value in read_json(text, path, mended=True).items()
                }
    return found


def _write_cache(
    home: Home,
    known: Mapping[Path, tuple[Stamp, Card]],
    stated: Mapping[Path, Mapping[str, str]],
    gone: Iterable[Path],
) -> None:
    """Writes what has changed. stated: the metadata of the files that were read just now. Where the home cannot be
    written to, this only costs time later."""
    with suppress(sqlite3.Error, StudioError), closing(_open(home)) as database, database:
        database.executemany("DELETE FROM cards WHERE path = ?", [(str(path),) for path in gone])
        database.executemany(
            "INSERT OR REPLACE INTO cards VALUES (?, ?, ?, ?)",
            [
                (str(path), known[path][0], card_to_json(known[path][1]), json.dumps(dict(metadata)))
                for path, metadata in stated.items()
            ],
        )
