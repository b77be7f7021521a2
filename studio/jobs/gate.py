"""The gate: whatever can be known to be wrong with a job is refused before anything is queued."""

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
from studio.drafts.input_images import sized_like
from studio.drafts.shelf import Shelf
from studio.library.fit import fit_of_entry
from studio.rendering.opening import Opening, model_name

MOST_MISSING = 20
"""Most missing adapters that one message names."""
MOST_WORDS = 20_000_000
"""Most characters of all prompts of one job, counted picture by picture: each is judged, and stored on the disk."""


@dataclass(frozen=True)
class ModelKey:
    """Which model a job needs. source: a name in the home, a path, or a hub id; vae: another VAE.

    found: whether it was looked up when the job was submitted; entry: what was found then, None for a hub id. They are
    kept so that one submission searches the folders only once.
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
    """The model, looked up: by name, else by path, else as a hub id. None is the model of config.toml, else the
    built-in one. Raises ModelError and SetupError."""
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
    """The model's entry; None for a hub id that may be fetched. listed: the result of `Home.models`, if it is at hand.

    Raises ModelError for a model that is not here, and SetupError for a hub id where nothing may be fetched.
    """
    entry = home.find_model(source, paths=trust.paths, entries=listed)
    if entry is None and not trust.downloads:
        raise SetupError(
            f"{source} is on the hub, and this studio fetches nothing; start it with --allow-downloads, or choose one "
            "of its models"
        )
    return entry


def check(drafts: Sequence[Draft], key: ModelKey, home: Home, shelf: Shelf, facts: Facts | None) -> None:
    """Judges all drafts, and puts their adapters on the shelf. facts: of the model, where it is loaded.

    Raises StudioError for the first picture that cannot be drawn, or one that names the adapters that are not here.
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
        draft.build(shelf.use, sized_like)  # not kept: all requests together may be large
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
    """Raises RequestError for prompts that are too long all together, even where each alone is not."""
    texts = (draft.values.get(name) for draft in drafts for name in PROMPTS)
    length = sum(len(text) for text in texts if isinstance(text, str))
    if length > MOST_WORDS:
        raise RequestError(
            f"the prompts of {len(drafts)} pictures have {length} characters together; one job may have {MOST_WORDS}: "
            "ask for fewer pictures, or shorten the prompts"
        )


def distinct(drafts: Sequence[Draft]) -> list[Draft]:
    """One draft of each set that differs only in the seed: judging it judges the others. A seed out of range counts as
    a difference, so that it is judged too."""
    marks: dict[int, str] = {}  # by the identity of values, since most drafts share theirs

    def mark(value: object) -> str:
        """A text that differs for 1, True and 1.0."""
        if type(value) is str:
            return f"'{value}"
        if id(value) not in marks:
            try:
                marks[id(value)] = f"{type(value).__name__} {value!r}"
            except ValueError:  # an int of thousands of digits, which counts as unique
                marks[id(value)] = f"{id(value)}"
        return marks[id(value)]

    found: dict[object, Draft] = {}
    for draft in drafts:
        said = tuple(
            sorted((name, mark(value)) for name, value in draft.values.items() if not _is_seed(name, value))
        )
        found.setdefault((said, mark(draft.wanted), tuple(draft.images.items())), draft)
    return list(found.values())


def _is_seed(name: str, value: object) -> bool:
    return name == "seed" and (value is None or (type(value) is int and 0 <= value <= HIGHEST_SEED))


def _refuse_misfits(entries: Iterable[Entry], key: ModelKey, home: Home) -> None:
    """Raises AdapterError for a file that does not fit the model, as far as headers show."""
    try:
        entry = key.entry if key.found else home.find_model(key.source)
        fit = None if entry is None else fit_of_entry(entry)
    except ModelError:  # the model is not here yet, or loading it will say what is wrong
        fit = None
    for entry in entries:
        seen = inspect_file(entry.path)
        if seen.refused:
            raise AdapterFormatError(f"LoRA {entry.name!r} cannot be applied: {seen.refused}")
        origin = seen.origin
        why = fit.misfit(entry.model, seen.text_width, origin.family, origin.label) if fit is not None else ""
        if why:
            raise AdapterMismatchError(f"LoRA {entry.name!r} does not fit: {why}")
