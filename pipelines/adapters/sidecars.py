"""The notes that other tools leave beside `name.safetensors`, never trusted to be well-formed.

`name.json` (A1111, Forge), `name.civitai.info` (Civitai helpers), `name.metadata.json` (LoRA Manager),
`name.txt` (free text), and a preview picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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

_LIMIT = 4 * 2**20  # bytes; notes are a few kilobytes


@dataclass(frozen=True)
class Sidecars:
    """What stands beside a file.

    user: A1111's notes by their own names ("activation text", …); civitai: a Civitai model version;
    manager: LoRA Manager's record; text: the .txt; files: the names of all that were found.
    """

    user: Mapping[str, object] = field(default_factory=dict)
    civitai: Mapping[str, object] = field(default_factory=dict)
    manager: Mapping[str, object] = field(default_factory=dict)
    text: str = ""
    preview: Path | None = None
    files: tuple[str, ...] = ()


def read_sidecars(path: Path) -> Sidecars:
    """The notes beside an adapter file. Broken ones count as absent: they never stop a load."""
    beside = {ending: path.parent / f"{path.stem}{ending}" for ending in _NOTES}
    previews = (path.parent / f"{path.stem}{ending}" for ending in PREVIEWS)
    preview = next((file for file in previews if file.is_file()), None)
    found = [file for file in beside.values() if file.is_file()]
    manager = _json(beside[".metadata.json"])
    embedded = manager.get("civitai")
    return Sidecars(
        user=_json(beside[".json"]),
        civitai=_json(beside[".civitai.info"]) or (embedded if isinstance(embedded, dict) else {}),
        manager=manager,
        text=_text(beside[".txt"]).strip(),
        preview=preview,
        files=tuple(file.name for file in (*found, *([preview] if preview else []))),
    )


_NOTES = (".json", ".civitai.info", ".metadata.json", ".txt")


def _text(file: Path) -> str:
    try:
        if not file.is_file() or file.stat().st_size > _LIMIT:
            return ""
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _json(file: Path) -> Mapping[str, object]:
    try:
        value = json.loads(_text(file) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
