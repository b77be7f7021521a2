"""Reads how pictures of other programs were made (ComfyUI, InvokeAI, NovelAI, Fooocus).

ComfyUI's graphs are read by `studio.pictures.comfyui`, the others with the library sd-parsers. What that library leaves
out is read here: InvokeAI's LoRAs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import PromptInfo

from composers.shown import shown
from pipelines.errors import RequestError, StudioError
from pipelines.home.plain import read_json, short
from pipelines.schedulers import named
from studio.drafts.draft import Wanted
from studio.drafts.picture_file import MOST_SAID
from studio.pictures.comfyui import read_comfyui

LONGEST_LINE = 10_000
"""Most characters of a text that sd-parsers searches by patterns; some of these take quadratic time."""
LONGEST_NUMBER = 100
"""Characters."""
SEARCHED = ("parameters", "Dream", "Source")


@dataclass(frozen=True)
class Foreign:
    """What a picture of another program says. values: by Request's names, unchecked. wanted: its LoRAs, without those
    of tags in its prompt. model, digest: name and hash of its model, "" where it gives none. from_picture: it was
    made from another picture. notes: what was not understood. hashes: name of a LoRA -> its hash. vae: name of its
    VAE."""

    program: str
    values: Mapping[str, Any]
    wanted: tuple[Wanted, ...]
    model: str
    digest: str
    from_picture: bool = False
    notes: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    vae: str | None = None


def read_foreign(file: Path, texts: Mapping[str, str]) -> Foreign:
    """What the picture says. texts: its text chunks. Raises RequestError where it does not say how it was made."""
    said = read_comfyui(file.name, texts)
    if said is not None:
        return Foreign(
            "ComfyUI", said.values, said.wanted, said.model, "", said.from_picture, said.notes, vae=said.vae
        )
    info, prompt, negative = _parsed(file, texts)
    sampler = info.samplers[0] if info.samplers else None
    settings: Mapping[str, Any] = {**info.metadata, **(sampler.parameters if sampler else {})}
    values: dict[str, Any] = {
        "prompt": _text(prompt),
        "negative_prompt": _text(negative) or None,
        "steps": _whole(settings, "steps"),
        "seed": _whole(settings, "seed", "noise_seed"),
        "guidance_scale": _real(settings, "cfg_scale", "cfg", "guidance_scale"),
        "scheduler": _sampler_name(_text(sampler.name) if sampler else "", settings),
        "width": _whole(settings, "width"),
        "height": _whole(settings, "height"),
    }
    model, digest = _model(info)
    return Foreign(str(info.generator.value), values, tuple(_loras(info.raw_parameters)), model, digest)


def _parsed(file: Path, texts: Mapping[str, str]) -> tuple[PromptInfo, object, object]:
    """What sd-parsers finds: everything, the prompt, and the negative prompt. Raises RequestError."""
    info: PromptInfo | None
    _check_texts(file, texts)
    try:
        info = ParserManager().parse(_texts_alone(texts))
        if info is not None and (info.samplers or info.metadata):
            return info, info.full_prompt, info.full_negative_prompt
    except Exception as error:  # over a damaged text, sd-parsers may raise anything
        raise RequestError(
            f"{file.name}: what it says about itself cannot be understood ({short(error)}); set it up by hand"
        ) from error
    raise RequestError(
        f"{file.name} does not say how it was made; give the file as it was saved, messengers and image hosts strip it"
    )


def _texts_alone(texts: Mapping[str, str]) -> Image.Image:
    """A picture for sd-parsers with these texts and no pixels: sd-parsers decodes whatever it is given."""
    picture = Image.Image()
    picture.format = "PNG"
    picture.info.update(texts)
    return picture


def _check_texts(file: Path, texts: Mapping[str, str]) -> None:
    """Raises RequestError for texts that would take too long to search."""
    for name in SEARCHED:
        if len(texts.get(name, "")) > LONGEST_LINE:
            raise RequestError(
                f"{file.name}: its text {shown(name)} has {len(texts[name])} characters, more than {LONGEST_LINE}; "
                "set it up by hand"
            )
    for name, text in texts.items():
        if text.lstrip()[:1] in ("{", "["):
            _read(text, f"{file.name}: its text {shown(name)}")


def _text(value: object) -> str:
    """The value if it is a text, else ""."""
    return value if isinstance(value, str) else ""


def _model(info: PromptInfo) -> tuple[str, str]:
    """The model's name and hash, "" where the picture does not give them."""
    model = info.samplers[0].model if info.samplers else None
    if model is not None and isinstance(model.name, str | None):
        return model.name or "", _text(model.hash)
    said = _json(info.raw_parameters.get("invokeai_metadata"))  # InvokeAI from 4 on
    own = said.get("model") if isinstance(said, Mapping) else None
    name = own.get("name") if isinstance(own, Mapping) else None
    return (name if isinstance(name, str) else ""), ""


def _loras(raw: Mapping[str, Any]) -> list[Wanted]:
    """The LoRAs of InvokeAI's list."""
    found: dict[str, Wanted] = {}
    invoke = _json(raw.get("invokeai_metadata"))
    loras = invoke.get("loras") if isinstance(invoke, Mapping) else None
    for lora in loras if isinstance(loras, list) else []:
        model = lora.get("model") or lora.get("lora") if isinstance(lora, Mapping) else None
        called = (model.get("name") or model.get("model_name")) if isinstance(model, Mapping) else None
        if isinstance(called, str):
            found.setdefault(called.casefold(), Wanted(called, _real(lora, "weight")))
    return list(found.values())


def _sampler_name(name: str, settings: Mapping[str, Any]) -> str | None:
    """The scheduler's name here. Some programs give solver and spacing separately, as ComfyUI does."""
    return named(name, _text(settings.get("scheduler"))) if name else None


def _json(value: object) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return _read(value, "the text")
    except StudioError:
        return None


def _read(text: str, where: str) -> Any:
    return read_json(
        text, where, most=MOST_SAID, finite=False
    )  # ComfyUI writes NaN for values that never compare equal


def _whole(values: Mapping[str, Any], *names: str) -> int | None:
    number = _real(values, *names)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def _real(values: Mapping[str, Any], *names: str) -> float | None:
    """The first finite number under one of these names; None where there is none."""
    for name in names:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        if isinstance(value, str) and len(value) > LONGEST_NUMBER:
            continue
        try:
            number = float(value)
        except (ValueError, OverflowError):
            continue
        if math.isfinite(number):
            return number
    return None
