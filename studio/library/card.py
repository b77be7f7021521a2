"""One LoRA file as the library shows it: what its header and the notes beside it say. Plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipelines import StudioError
from pipelines.adapters import Inspection, inspect_file
from pipelines.errors import AdapterFileError, SetupError
from pipelines.home import Entry
from pipelines.home.answers import answered
from pipelines.home.files import whole_text
from pipelines.home.names import LeftOut
from pipelines.home.plain import read_json, reading
from studio.library.fit import Fit


@dataclass(frozen=True)
class Card:
    """One file.

    made_for: the embedded model that an embedded adapter is made for. kinds: "LoRA", "LoCon", …
    family: "sd1", "sd2", "sdxl", another family's name, or "unknown"; family_label: as people write it.
    text_width: the width of the text embeddings that it expects.
    preferred_weight, strength_range (lowest, highest): None where neither the file nor a note gives them.
    refused: why no model here can take it; error: why it cannot even be read; "" where all is well.
    hashes: those that the file or a note states, by name. size: bytes; modified: seconds since 1970.
    """

    name: str
    path: Path
    made_for: str | None = None
    embedded: bool = False
    title: str = ""
    description: str = ""
    category: str = ""
    tags: tuple[str, ...] = ()
    family: str = "unknown"
    family_label: str = "unknown"
    kinds: tuple[str, ...] = ()
    ranks: tuple[int, int] | None = None
    layers: int = 0
    text_width: int | None = None
    triggers: tuple[str, ...] = ()
    preferred_weight: float | None = None
    strength_range: tuple[float, float] | None = None
    preview: Path | None = None
    hashes: tuple[tuple[str, str], ...] = ()
    refused: str = ""
    error: str = ""
    size: int = 0
    modified: float = 0.0

    @property
    def readable(self) -> bool:
        return not self.error

    def misfit(self, fit: Fit | None) -> str:
        """Why it cannot be used with the model (fit: None: with any model); "" where nothing speaks against it."""
        if self.error or self.refused:
            return self.error or self.refused
        if fit is None:
            return ""
        return fit.misfit(self.made_for, self.text_width, self.family, self.family_label)

    @property
    def searched(self) -> str:
        """The text that a search looks through."""
        words: tuple[str, ...] = (
            self.name,
            self.title,
            self.category,
            self.family_label,
            *self.kinds,
            *self.tags,
            *self.triggers,
            *(stated for _, stated in self.hashes),
        )
        return " ".join(words).casefold()


def read_card(entry: Entry) -> Card:
    """Reads the file's header and the notes beside it. For a file that cannot be read, the card says why."""
    return read_card_and_metadata(entry)[0]


def read_card_and_metadata(entry: Entry) -> tuple[Card, Mapping[str, str]]:
    """As `read_card`, with the metadata in the header; {} for a file that cannot be read."""
    known: dict[str, Any] = {"made_for": entry.model, "embedded": entry.embedded}
    try:
        with reading(f"{entry.path.name}:", AdapterFileError):  # a link to nowhere, or gone by now
            stat = answered(entry.path, entry.path.stat)
            known |= {"size": stat.st_size, "modified": stat.st_mtime}
            seen = inspect_file(entry.path)
            return Card(entry.name, entry.path, **known, **_fields_of(seen)), seen.stated
    except StudioError as error:
        return Card(entry.name, entry.path, **known, error=whole_text(str(error))), {}


def left_out_card(one: LeftOut) -> Card:
    """The card of something that is not listed among the files; it says why."""
    return Card(one.name, Path(whole_text(str(one.path))), error=f"{whole_text(one.path.name)}: {one.why}")


def _fields_of(seen: Inspection) -> dict[str, Any]:
    said = seen.metadata
    return {
        "title": said.title,
        "description": said.description,
        "category": said.category,
        "tags": said.tags,
        "family": seen.origin.family,
        "family_label": seen.origin.label,
        "kinds": seen.kinds,
        "ranks": seen.ranks,
        "layers": sum(seen.modules.values()),
        "text_width": seen.text_width,
        "triggers": said.triggers,
        "preferred_weight": said.preferred_weight,
        "strength_range": said.strength_range,
        "preview": seen.sidecars.preview,
        "hashes": tuple(said.hashes.items()),
        "refused": seen.refused,
    }


def card_to_json(card: Card) -> str:
    return json.dumps(asdict(card), default=str)


def card_from_json(text: str) -> Card:
    """The card of its JSON text. Raises SetupError for what another version wrote."""
    with reading("the card", SetupError):
        content: Mapping[str, Any] = read_json(text, "the card", finite=False)
        if set(content) != {field.name for field in fields(Card)}:
            raise ValueError("another version's card")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        values["hashes"] = tuple((str(name), str(value)) for name, value in content["hashes"])
        values["path"] = Path(str(values["path"]))
        values["preview"] = None if values["preview"] is None else Path(str(values["preview"]))
        card = Card(**values)
        _ = card.searched, card.size + card.modified, card.error + card.refused  # they are of the right types
        return card
