"""What other programs call things, in a request's terms. Every reader of pictures asks here."""

from __future__ import annotations

import re
from typing import Any

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.text.clip_skip import Counting
from studio.drafts.draft import HIGHEST_SEED

_FORGE = re.compile(r"f[0-9]|neo|classic|.*forge", re.IGNORECASE)


def clip_skip(said: int, counting: Counting | None, first: int = 1) -> dict[str, Any]:
    """A program's clip skip as values of a request. first: the program's number for "skips nothing". counting: what it
    means there; None where another setting says so. Raises RequestError below `first`."""
    if said < first:
        raise RequestError(f"Clip skip={shown(said)} must be {first}, which skips nothing, or more")
    return {"clip_skip": said - first} | ({} if counting is None else {"clip_skip_as": counting})


def counting_of(program: str, version: str = "") -> Counting:
    """Who counts as a program's settings line does."""
    if program in ("Fooocus", "ComfyUI"):
        return "comfyui"
    if program == "SD.Next":
        return "diffusers"
    return "forge" if program == "reForge" or _FORGE.match(version) else "a1111"


def seed(said: int) -> int:
    """The seed, which is never rounded. Raises RequestError for one that no request takes."""
    if not 0 <= said <= HIGHEST_SEED:
        raise RequestError(
            f"seed={shown(said)} is not in 0 … {HIGHEST_SEED}; it is left out, and another one is drawn"
        )
    return said
