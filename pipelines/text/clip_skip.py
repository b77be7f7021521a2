"""Which layer of a text encoder conditions the UNet: "clip skip", which programs count differently.

    diffusers  the positive prompt skips that many layers from the family's usual one
    a1111      both prompts; SD1.x alone, since A1111 ignores it for SD2.x and SDXL
    forge      both prompts; SDXL begins to skip with the second, as its usual layer is the last but one
    comfyui    both prompts; counted from the very last layer, so that SD2.x's and SDXL's usual one is 1

All numbers here count from 0, which skips nothing. A1111, Forge and Fooocus show one more; ComfyUI shows -1 for 0.
Sources: diffusers `encode_prompt`; A1111 `modules/sd_hijack_clip.py` and `sd_hijack_open_clip.py`; Forge
`backend/text_processing/classic_engine.py`; ComfyUI `comfy/sd1_clip.py`.
"""

from __future__ import annotations

from typing import Literal

from composers.plan import Role
from pipelines.families.family import Family, FamilyName

Counting = Literal["diffusers", "a1111", "forge", "comfyui"]
"""The program that counted."""


def layers_skipped(clip_skip: int | None, counting: Counting, family: FamilyName, role: Role) -> int | None:
    """How many layers a prompt skips, counted from its family's usual layer; -1 takes the layer after it.

    None takes the usual layer.
    """
    if clip_skip is None or (counting == "diffusers" and role != "positive"):
        return None
    if counting == "a1111":
        return clip_skip if family == "sd1" else None
    if counting == "forge" and family == "sdxl":
        return max(clip_skip - 1, 0)
    if counting == "comfyui" and family != "sd1":
        return clip_skip - 1
    return clip_skip


def remark(clip_skip: int | None, counting: Counting, family: Family) -> tuple[str, ...]:
    """A note where a clip skip means nothing."""
    if not clip_skip or counting != "a1111" or family.name == "sd1":
        return ()
    return (f"A1111 has no clip skip for {family.label}: of clip skip {clip_skip + 1}, no layer is skipped",)
