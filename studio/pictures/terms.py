"""What other programs call things, in a request's terms. Every reader of pictures asks here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.schedulers import canonical
from pipelines.text.clip_skip import Counting
from studio.drafts.draft import HIGHEST_SEED

COMFY_SAMPLERS: Mapping[str, str] = {
    "dpmpp_2m karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde karras": "DPM++ 2M SDE Karras",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_2m_sde_gpu karras": "DPM++ 2M SDE Karras",
    "dpmpp_3m_sde karras": "DPM++ 3M SDE Karras",
    "dpmpp_3m_sde_gpu karras": "DPM++ 3M SDE Karras",
    "euler_ancestral": "Euler a",
    "dpm_2 karras": "DPM2 Karras",
}
"""ComfyUI's solver and spacing -> our name, where no alias of a scheduler covers it."""

_FORGE = re.compile(r"f[0-9]|neo|.*forge", re.IGNORECASE)
_NO_SPACING = ("", "automatic", "uniform", "normal", "simple", "default", "native", "none")
"""Schedules that are the solver's usual one."""


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


def sampler(name: str, spacing: str = "") -> str:
    """The sampler that a program's name and its schedule's name stand for. A name that is not known comes back as it
    is, and is refused, with its reason, by whoever asks for it."""
    name, spacing = " ".join(name.split()), " ".join(spacing.split())
    if spacing.lower() in _NO_SPACING or name.lower().replace("_", " ").endswith(
        spacing.lower().replace("_", " ")
    ):
        both = name
    else:
        both = f"{name} {spacing}"
    both = COMFY_SAMPLERS.get(both.lower(), both)
    for spelled in (both, both.removeprefix("k_").removeprefix("K_")):
        spelled = COMFY_SAMPLERS.get(spelled.lower(), spelled)
        try:
            return canonical(spelled)
        except RequestError:
            continue
    return both


def seed(said: int) -> int:
    """The seed, which is never rounded. Raises RequestError for one that no request takes."""
    if not 0 <= said <= HIGHEST_SEED:
        raise RequestError(
            f"seed={shown(said)} is not in 0 … {HIGHEST_SEED}; it is left out, and another one is drawn"
        )
    return said
