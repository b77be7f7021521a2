"""The gate: what can be known to be wrong with a job is said before anything is queued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pipelines.adapters import inspect_file
from pipelines.errors import (
    AdapterFileError,
    AdapterFormatError,
    AdapterMismatchError,
    ModelError,
    RequestError,
    SetupError,
    StudioError,
)
from pipelines.home import Entry, Home
from pipelines.request import PROMPTS, Facts
from studio.drafts.draft import HIGHEST_SEED, MOST_PICTURES, Draft, placed
from studio.drafts.init_image import sized_like
from studio.drafts.shelf import Shelf
from studio.library.fit import fit_of_entry
from studio.rendering.opening import Opening, model_name

MOST_MISSING = 20
"""Adapters that one answer names which are not here."""
MOST_WORDS = 20_000_000
"""Characters of all prompts of one job, each counted once a picture: each is judged, and kept on the disk."""


@dataclass(frozen=True)
class ModelKey:
    """Which model a job wants. source: a name in the home, a path, or a hub id; vae: another VAE.

    found: whether it was looked for when the job was asked for; entry: where it was then, None for a hub id. So one
    submission looks through the folders once.
    """

    source: str
    vae: str | None = None
    entry: Entry | None = field(default=None, compare=False, repr=False)
    found: bool = field(default=False, compare=False, repr=False)

    @property
    def shown(self) -> str:
        return self.source if self.vae is None else f"{self.source} with the VAE {self.vae}"


@dataclass(frozen=True)
class Trust:
    """What a job may name. paths: files and folders of this computer. downloads: models on the hub."""

    paths: bool = True
    downloads: bool = True


def model_key(model: str | None, vae: str | None, home: Home, trust: Trust) -> ModelKey:
    """The model, found: by its name, else by its path, else as a hub id. Raises ModelError and SetupError."""
    source = model_name(Opening(model), home)
    listed = home.models()
    entry = find_model(source, home, trust, listed)
    if vae is not None:
        home.find_vae(vae, paths=trust.paths)
    if entry is None:
        return ModelKey(source, vae, found=True)
    is_listed = any(entry.path == other.path and entry.name == other.name for other in listed)
    return ModelKey(entry.name if is_listed else str(entry.path), vae, entry, found=True)


def find_model(source: str, home: Home, trust: Trust, listed: Sequence[Entry] | None = None) -> Entry | None:
    """The model's entry; None for a hub id that may be fetched. listed: what `Home.models` gave, if it was asked.

    Raises ModelError and SetupError.
    """
    entry = home.find_model(source, paths=trust.paths, entries=listed)
    if entry is None and not trust.downloads:
        raise SetupError(
            f"{source} is on the hub, and this studio fetches nothing; start it with --allow-downloads, or choose one "
            "of its models"
        )
    return entry


def check(drafts: Sequence[Draft], key: ModelKey, home: Home, shelf: Shelf, facts: Facts | None) -> None:
    """Puts the adapters on the shelf. facts: of the model, where it is loaded.

    Raises StudioError for the first picture that cannot be, and for all adapters that are not here.
    """
    if not drafts:
        raise RequestError("a job needs at least one picture")
    if len(drafts) > MOST_PICTURES:
        raise RequestError(
            f"{len(drafts)} pictures are more than one job may have ({MOST_PICTURES}); split it"
        )
    _refuse_too_many_words(drafts)
    drafts = distinct(drafts)
    missing: dict[str, None] = {}
    for draft in drafts:
        for error in shelf.missing(draft.wanted):
            missing[str(placed(error, draft.where))] = None
        if len(missing) >= MOST_MISSING:
            missing = dict.fromkeys([*list(missing)[:MOST_MISSING], "and perhaps more"])
            break
    if missing:
        raise AdapterFileError("\n".join(missing))
    for draft in drafts:
        draft.build(shelf.use, sized_like)  # and dropped: together they may be large
    _refuse_misfits(shelf.found, key, home)
    if facts is None:
        return
    with_names = replace(facts, adapters=tuple(dict.fromkeys([*facts.adapters, *shelf.files])))
    for draft in drafts:
        try:
            draft.build(shelf.use, sized_like).resolved(with_names)
        except StudioError as error:
            raise placed(error, draft.where) from error


def _refuse_too_many_words(drafts: Sequence[Draft]) -> None:
    """Raises RequestError for prompts that are too much together, whatever each of them is."""
    texts = (draft.values.get(name) for draft in drafts for name in PROMPTS)
    length = sum(len(text) for text in texts if isinstance(text, str))
    if length > MOST_WORDS:
        raise RequestError(
            f"the prompts of {len(drafts)} pictures have {length} characters together; one job may have {MOST_WORDS}: "
            "ask for fewer pictures, or shorten the prompts"
        )


def distinct(drafts: Sequence[Draft]) -> list[Draft]:
    """The first of those that differ in nothing but the seed; what is true of it is true of the others. A seed that
    no picture can have makes a difference."""
    marks: dict[int, str] = {}  # by the identities of what the drafts hold, since most of them share it

    def mark(value: object) -> str:
        """Text that tells 1 from True and from 1.0."""
        if type(value) is str:
            return f"'{value}"
        if id(value) not in marks:
            try:
                marks[id(value)] = f"{type(value).__name__} {value!r}"
            except ValueError:  # an int of thousands of digits, which is like no other
                marks[id(value)] = f"{id(value)}"
        return marks[id(value)]

    found: dict[object, Draft] = {}
    for draft in drafts:
        said = tuple(
            sorted((name, mark(value)) for name, value in draft.values.items() if not _is_seed(name, value))
        )
        found.setdefault((said, mark(draft.wanted), draft.init_image), draft)
    return list(found.values())


def _is_seed(name: str, value: object) -> bool:
    return name == "seed" and (value is None or (type(value) is int and 0 <= value <= HIGHEST_SEED))


def _refuse_misfits(entries: Iterable[Entry], key: ModelKey, home: Home) -> None:
    """Raises AdapterError for a file that the model cannot take, as far as headers tell."""
    try:
        entry = key.entry if key.found else home.find_model(key.source)
        fit = None if entry is None else fit_of_entry(entry)
    except ModelError:  # not on this computer yet, or to be told of by whoever loads it
        fit = None
    for entry in entries:
        seen = inspect_file(entry.path)
        if seen.refused:
            raise AdapterFormatError(f"LoRA {entry.name!r} cannot be applied: {seen.refused}")
        origin = seen.origin
        why = fit.misfit(entry.model, seen.text_width, origin.family, origin.label) if fit is not None else ""
        if why:
            raise AdapterMismatchError(f"LoRA {entry.name!r} does not fit: {why}")
