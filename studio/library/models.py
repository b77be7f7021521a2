"""The models that can be chosen, each with what it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISDIR

from pipelines import StudioError
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.folders import folder_family
from pipelines.checkpoints.single_file import examine
from pipelines.errors import ModelError
from pipelines.home import Home
from pipelines.home.answers import each, sign
from pipelines.home.plain import reading

BUILT_IN = "tiny-sdxl"
"""The model that is used where none is named."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be chosen. base: what it is in one line, or why it cannot be used. size: bytes."""

    name: str
    path: Path
    base: str
    usable: bool
    embedded: bool
    default: bool
    size: int


def list_models(home: Home) -> list[ModelEntry]:
    """All models; those that cannot be used say why in `base`. Folders that do not answer are left out (see
    `Home.silent`)."""
    default = home.settings.model or BUILT_IN
    entries = {entry.path: entry for entry in home.models()}
    looks = each(entries, _look)
    return [
        ModelEntry(
            name=entry.name,
            path=entry.path,
            base=looks[entry.path][0],
            usable=looks[entry.path][1],
            embedded=entry.embedded,
            default=entry.name == default,
            size=looks[entry.path][2],
        )
        for entry in entries.values()
        if entry.path in looks
    ]


def line_of(path: Path) -> tuple[str, bool]:
    """(what the model at a path is in one line, or why it cannot be used; whether it can be used)."""
    return _look(path)[:2]


def _look(path: Path) -> tuple[str, bool, int]:
    """(`line_of`; bytes of its weights)."""
    try:
        with reading(path.name, ModelError):
            stat = path.stat()
            return *_base(path, S_ISDIR(stat.st_mode), stat.st_mtime_ns), _bytes(path)
    except StudioError as error:  # gone by now
        return str(error), False, 0


@lru_cache(4096)
def _base(path: Path, is_folder: bool, changed: int) -> tuple[str, bool]:
    try:
        with reading(path.name, ModelError, "copy or download the model again"):
            if is_folder:
                return folder_family(path, read_json(path / "model_index.json")).label, True
            return examine(path).line, True
    except StudioError as error:
        return str(error), False


def _bytes(path: Path) -> int:
    """Bytes of the weights in a file, or in a folder and its subfolders."""
    if path.is_file():
        return path.stat().st_size
    size = 0
    for folder, _, names in os.walk(path):
        sign()
        for name in names:
            file = Path(folder, name)
            if name.endswith(".safetensors") and file.is_file():
                size += file.stat().st_size
    return size
