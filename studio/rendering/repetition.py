"""Rendering a picture again: with the model that it names, on as many threads, and compared with the old one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from pipelines import StudioPipeline
from pipelines.errors import ModelError, RequestError
from pipelines.home import Home
from studio.drafts.draft import Draft
from studio.drafts.input_images import picture_mark, read_input
from studio.library.known import Missing, model_with_hash
from studio.pictures.comparison import Comparison, compare
from studio.pictures.restore import Restored
from studio.rendering.once import Outcome
from studio.rendering.opening import Opening, pick_device

Say = Callable[[str], None]


def opening_again(asked: Opening, restored: Restored, home: Home, say: Say) -> Opening:
    """How to open the model: as the user asks, and where nothing is asked, as the picture says. Where a VAE of another
    program's picture is missing, the model's own is taken and told. Raises ModelError that names everything else that
    is missing."""
    missing = {one.kind: one for one in restored.missing if one.kind != "LoRA"}
    lacking = [one for one in restored.missing if one.kind == "LoRA"]
    opening = asked
    if asked.source is None:
        source = restored.model or restored.hub or _model_by_hash(restored, home, say)
        lacking += [missing["model"]] if "model" in missing and not source else []
        opening = replace(opening, source=source or None)
    if asked.vae is None:
        told = missing.get("VAE") or f"VAE {restored.vae!r} of this picture is not taken with another model"
        if not asked.source:
            opening = replace(opening, vae=restored.vae)
        if not asked.source and "VAE" in missing and restored.said.ours:
            lacking.append(missing["VAE"])
        elif "VAE" in missing or (asked.source and restored.vae):
            say(f"{told}, so the model's own decodes; name one with --vae")
    if lacking:
        raise ModelError("\n".join(f"{one}; {_remedy(one, home)}" for one in lacking))
    dtype = restored.record.get("dtype")
    if opening.dtype is None and isinstance(dtype, str) and _same_kind_of_device(restored, opening, home):
        opening = replace(opening, dtype=dtype)
    return replace(opening, low_memory=opening.low_memory or restored.said.setup.low_memory)


def _model_by_hash(restored: Restored, home: Home, say: Say) -> str:
    """The path of the model whose hash the picture gives; "" where it is not here."""
    entry = model_with_hash(home, restored.said.model_hash, say)
    if entry is None:
        return ""
    say(f"model {restored.said.model!r} was found by its hash: it is called {entry.name!r} here")
    return str(entry.path)


def _remedy(missing: Missing, home: Home) -> str:
    folder, flag, other = {
        "LoRA": ("loras", "--lora-dir", ""),
        "model": ("models", "--model-dir", ", or take another one with --model"),
        "VAE": ("vae", "config.toml", ", or take another one with --vae"),
    }[missing.kind]
    return f"put it into {home.path / folder}, name its folder with {flag}{other}"


def _same_kind_of_device(restored: Restored, opening: Opening, home: Home) -> bool:
    was_cpu = str(restored.record.get("device", "")).startswith("cpu")
    return was_cpu == (pick_device(opening.device or home.settings.device or "auto").type == "cpu")


def check_init_image(restored: Restored, draft: Draft, say: Say) -> None:
    """Warns where the given initial image is not the one that the picture was made from. Raises RequestError where
    the picture was made from one and none is given."""
    if restored.said.init_image is None:
        return
    image = draft.images.get("init_image")
    if image is None:
        raise RequestError(
            "this picture was made from another one, which is not stored in it; give that with --init-image"
        )
    mark = restored.said.init_image.get("sha256")
    if mark and picture_mark(read_input("init_image", image))["sha256"] != mark:
        say(f"{image} is not the initial image that this picture was made from, so it will differ")


def check_model(restored: Restored, pipe: StudioPipeline, say: Say) -> None:
    """Warns where the model's weights are not those that the picture was made with."""
    if not restored.said.ours:
        return
    here = pipe.model.checkpoint
    if here.hash != restored.said.model_hash:
        say(
            f"{here.label} has other weights (hash {here.hash}) than the model this picture was made with "
            f"({restored.said.model}, hash {restored.said.model_hash}), so the picture will differ"
        )


@contextmanager
def threads_of(restored: Restored | None) -> Iterator[None]:
    """While the block runs, torch uses as many threads as when the picture was made: the way a sum is divided among
    threads changes its rounding."""
    threads = restored.record.get("threads") if restored else None
    before = torch.get_num_threads()
    if not isinstance(threads, int) or not 1 <= threads <= 1024 or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared(picture: Path, restored: Restored, outcome: Outcome) -> Comparison | None:
    """The new picture compared with the old one; None where the old one is not ours, or there is no new one."""
    again = outcome.finished.get(0)
    if not restored.said.ours or again is None:
        return None
    return compare(picture, restored.record, again.image, again.record)
