"""From a picture to the settings it was made with: ours, A1111's, and, through sd-parsers, ComfyUI's, InvokeAI's, …

What is not here is named, with what is here under a similar name, or under another name with the same hash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines import StudioError
from pipelines.bounds import MOST_ADAPTERS
from pipelines.errors import AdapterFileError, ModelError, PromptError
from pipelines.home import Home
from pipelines.home.names import near
from pipelines.schedulers import canonical
from pipelines.text.tags import take_tags
from studio.drafts.draft import Draft, Wanted
from studio.drafts.shelf import Known
from studio.library.hashes import is_adapter
from studio.library.scan import Library
from studio.pictures.foreign import read_foreign
from studio.pictures.metadata import CHUNK, PARAMETERS, Remembered, read_picture, read_texts


@dataclass(frozen=True)
class Missing:
    """Something that the picture was made with and that is not here. kind: "LoRA" or "model".

    near: what is here under similar names. hash: as the picture gives it, "" where it does not.
    """

    kind: str
    name: str
    near: tuple[str, ...] = ()
    hash: str = ""

    def __str__(self) -> str:
        said = f" (hash {self.hash[:12]})" if self.hash else ""
        hint = f"; similar: {', '.join(self.near)}" if self.near else ""
        return f"{self.kind} {self.name!r}{said} is not here{hint}"


@dataclass(frozen=True)
class Restored:
    """What a picture was made with, as far as it says and as far as it is here.

    draft: its LoRAs under the names they have here, those of the prompt's tags among them; the missing are left out.
    model: its name here, "" where it is not here or not said. program: what made the picture.
    notes: what a user should know: files found by their hash, settings that mean nothing here, …
    """

    draft: Draft
    program: str
    model: str = ""
    vae: str | None = None
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


def restore(file: Path, home: Home, library: Library) -> Restored:
    """Raises RequestError for a file that is no picture or says nothing of how it was made."""
    remembered, program = _read(file)
    notes = list(remembered.notes)
    model, gone = _model(remembered, home)
    draft = _tags_as_rows(remembered.draft, notes)
    wanted, missing = _adapters(draft.wanted, remembered.known, model, home, library, notes)
    draft = replace(draft, wanted=wanted, where="")
    if remembered.init_image is not None:
        notes.append("it was made from another picture, which is not stored in it: choose that one again")
    return Restored(
        draft=_with_known_sampler(draft, notes),
        program=program,
        model=model,
        vae=remembered.setup.vae,
        missing=(*gone, *missing),
        notes=tuple(notes),
        record=remembered.record,
    )


def _read(file: Path) -> tuple[Remembered, str]:
    texts = read_texts(file)
    if CHUNK in texts:
        return read_picture(file), "LoRA Studio"
    if PARAMETERS in texts and _is_a1111(texts[PARAMETERS]):
        return read_picture(file), "A1111"
    return read_foreign(file, texts)


def _is_a1111(text: str) -> bool:
    """Fooocus and others keep JSON under the same name."""
    return not text.lstrip().startswith("{")


# -- names here --------------------------------------------------------------------------------------------


def _model(remembered: Remembered, home: Home) -> tuple[str, list[Missing]]:
    """The model's name here; what is missing where it is not."""
    name = re.sub(r"\.(safetensors|ckpt)$", "", remembered.model.replace("\\", "/").rsplit("/", 1)[-1])
    if not name:
        return "", []
    try:
        entry = home.find_model(name, paths=False)
    except ModelError:
        entry = None
    if entry is not None:
        return entry.name, []
    return "", [Missing("model", name, tuple(near(name, home.models())), remembered.model_hash)]


def _tags_as_rows(draft: Draft, notes: list[str]) -> Draft:
    """Tags of the prompt become rows of the mix, so that they can be seen and moved; those that say more than
    strengths stay where they are."""
    prompt = str(draft.values.get("prompt", ""))
    try:
        _, tags = take_tags(prompt)
    except PromptError as error:
        notes.append(f"the prompt's LoRA tags cannot be read: {error}")
        return draft
    if len(tags) + len(draft.wanted) > MOST_ADAPTERS:
        notes.append(f"the prompt's LoRA tags stay in it: a picture may have {MOST_ADAPTERS} adapters")
        return draft
    named = {wanted.adapter.casefold() for wanted in draft.wanted}
    rows = list(draft.wanted)
    for tag in tags:
        plain = not (tag.points or tag.lbw or tag.dyn)
        if plain and tag.name.casefold() not in named:
            said = tag.source.count(":") > 1  # else it is the strength that the file prefers
            rows.append(Wanted(tag.name, tag.weight if said else None, tag.text_weight))
            prompt = prompt.replace(tag.source, "", 1)
            named.add(tag.name.casefold())
    prompt = re.sub(r" {2,}", " ", prompt).strip()
    return replace(draft.with_value("prompt", prompt), wanted=tuple(rows))


def _adapters(
    wanted: Sequence[Wanted],
    known: Mapping[str, Known],
    model: str,
    home: Home,
    library: Library,
    notes: list[str],
) -> tuple[tuple[Wanted, ...], list[Missing]]:
    """Those that are here, under their names here; and those that are not."""
    here, missing = [], []
    for one in wanted:
        said = known.get(one.adapter.casefold())
        name = _name_here(one.adapter, said, model, home, library, notes)
        if name is None:
            similar = tuple(near(one.adapter, home.loras()))
            missing.append(Missing("LoRA", one.adapter, similar, said.digest if said else ""))
        else:
            here.append(replace(one, adapter=name))
    return tuple(here), missing


def _name_here(
    name: str, said: Known | None, model: str, home: Home, library: Library, notes: list[str]
) -> str | None:
    try:
        entry = home.find_lora(name, model or None, paths=False)
    except AdapterFileError:
        same = library.with_hash(said.digest, said.size) if said else None
        if same is not None:
            notes.append(f"LoRA {name!r} was found by its hash: it is called {same.name!r} here")
        return same.name if same is not None else None
    if said is None or is_adapter(entry.path, said.digest):
        return entry.name
    same = library.with_hash(said.digest, said.size)
    if same is not None:
        notes.append(f"LoRA {name!r} of this picture is called {same.name!r} here (found by its hash)")
        return same.name
    notes.append(
        f"LoRA {name!r} is another file than the one this picture was made with, so the picture will differ"
    )
    return entry.name


def _with_known_sampler(draft: Draft, notes: list[str]) -> Draft:
    name = draft.values.get("scheduler")
    if name is None:
        return draft
    try:
        return draft.with_value("scheduler", canonical(str(name)))
    except StudioError as error:
        notes.append(str(error))
        return replace(
            draft, values={key: value for key, value in draft.values.items() if key != "scheduler"}
        )
