"""What other programs call things, in a request's terms. Every reader of pictures asks here."""

from __future__ import annotations

from collections.abc import Mapping

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.schedulers import canonical
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

_NO_SPACING = ("", "automatic", "uniform", "normal", "simple", "default", "native", "none")
"""Schedules that are the solver's usual one."""


def clip_skip(said: int) -> int:
    """A1111's count, in which 1 skips nothing, as a request counts. Raises RequestError below 1."""
    if said < 1:
        raise RequestError(f"Clip skip={shown(said)} must be 1, which skips nothing, or more")
    return said - 1


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
