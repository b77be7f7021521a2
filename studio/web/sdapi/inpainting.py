"""Inpainting as A1111's clients ask for it: the fields of img2img that belong to a mask.

A1111's defaults are taken where a field is left out: the masked content is filled, only the masked area is drawn, with
no padding around it, and the mask's edges are blurred by 4 pixels. Without a mask none of these fields means anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composers.shown import shown
from pipelines.errors import RequestError
from studio.web.sdapi.values import asks_nothing, number, truth, whole

CONTENTS = ("fill", "original", "noise", "nothing")
"""`mask_content` by A1111's `inpainting_fill`."""
OTHERS = ("mask_blur_x", "mask_blur_y")
UNKNOWN = ("mask_expansion", "use_sharp_mask")


def mask_of(body: Mapping[str, Any]) -> str | None:
    """The mask as base64 text; None where there is none. Raises RequestError."""
    mask = body.get("mask")
    if asks_nothing(mask):
        return None
    if not isinstance(mask, str):
        raise RequestError("mask must be one picture as base64 text")
    return mask


def mask_values(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that belong to a mask, as a call with a mask says them. Raises RequestError."""
    fill, blur = whole(body, "inpainting_fill", 0), whole(body, "mask_blur", 4)
    if fill not in range(len(CONTENTS)):
        offered = ", ".join(f"{place} ({name})" for place, name in enumerate(CONTENTS))
        raise RequestError(f"inpainting_fill={shown(fill)} must be one of {offered}")
    for name in OTHERS:
        if number(body.get(name)) not in (None, blur):
            raise RequestError(
                f"{name}={shown(body[name])}: a mask is blurred alike both ways; send mask_blur"
            )
    for name in UNKNOWN:
        if not asks_nothing(body.get(name)) and number(body.get(name)) != 0:
            raise RequestError(f"{name}={shown(body[name])}: not offered here; leave the field out")
    return {
        "mask_blur": blur,
        "mask_content": CONTENTS[fill],
        "mask_area": "only masked" if truth(body, "inpaint_full_res", True) else "whole picture",
        "mask_padding": whole(body, "inpaint_full_res_padding", 0),
    }


def is_inverted(body: Mapping[str, Any]) -> bool:
    """Whether black is drawn instead of white. Raises RequestError."""
    return truth(body, "inpainting_mask_invert", False)
