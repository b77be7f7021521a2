"""The notes that other tools leave beside `name.safetensors`. They may be malformed.

They are `name.json` (A1111, Forge), `name.civitai.info` (Civitai helpers), `name.metadata.json` (LoRA Manager),
`name.txt` (free text), and a preview picture.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import StudioError
from pipelines.home.answers import answered
from pipelines.home.files import read_text
from pipelines.home.plain import read_json

PREVIEWS = (
    ".preview.png",
    ".preview.jpg",
    ".preview.jpeg",
    ".preview.webp",
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
)

MOST_SAID = 200_000
"""Most values of one note, and of JSON in a file's metadata. The tags of a large training set are some ten thousand."""

_LIMIT = 4 * 2**20  # bytes; notes are a few kilobytes


@dataclass(frozen=True)
class Sidecars:
    """What is found beside a file. All is empty where nothing is.

    user: A1111's notes, by its own names ("activation text", …). civitai: a Civitai model version. manager: LoRA
    Manager's record. text: the .txt. files: the names of all files that were found.
    """

    user: Mapping[str, object] = field(default_factory=dict)
    civitai: Mapping[str, object] = field(default_factory=dict)
    manager: Mapping[str, object] = field(default_factory=dict)
    text: str = ""
    preview: Path | None = None
    files: tuple[str, ...] = ()


def read_sidecars(path: Path) -> Sidecars:
    """The notes beside an adapter file. Broken ones count as absent, and never stop a load. Raises NoAnswer."""
    return answered(path, lambda: _read(path))


def _read(path: Path) -> Sidecars:
    # Texts, because making a Path takes longer than asking whether the file is there.
    stem = os.path.join(path.parent, path.stem)
    found = {ending: Path(stem + ending) for ending in _NOTES if os.path.isfile(stem + ending)}
    preview = next((Path(stem + ending) for ending in PREVIEWS if os.path.isfile(stem + ending)), None)
    manager = _json(found.get(".metadata.json"))
    embedded = manager.get("civitai")
    return Sidecars(
        user=_json(found.get(".json")),
        civitai=_json(found.get(".civitai.info")) or (embedded if isinstance(embedded, dict) else {}),
        manager=manager,
        text=_text(found.get(".txt")).strip(),
        preview=preview,
        files=tuple(file.name for file in (*found.values(), *([preview] if preview else []))),
    )


_NOTES = (".json", ".civitai.info", ".metadata.json", ".txt")


def _text(file: Path | None) -> str:
    try:
        return "" if file is None else read_text(file, _LIMIT)
    except (OSError, ValueError):
        return ""


def _json(file: Path | None) -> Mapping[str, object]:
    try:
        value = read_json(_text(file) or "{}", "", most=MOST_SAID, finite=False, mended=True)
    except StudioError:
        return {}
    return value if isinstance(value, dict) else {}
