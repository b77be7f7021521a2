"""Reads how pictures of other programs were made (ComfyUI, InvokeAI, NovelAI, Fooocus), with the library sd-parsers.

What that library leaves out is read here: LoRA loaders, the size in ComfyUI's pictures, and ComfyUI's pictures that
hold no drawn workflow.
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
from sd_parsers.parsers import ComfyUIParser

from composers.shown import shown
from pipelines.errors import RequestError, StudioError
from pipelines.home.plain import read_json, short
from studio.drafts.draft import Wanted
from studio.drafts.picture_file import MOST_SAID
from studio.pictures.terms import COMFY_SAMPLERS

LONGEST_LINE = 10_000
"""Most characters of a text that sd-parsers searches by patterns; some of these take quadratic time."""
LONGEST_NUMBER = 100
"""Characters."""
SEARCHED = ("parameters", "Dream", "Source")
MOST_NODES = 5_000
MOST_LINKS = 20_000
"""Most nodes, and most links, of a workflow."""
MOST_WORK = 3_000_000
"""Most values that may be copied while a workflow is searched. The search goes from each sampler to its prompts, and
copies all that lies between."""


@dataclass(frozen=True)
class Foreign:
    """What a picture of another program says. values: by Request's names, unchecked. wanted: its LoRAs, without those
    of tags in its prompt. model, digest: name and hash of its model, "" where it gives none. from_picture: it was
    made from another picture. notes: what was not understood. hashes: name of a LoRA -> its hash."""

    program: str
    values: Mapping[str, Any]
    wanted: tuple[Wanted, ...]
    model: str
    digest: str
    from_picture: bool = False
    notes: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)


def read_foreign(file: Path, texts: Mapping[str, str]) -> Foreign:
    """What the picture says. texts: its text chunks. Raises RequestError where it does not say how it was made."""
    info, prompt, negative = _parsed(file, texts)
    sampler = info.samplers[0] if info.samplers else None
    settings: Mapping[str, Any] = {**info.metadata, **(sampler.parameters if sampler else {})}
    width, height = _size(settings, info.raw_parameters)
    values: dict[str, Any] = {
        "prompt": _text(prompt),
        "negative_prompt": _text(negative) or None,
        "steps": _whole(settings, "steps"),
        "seed": _whole(settings, "seed", "noise_seed"),
        "guidance_scale": _real(settings, "cfg_scale", "cfg", "guidance_scale"),
        "scheduler": _sampler_name(_text(sampler.name) if sampler else "", settings),
        "width": width,
        "height": height,
    }
    model, digest = _model(info)
    return Foreign(str(info.generator.value), values, tuple(_loras(info.raw_parameters)), model, digest)


def _parsed(file: Path, texts: Mapping[str, str]) -> tuple[PromptInfo, object, object]:
    """What sd-parsers finds: everything, the prompt, and the negative prompt. Raises RequestError."""
    info: PromptInfo | None
    _check_texts(file, texts)
    try:
        nodes = comfy_nodes(texts)
        if nodes and "workflow" not in texts:
            links = {"links": _links(nodes)}
            info = ComfyUIParser().parse({"prompt": nodes, "workflow": links})
        else:
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
    nodes = comfy_nodes(texts)
    drawn = _json(texts.get("workflow"))
    links = drawn.get("links") if isinstance(drawn, Mapping) else None
    inputs = [own for node in nodes.values() if isinstance(own := node.get("inputs"), Mapping)]
    samplers = sum("steps" in own or "cfg" in own for own in inputs)
    samplers += sum("Sampler" in _text(node.get("class_type")) for node in nodes.values())
    told = sum(
        any(isinstance(own.get(key), str) for key in ("text", "positive", "negative")) for own in inputs
    )
    values = sum(map(len, inputs))
    drawn_links = len(links) if isinstance(links, list) else 0
    if len(nodes) > MOST_NODES or drawn_links > MOST_LINKS or samplers * (told + 1) * values > MOST_WORK:
        raise RequestError(
            f"{file.name}: its workflow has {len(nodes)} nodes, {samplers} samplers and {told} prompts, too many to be "
            "searched; set it up by hand"
        )


def _text(value: object) -> str:
    """The value if it is a text, else ""."""
    return value if isinstance(value, str) else ""


def _model(info: PromptInfo) -> tuple[str, str]:
    """The model's name and hash, "" where the picture does not give them."""
    for node in comfy_nodes(
        info.raw_parameters
    ).values():  # sd-parsers takes a LoRA loader's input for the model
        inputs = node.get("inputs")
        name = inputs.get("ckpt_name") if isinstance(inputs, Mapping) else None
        if isinstance(name, str):
            return name, ""
    model = info.samplers[0].model if info.samplers else None
    if model is not None and isinstance(model.name, str | None):
        return model.name or "", _text(model.hash)
    said = _json(info.raw_parameters.get("invokeai_metadata"))  # InvokeAI from 4 on
    own = said.get("model") if isinstance(said, Mapping) else None
    name = own.get("name") if isinstance(own, Mapping) else None
    return (name if isinstance(name, str) else ""), ""


def _size(settings: Mapping[str, Any], raw: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Width and height. ComfyUI gives them in the node that makes the empty latents."""
    places = [settings]
    for node in comfy_nodes(raw).values():
        inputs = node.get("inputs")
        if isinstance(inputs, Mapping) and "Latent" in str(node.get("class_type")):
            places.append(inputs)
    for place in places:
        width, height = _whole(place, "width"), _whole(place, "height")
        if width and height:
            return width, height
    return None, None


def _links(nodes: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """The links of a drawn workflow, from the nodes' inputs: [id, from, slot, to, slot, type]."""
    found: list[list[Any]] = []
    for target, node in nodes.items():
        inputs = node.get("inputs")
        for name, value in inputs.items() if isinstance(inputs, Mapping) else ():
            if isinstance(value, list) and len(value) == 2:
                found.append([len(found), str(value[0]), value[1], target, 0, str(name).upper()])
    return found


def _loras(raw: Mapping[str, Any]) -> list[Wanted]:
    """The LoRAs of ComfyUI's loader nodes, in the order of the nodes, or of InvokeAI's list."""
    found: dict[str, Wanted] = {}
    for node in comfy_nodes(raw).values():
        inputs = node.get("inputs")
        if isinstance(inputs, Mapping):
            for name, weight, text in _comfy_loras(inputs):
                found.setdefault(name.casefold(), Wanted(name, weight, text))
    invoke = _json(raw.get("invokeai_metadata"))
    loras = invoke.get("loras") if isinstance(invoke, Mapping) else None
    for lora in loras if isinstance(loras, list) else []:
        model = lora.get("model") or lora.get("lora") if isinstance(lora, Mapping) else None
        called = (model.get("name") or model.get("model_name")) if isinstance(model, Mapping) else None
        if isinstance(called, str):
            found.setdefault(called.casefold(), Wanted(called, _real(lora, "weight")))
    return list(found.values())


def comfy_nodes(raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """ComfyUI's nodes by id; {} in other programs' pictures."""
    nodes = _json(raw.get("prompt"))
    if not isinstance(nodes, Mapping):
        return {}
    return {str(number): node for number, node in nodes.items() if isinstance(node, Mapping)}


def _comfy_loras(inputs: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """(name, strength, text-encoder strength) of each LoRA in a node's inputs: those of LoraLoader, or of rgthree's
    power loader ({"lora_1": {"on", "lora", "strength"}})."""
    found: list[tuple[str, float | None, float | None]] = []
    name = inputs.get("lora_name")
    if isinstance(name, str):
        weight = _real(inputs, "strength_model")
        text = _real(inputs, "strength_clip")
        found.append((_stem(name), weight, None if text == weight else text))
    for value in inputs.values():
        if isinstance(value, Mapping) and isinstance(value.get("lora"), str) and value.get("on", True):
            found.append((_stem(value["lora"]), _real(value, "strength"), _real(value, "strengthTwo")))
    return found


def _stem(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")


def _sampler_name(name: str, settings: Mapping[str, Any]) -> str | None:
    """The scheduler's name here. ComfyUI gives solver and spacing separately."""
    if not name:
        return None
    spacing = _text(settings.get("scheduler")).lower()
    both = f"{name} {spacing}" if spacing == "karras" and "karras" not in name.lower() else name
    return COMFY_SAMPLERS.get(both.lower(), both)


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
