"""A picture rendered again: with the model that it names, on as many threads, and compared with what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from pipelines import StudioPipeline
from pipelines.checkpoints.folders import folder_files
from pipelines.checkpoints.hashes import short_hash
from pipelines.errors import ModelError, RequestError
from pipelines.home import Entry, Home
from studio.drafts.draft import Draft
from studio.drafts.init_image import picture_mark, read_init_image
from studio.pictures.comparison import Comparison, compare
from studio.pictures.metadata import Remembered
from studio.rendering.once import Outcome
from studio.rendering.opening import Opening, pick_device

Say = Callable[[str], None]


def opening_again(asked: Opening, remembered: Remembered, home: Home, say: Say) -> Opening:
    """How to open the model: as asked, then as the picture says. Raises ModelError."""
    opening = asked
    if opening.source is None and remembered.model:
        opening = replace(opening, source=remembered_model(remembered, home, say))
    if opening.vae is None and not asked.source:
        opening = replace(opening, vae=remembered.setup.vae)
    dtype = remembered.record.get("dtype")
    if opening.dtype is None and isinstance(dtype, str) and _same_kind_of_device(remembered, opening, home):
        opening = replace(opening, dtype=dtype)
    return replace(opening, low_memory=opening.low_memory or remembered.setup.low_memory)


def remembered_model(remembered: Remembered, home: Home, say: Say) -> str:
    """The model a picture was made with, by name, else by hash. Raises ModelError."""
    names: list[str] = [remembered.model, str(remembered.record.get("model_source", ""))]
    for name in filter(None, dict.fromkeys(names)):
        try:
            home.find_model(name)
            return name
        except ModelError:
            continue
    wanted = remembered.model_hash.lower()
    if wanted:
        say(
            f"model {remembered.model!r} is not here under that name; comparing the hashes of those that are …"
        )
        for entry in home.models():
            if _model_hash(entry, home) == wanted[:10]:
                say(f"model {remembered.model!r} was found by its hash: it is called {entry.name!r} here")
                return str(entry.path)
    called = f"{remembered.model!r}" + (f" (hash {wanted})" if wanted else "")
    raise ModelError(
        f"the model {called} of this picture is not here; put it into {home.path / 'models'}, name its folder with "
        "--model-dir, or take another one with --model"
    )


def _model_hash(entry: Entry, home: Home) -> str:
    try:
        files = folder_files(entry.path, torch.float32) if entry.path.is_dir() else [entry.path]
        return short_hash(files, home.hashes)
    except (ModelError, OSError):
        return ""


def _same_kind_of_device(remembered: Remembered, opening: Opening, home: Home) -> bool:
    was_cpu = str(remembered.record.get("device", "")).startswith("cpu")
    return was_cpu == (pick_device(opening.device or home.settings.device or "auto").type == "cpu")


def check_init_image(remembered: Remembered, draft: Draft, say: Say) -> None:
    """Says so where another initial image is given than the picture was made from. Raises RequestError for none."""
    if remembered.init_image is None:
        return
    image = draft.init_image
    if image is None:
        raise RequestError(
            "this picture was made from another one, which is not stored in it; give that with --init-image"
        )
    mark = remembered.init_image.get("sha256")
    if mark and picture_mark(read_init_image(image))["sha256"] != mark:
        say(f"{image} is not the initial image that this picture was made from, so it will differ")


def check_model(remembered: Remembered, pipe: StudioPipeline, say: Say) -> None:
    """Says so where the model has other weights than the picture was made with."""
    if not remembered.ours:
        return
    here = pipe.model.checkpoint
    if here.hash != remembered.model_hash:
        say(
            f"{here.label} has other weights (hash {here.hash}) than the model this picture was made with "
            f"({remembered.model}, hash {remembered.model_hash}), so the picture will differ"
        )


@contextmanager
def threads_of(remembered: Remembered | None) -> Iterator[None]:
    """As many threads as the picture was made with, since sums depend on how they are divided."""
    threads = remembered.record.get("threads") if remembered else None
    before = torch.get_num_threads()
    if not isinstance(threads, int) or not 1 <= threads <= 1024 or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared(picture: Path, remembered: Remembered, outcome: Outcome) -> Comparison | None:
    """The picture that was rendered again against the one it came from, where that is one of ours."""
    again = outcome.finished.get(0)
    if not remembered.ours or again is None:
        return None
    return compare(picture, remembered.record, again.image, again.record)
