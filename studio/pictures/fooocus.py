"""How Fooocus and its offspring say how a picture was made, in JSON: the text `parameters` or EXIF's user comment.

Fooocus writes what was drawn, with its styles and expansion, as lists (`full_prompt`), the words that were typed as
`prompt`, LoRAs as [name, strength, hash] and once more as `lora_combined_1`. Its logs and its first versions have
titles ("Guidance Scale", "LoRA 1") in place of names. RuinedFooocus has names of its own. Fooocus's other scheme is
A1111's text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from studio.pictures.foreign import Foreign
from studio.pictures.taking import MODEL_HASH, NEGATIVE, PROMPT, Taking

_PERFORMANCE = {"speed": 30, "quality": 60, "extreme speed": 8, "lightning": 4, "hyper-sd": 4}
"""The steps of each performance; pictures of before 2.2 do not give their number."""
_NOTHING = ("version", "metadata_scheme", "software", "created_by", "user", "prompt_expansion", "fooocus_v2_expansion",
            "start_step", "steps_uov")  # fmt: skip
_NUMBERED = re.compile(r"lora(?:_combined)?_?\s?[0-9]{1,3}", re.IGNORECASE)
_LOGGED = re.compile(r"lora \[(.*)\] weight", re.IGNORECASE | re.DOTALL)


def read(said: Mapping[str, Any]) -> Foreign | None:
    """What the object says; None where it is not Fooocus's."""
    ruined = said.get("software") == "RuinedFooocus"
    if not ruined and not _is_fooocus(said):
        return None
    taking = Taking(said)
    full, negative = (taking.texts(f"full_{name}", f"real_{name}") for name in ("prompt", "negative_prompt"))
    values = taking.values()
    if full:  # what was drawn holds the styles and the expansion
        values["prompt"] = full
        taking.pass_over(*PROMPT, "styles", "style")
    if negative:
        values["negative_prompt"] = negative
        taking.pass_over(*NEGATIVE)
    taking.pass_over("raw_prompt", "raw_negative_prompt")
    performance = taking.text("performance")
    if values["steps"] is None and performance:
        values["steps"] = _PERFORMANCE.get(performance.lower())
        if values["steps"] is None:
            taking.unread["performance"] = f"{performance[:60]!r} is not known"
    values |= taking.clip_skip("comfyui")
    loras = taking.loras
    loras.take(taking.any("loras"))
    for number in range(1, 6):  # of the fork MRE
        if (name := taking.any(f"l{number}")) is not None:
            loras.take([[name, taking.any(f"w{number}")]])
    for key in taking.left():
        if _NUMBERED.fullmatch(key.strip()):
            loras.take([taking.any(key)])
        elif logged := _LOGGED.fullmatch(key.strip()):
            loras.take([[logged[1], taking.any(key)]])
    denoise = taking.real("denoise", "denoising_strength", "overwrite_strength")
    start = denoise is not None and 0 < denoise < 1
    if start:
        values["strength"] = denoise
    vae = taking.vae()
    if not taking.has("refiner_model"):
        taking.pass_over("refiner_switch", "switch", *(f"w{number}" for number in range(1, 6)))
    taking.pass_over(*_NOTHING)
    return Foreign(
        "RuinedFooocus" if ruined else "Fooocus",
        values,
        tuple(loras.wanted),
        taking.model(),
        taking.text(*MODEL_HASH) or "",
        notes=taking.notes(),
        hashes=loras.hashes,
        from_picture=start,
        vae=vae,
    )


def _is_fooocus(said: Mapping[str, Any]) -> bool:
    version = said.get("version") or said.get("Version")
    if isinstance(version, str) and "fooocus" in version.lower():
        return True
    keys = {"".join(filter(str.isalnum, key.lower())) for key in said}
    return "metadatascheme" in keys or "fullprompt" in keys or {"basemodel", "performance"} <= keys
