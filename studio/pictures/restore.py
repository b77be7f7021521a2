"""The one way back from a picture: to the settings it was made with, and to the files here that it was made with.

Command line, web pages and programs all take it. What is not here is named, with what is here under a similar name; a
LoRA that is here under another name is known by its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composers.errors import StudioError
from composers.plan import Composer
from pipelines.bounds import LONGEST_NAME
from pipelines.errors import ModelError
from pipelines.home import Home
from pipelines.home.files import exists
from pipelines.request import PROMPTS, Request
from pipelines.schedulers import canonical
from studio.drafts.draft import Draft, Wanted, naming
from studio.library.known import Finder, Missing
from studio.library.scan import Library
from studio.pictures.metadata import Remembered, read_picture, without_echoes

FROM_ANOTHER = "it was made from another picture, which is not stored in it: choose that one again"


@dataclass(frozen=True)
class Restored:
    """What a picture was made with, as far as it says and as far as it is here.

    draft: what to ask for to make it again; its LoRAs have the names that they have here, and the missing are left out.
    said: what the picture says itself. model: its name here, "" where it is not here or not said; hub: its hub id,
    where it came from there and is not here. vae: its name here.
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
        """As the picture holds it; {} in a foreign one."""
        return self.said.record


def restore(file: Path, home: Home, library: Library | None = None) -> Restored:
    """What a picture was made with. Raises RequestError for a file that is no picture or says nothing of it.

    library: knows LoRAs by their headers, so that no stranger's picture has all files read. Without it they are read,
    where a hash may mean them.
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
    """What the picture says, with the LoRAs that are here under their names here; also where its method names them."""
    wanted = []
    names: dict[str, str] = {}
    for one in said.draft.wanted:
        name = finder.lora(one.adapter, said.known.get(one.adapter.casefold()), model)
        if name in names.values():
            finder.notes.append(
                f"LoRA {one.adapter!r} is left out: it is {name!r} here, which is in the mix already"
            )
        elif name is not None and _is_sound(one, finder.notes):
            wanted.append(replace(one, adapter=name))
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
        notes.append(f"LoRA {wanted.adapter!r} is left out: {error}")
        return False
    return True


def _hub(source: str, home: Home) -> str:
    """Where on the hub the model came from; "" for one that did not, and for what means a file here."""
    try:
        on_hub = bool(source) and home.find_model(source, paths=False) is None
    except ModelError:
        return ""
    return source if on_hub and not exists(Path(source)) else ""


def _sound(values: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The values that a request may have; `notes` is told of the others. Prompts stay, for their user to mend."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        try:
            if name not in PROMPTS:
                Request("", **{name: value})
            kept[name] = canonical(value) if name == "scheduler" else value
        except StudioError as error:
            notes.append(str(error))
    return kept
