"""Initial images. They are copied into the home unchanged, so that a job can begin again after a restart."""

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
from studio.drafts.init_image import sized_like


def inputs_folder(home: Home) -> Path:
    return home.path / "inputs"


def with_kept_input(draft: Draft, home: Home) -> Draft:
    """The draft with a copy of its initial image in the home. Raises RequestError for a file that is no picture."""
    if draft.init_image is None:
        return draft
    sized_like(draft.init_image)
    source = draft.init_image
    suffix = source.suffix.lower()
    suffix = suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""  # the name is the uploader's choice
    kept = inputs_folder(home) / f"{sha256(source)[:32]}{suffix}"
    if not kept.exists():
        answered(source, lambda: write_whole(kept, lambda path: _copy(source, path), force=True))
    return replace(draft, init_image=kept)


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as given, target.open("wb") as kept:
        shutil.copyfileobj(given, kept)
