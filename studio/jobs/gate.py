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
from pipelines.request import Facts
from studio.drafts.draft import MOST_PICTURES, Draft, placed
from studio.drafts.shelf import Shelf
from studio.library.fit import fit_of_entry
from studio.rendering.opening import Opening, model_name

MOST_MISSING = 20
"""Adapters that one answer names which are not here."""


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
    missing: dict[str, None] = {}
    for draft in drafts:
        for error in shelf.missing(draft.wanted, draft.values.get("prompt")):
            missing[str(placed(error, draft.where))] = None
        if len(missing) >= MOST_MISSING:
            missing = dict.fromkeys([*list(missing)[:MOST_MISSING], "and perhaps more"])
            break
    if missing:
        raise AdapterFileError("\n".join(missing))
    requests = [draft.build(shelf.use, shelf.read_tags) for draft in drafts]
    _refuse_misfits(shelf.found, key, home)
    if facts is None:
        return
    with_names = replace(facts, adapters=tuple(dict.fromkeys([*facts.adapters, *shelf.files])))
    for draft, request in zip(drafts, requests, strict=True):
        try:
            request.resolved(with_names)
        except StudioError as error:
            raise placed(error, draft.where) from error


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
