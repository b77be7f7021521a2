"""The one way back from a picture: to its settings, and to the files here that it was made with.

The command line, the web pages and programs all use it. Files that are not here are named, with similar names that are
here. A LoRA that is here under another name is recognised by its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composers.errors import StudioError
from composers.plan import Composer
from composers.shown import shown
from pipelines.bounds import LONGEST_NAME
from pipelines.errors import ModelError
from pipelines.home import Home
from pipelines.home.files import exists
from pipelines.request import PROMPTS, Request
from pipelines.schedulers import canonical, nearest
from studio.drafts.draft import Draft, Wanted, naming
from studio.library.known import Finder, Missing
from studio.library.scan import Library
from studio.pictures.metadata import Remembered, read_picture, without_echoes

FROM_ANOTHER = "it was made from another picture, which is not stored in it: choose that one again"


@dataclass(frozen=True)
class Restored:
    """What a picture was made with, as far as the picture says so and as far as the files are here.

    draft: what to ask for to make it again. Its LoRAs have the names that they have here; missing ones are left out.
    said: what the picture itself says. model: its name here, "" where it is missing or not named. hub: its hub id,
    where it came from the hub and is not here. vae: its name here.
    notes: what a user should know: files found by their hash, settings that mean nothing here, …
    """

    draft: Draft
    said: Remembered
    model: str = ""
    hub: str = ""
    vae: str | None = None
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """What made the picture."""
        return self.said.program

    @property
    def record(self) -> Mapping[str, Any]:
        """The record in the picture; {} in one of another program."""
        return self.said.record


def restore(file: Path, home: Home, library: Library | None = None) -> Restored:
    """What a picture was made with. Raises RequestError for a file that is no picture, or does not say how it was made.

    library: finds LoRAs by the hashes in their headers, then among a bounded number of files, so that a stranger's
    picture cannot make the studio read them all. Without it, every file that a hash may mean is read.
    """
    said = read_picture(file)
    finder = Finder(home, library)
    finder.notes += said.notes
    source = str(said.record.get("model_source", ""))[:LONGEST_NAME]
    model = finder.model(said.model, said.model_hash, source)
    draft = _named_as_here(said, model, finder)
    values = dict(draft.values)
    if said.ours:
        values = without_echoes(values, str(said.record.get("family", "")))
    vae = finder.vae(said.setup.vae)
    if said.init_image is not None:
        finder.notes.append(FROM_ANOTHER)
    return Restored(
        draft=replace(draft, values=_sound(values, finder.notes), where=""),
        said=said,
        model=model,
        hub="" if model else _hub(source, home),
        vae=vae,
        missing=tuple(finder.missing),
        notes=tuple(finder.notes),
    )


def _named_as_here(said: Remembered, model: str, finder: Finder) -> Draft:
    """The picture's draft with its LoRAs, in mix and method, under their names here; missing ones are left out."""
    wanted = []
    names: dict[str, str] = {}
    for one in said.draft.wanted:
        name = finder.lora(one.adapter, said.known.get(one.adapter.casefold()), model)
        if name in names.values():
            finder.notes.append(
                f"LoRA {shown(one.adapter)} is left out: it is {shown(name)} here, which is in the mix already"
            )
        elif name is not None and _is_sound(one, finder.notes):
            wanted.append(replace(one, adapter=name, named=True))
            names[one.adapter.casefold()] = name
    draft = replace(said.draft, wanted=tuple(wanted))
    composer = draft.values.get("composer")
    if not isinstance(composer, Composer):
        return draft
    return draft.with_value("composer", naming(composer, names))


def _is_sound(wanted: Wanted, notes: list[str]) -> bool:
    """Whether a request may have the adapter; `notes` is told why not."""
    try:
        wanted.check()
    except StudioError as error:
        notes.append(f"LoRA {shown(wanted.adapter)} is left out: {error}")
        return False
    return True


def _hub(source: str, home: Home) -> str:
    """The model's hub id; "" for a model that is not from the hub, and for a text that is the path of a file here."""
    try:
        on_hub = bool(source) and home.find_model(source, paths=False) is None
    except ModelError:
        return ""
    return source if on_hub and not exists(Path(source)) else ""


def _sound(values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The values that a request accepts; `notes` names the others. Prompts always stay: users can mend them."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        try:
            if name not in PROMPTS:
                Request("", **{name: value})
            kept[name] = canonical(value) if name == "scheduler" else value
        except StudioError as error:
            near = nearest(value) if name == "scheduler" and isinstance(value, str) else None
            if near is not None:
                kept[name] = near
            notes.append(f"{error}, and is taken" if near else str(error))
    return kept
