"""Initial images and masks. They are copied into the home unchanged, so that a job can begin again after a restart."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from pipelines.adapters import sha256
from pipelines.home import Home
from pipelines.home.answers import answered
from pipelines.home.files import open_regular, write_whole
from studio.drafts.draft import Draft
from studio.drafts.input_images import InputImage, sized_like


def inputs_folder(home: Home) -> Path:
    return home.path / "inputs"


def with_kept_input(draft: Draft, home: Home) -> Draft:
    """The draft with copies of its pictures' files in the home. Raises RequestError for a file that is no picture."""
    if not draft.images:
        return draft
    return replace(draft, images={name: _kept(name, source, home) for name, source in draft.images.items()})


def _kept(name: str, source: InputImage, home: Home) -> InputImage:
    sized_like(name, source)
    if not isinstance(source, Path):
        return source
    suffix = source.suffix.lower()
    suffix = suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""  # the name is the uploader's choice
    kept = inputs_folder(home) / f"{sha256(source)[:32]}{suffix}"
    if not kept.exists():
        answered(source, lambda: write_whole(kept, lambda path: _copy(source, path), force=True))
    return kept


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as given, target.open("wb") as kept:
        shutil.copyfileobj(given, kept)
