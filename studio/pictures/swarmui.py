"""How SwarmUI, once StableSwarmUI, says how a picture was made.

JSON in the PNG text `parameters`, or in EXIF: `sui_image_params` has the settings, `sui_extra_data` what came of them,
`sui_models` the files with the hashes of their tensors. Values may be texts, and lists may be texts with commas. In a
prompt's tag the UNet's strength stands first, `<lora:fox:0.8:0.5>`, and square brackets are words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from composers.shown import shown
from studio.pictures.foreign import Foreign
from studio.pictures.loras import stem
from studio.pictures.notes import told
from studio.pictures.taking import Taking

PROGRAM = "SwarmUI"
_TAG = re.compile(
    r"<(?P<name>[a-zA-Z]++)(?:\[(?P<data>[^\]<>]*+)\])?+(?::(?P<said>[^<>]*+))?+(?://[^<>]*+)?+>"
)
_SECTIONS = (
    "segment",
    "object",
    "region",
    "refiner",
    "video",
    "videoswap",
    "extend",
    "edit",
    "pixeldecoder",
    "clear",
)
"""Tags with which a part of the prompt begins that is for something else than the whole picture."""
_NOTHING = (
    "swarm_version", "date", "generation_time", "prep_time", "images", "image_format", "no_previews", "aspect_ratio",
    "original_prompt", "original_negative_prompt", "personal_note", "automatic_vae", "preset", "presets_used",
    "sidelength", "do_not_save", "internal_backend_type", "batchsize", "intermediates", "is_starred",
)  # fmt: skip


def read(said: Mapping[str, Any]) -> Foreign | None:
    """What the object says; None where it is not SwarmUI's."""
    params = said.get("sui_image_params")
    if not isinstance(params, Mapping):
        return None
    taking = Taking(params)
    left: list[str] = []
    values = taking.values()
    for name in ("prompt", "negative_prompt"):
        if isinstance(values[name], str):
            values[name] = _prompt(values[name], left)
    names = [taking.text(f"comfy_ui_{part}") for part in ("sampler", "scheduler")]
    if values["scheduler"] is None and names[0]:
        values["scheduler"] = Taking({"sampler": names[0], "scheduler": names[1]}).sampler()
    values |= taking.clip_skip("comfyui", "clip_stop_at_layer")  # counted from the end, as in -1
    loras = taking.loras
    loras.take(taking.any("loras"), taking.any("loraweights"), taking.any("loratencweights"))
    if _is_everywhere(params.get("lorasectionconfinement")):
        taking.pass_over("lorasectionconfinement")
    model = taking.model()
    digest = ""
    models = said.get("sui_models")
    for one in models if isinstance(models, list) else ():
        called, of, hashed = (
            one.get(key) if isinstance(one, Mapping) else None for key in ("name", "param", "hash")
        )
        if isinstance(called, str) and isinstance(hashed, str) and hashed:
            if of == "model":
                digest = hashed.removeprefix("0x")
            elif of == "loras":
                loras.hashes.setdefault(stem(called), hashed.removeprefix("0x").lower())
    creativity = taking.real(
        "initimagecreativity"
    )  # SwarmUI leaves pictures out, and writes this only with one
    start = taking.any("initimage", "init_image") is not None or creativity is not None
    if creativity is not None:
        values["strength"] = creativity
    vae = taking.vae()
    taking.pass_over(*_NOTHING)
    if not taking.real("variationseedstrength"):
        taking.pass_over("variationseed")
    notes = [f"left out of the prompt: {told(left)}"] if left else []
    return Foreign(
        PROGRAM,
        values,
        tuple(loras.wanted),
        model,
        digest,
        notes=taking.notes(notes),
        hashes=loras.hashes,
        from_picture=start,
        vae=vae,
    )


EVERYWHERE = ("-1", "0", "5")
"""Numbers of the sections in which a LoRA acts on the whole picture: all, the prompt's own, its base."""


def _is_everywhere(confined: object) -> bool:
    """Whether no LoRA is confined to a region, to the refiner or to a video."""
    rows = confined.split(",") if isinstance(confined, str) else confined
    return isinstance(rows, list) and all(str(one).strip() in EVERYWHERE for one in rows)


def _prompt(text: str, left: list[str]) -> str:
    """The prompt in our words: its tags translated, or left out and named in `left`."""
    kept, end = "", 0
    for tag in _TAG.finditer(text):
        kept += _words(text[end : tag.start()])
        end = tag.end()
        name, said = tag["name"].lower(), tag["said"] or ""
        if name == "base":  # words for the picture itself, after those for all passes
            continue
        if name in _SECTIONS:
            left.append(shown(" ".join(text[tag.start() :].split()))[1:-1])
            end = len(text)
            break
        translated = _translated(name, tag["data"] or "", said)
        if translated is None:
            left.append(shown(tag[0])[1:-1])
        else:
            kept += translated
    return (kept + _words(text[end:])).strip()


def _translated(name: str, data: str, said: str) -> str | None:
    match name:
        case "lora":
            of, *weights = said.split(":")
            named = stem(of)
            if len(weights) == 2:
                return f"<lora:{named}:te={weights[1]}:unet={weights[0]}>"
            return f"<lora:{':'.join([named, *weights])}>"
        case "break":
            return "BREAK"
        case "embed" | "embedding":
            return f"embedding:{stem(said)}"
        case "fromto" if len(words := _parts(said)) == 2 and data:
            return f"[{words[0]}:{words[1]}:{data}]"
        case "alternate" | "alt" if len(words := _parts(said)) > 1:
            return f"[{'|'.join(words)}]"
        case "comment":
            return ""
    return None


def _parts(said: str) -> list[str]:
    return [part.strip() for part in said.split("||" if "||" in said else "|" if "|" in said else ",")]


def _words(text: str) -> str:
    return re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", text)
