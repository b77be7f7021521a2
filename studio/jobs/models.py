"""The models that can be chosen, each with what it is."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pipelines import StudioError
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.folders import folder_family
from pipelines.checkpoints.single_file import examine
from pipelines.home import Home
from studio.jobs.job import ModelEntry
from studio.opening import BUILT_IN


def list_models(home: Home) -> list[ModelEntry]:
    """All of them; those that cannot be used say why."""
    default = home.settings.model or BUILT_IN
    entries = []
    for entry in home.models():
        base, usable = _base(entry.path, entry.path.stat().st_mtime_ns)
        entries.append(
            ModelEntry(
                name=entry.name,
                path=entry.path,
                base=base,
                usable=usable,
                embedded=entry.embedded,
                default=entry.name == default,
                size=_bytes(entry.path),
            )
        )
    return entries


@lru_cache(4096)
def _base(path: Path, changed: int) -> tuple[str, bool]:
    """The family's label, or why the model cannot be used."""
    try:
        family = (
            folder_family(path, read_json(path / "model_index.json"))
            if path.is_dir()
            else examine(path).family
        )
        return family.label, True
    except StudioError as error:
        return str(error), False


def _bytes(path: Path) -> int:
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
