"""A1111's text about a picture (the PNG chunk `parameters`), written and read. Pure: no model, no file.

    a fox in a red hat <lora:fox:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, CFG scale: 3.5, Seed: 7, Size: 128x128, Model hash: 0123456789, Model: tiny-sdxl,
    Lora hashes: "fox: 0123456789ab"

The last line (broken in two here) holds the settings; `studio.pictures.infotext` takes the text apart. A value with a
comma, a colon or a line break is written as a JSON string. The keys come from the table of a request's fields
(`studio.drafts.fields`); only what A1111 expresses in its own way is spelled here. Other programs use more keys than we
know; those that are not understood are listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from composers.errors import StudioError
from composers.registry import parse as parse_composer
from composers.registry import spell
from composers.shown import shown
from pipelines.bounds import check_text
from pipelines.errors import RequestError
from pipelines.request import Request
from pipelines.schedulers import is_class, named, nearest, scheduler_names
from pipelines.text.clip_skip import Counting
from pipelines.text.tags import sift_tags
from studio.drafts.draft import Wanted
from studio.drafts.entries import LONGEST_METHOD
from studio.drafts.fields import BY_NAME, FIELDS, Field
from studio.pictures import infotext, terms
from studio.pictures.loras import MOST_SAID, Loras, hashes_of, stem

_SPECIAL = re.compile(r'[,:\n"]')
_SIZE = re.compile(r"([0-9]{1,9}+) ?[xX\u00d7] ?([0-9]{1,9}+)")
_NUMBER = re.compile(
    r"[+-]?+(?:[0-9]{1,40}+(?:[.,][0-9]{0,60}+)?+|\.[0-9]{1,60}+)(?:[eE][+-]?+[0-9]{1,3}+)?+"
)
_WHOLE = re.compile(r"([+-]?+[0-9]++)\.0*+")

BY_KEY: Mapping[str, Field] = {field.key: field for field in FIELDS if field.key}
FIRST = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model", "Denoising strength", "Clip skip",
         "CFG Rescale", "Composition")  # fmt: skip
"""The order that other programs expect. Keys of our own come after it."""
LAST = ("Lora hashes", "Version")
HIRES = ("Hires ", "First pass")
"""With a key that begins so, the denoising strength is that of a second pass, and there was no initial image."""
OWN = "lora-studio"
"""How the version of our own texts begins."""
BESIDE = ("Schedule type", "Sampler sigma", "Model", "Model hash", "VAE", "VAE hash", *LAST, "Lora weights",
          "LoRA networks", "Hashes", "Civitai resources", "App")  # fmt: skip
"""Keys that are read together with others, or that belong to no field of a request."""
NOTHING = ("Created Date", "Civitai metadata", "User", "Pipeline", "LoRA tags", "Raw prompt",
           "Raw negative prompt", "ADetailer version", "Index", "Batch pos", "Batch")  # fmt: skip
"""Keys that say nothing of how the picture looks, beside what is read."""
OFF = ("none", "false", "automatic", "default (model)", "default", "txt2img")
"""Values, in small letters, of settings that nothing reads, by which nothing is lost."""


@dataclass(frozen=True)
class Parameters:
    """What the text says. None stands for what it does not say.

    prompt: with its `<lora:…>` tags. values: the other fields of a request, by Request's names and in Request's units;
    a sampler that is known and not offered too, for which `nearest` tells another one. model, vae: names of files.
    loras: those that no tag of the prompt names. lora_hashes: adapter name -> its short hash. program: what wrote it.
    ignored: keys that mean nothing here, and what is no setting. unread: key -> what is wrong with its value.
    """

    prompt: str
    negative_prompt: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    vae: str | None = None
    model_hash: str | None = None
    loras: tuple[Wanted, ...] = ()
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    program: str = "A1111"
    version: str | None = None
    ignored: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)


# -- writing ---------------------------------------------------------------------------------------------


def write(said: Parameters) -> str:
    """The text, as A1111 and the programs that follow it expect it."""
    values = {name: value for name, value in said.values.items() if value is not None}
    own = {
        field.key: _written(field, values[field.name])
        for field in FIELDS
        if field.key and field.name in values
    }
    hashes = ", ".join(f"{name}: {short}" for name, short in said.lora_hashes.items())
    found = {
        **own,
        "Size": f"{values['width']}x{values['height']}" if {"width", "height"} <= values.keys() else None,
        "Model hash": said.model_hash or None,
        "Model": said.model,
        "Denoising strength": _plain("strength", values),
        "Clip skip": str(values["clip_skip"] + 1) if "clip_skip" in values else None,
        "Lora hashes": hashes or None,
        "Version": said.version,
    }
    keys = (*FIRST, *(key for key in own if key not in FIRST), *LAST)
    pairs = [(key, text) for key in keys if (text := found.get(key)) is not None]
    lines = [said.prompt]
    if said.negative_prompt:
        lines.append(f"{infotext.NEGATIVE} {said.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(text)}" for key, text in pairs))
    return "\n".join(lines)


def _written(field: Field, value: Any) -> str:
    return spell(value) if field.kind == "method" else field.write(value)


def _plain(name: str, values: Mapping[str, Any]) -> str | None:
    return BY_NAME[name].write(values[name]) if name in values else None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if _SPECIAL.search(text) or text != text.strip() else text


# -- reading ---------------------------------------------------------------------------------------------


def read(text: str) -> Parameters:
    """What such a text says. Whatever cannot be understood is left out and named; no text is refused."""
    prompt, negative, said = infotext.taken_apart(text)
    pairs = said.pairs
    values: dict[str, Any] = {}
    ignored: list[str] = []
    unread: dict[str, str] = dict(said.broken)
    loras = _loras(pairs, unread)
    for key, value in pairs.items():
        if key in BESIDE or key in loras.taken:
            continue
        try:
            found = _values(key, value, pairs)
            if found is None:
                if key not in NOTHING and value.lower() not in OFF:
                    ignored.append(key)
                continue
            if nearest(str(found.get("scheduler", ""))) is None:
                Request("", **found)  # the gate of all values
            values |= found
        except StudioError as error:
            unread[key] = str(error)
    if "Sampler" not in pairs and pairs.get("Schedule type"):
        alone = named("", pairs["Schedule type"])
        known = is_class(pairs["Schedule type"]) and alone in scheduler_names()
        if known:  # SD.Next names the model's own so
            values["scheduler"] = alone
        else:
            ignored.append("Schedule type")
    if "VAE hash" in pairs and "VAE" not in pairs:
        ignored.append("VAE hash")
    ignored += [f"LoRA {name}" for name in _without_tags(pairs.get("LoRA networks", ""), prompt)]
    model_hash, hashes = hashes_of(infotext.read_value(pairs.get("Hashes", "")))
    version = pairs.get("Version")
    others: list[str] = []
    if not (version or "").startswith(OWN):  # our own prompts may hold any words
        prompt, others = infotext.without_settings(prompt)
        if negative is not None:
            negative, more = infotext.without_settings(negative)
            others += more
    return Parameters(
        prompt=prompt,
        negative_prompt=negative,
        values=values,
        model=pairs.get("Model") or loras.model or None,
        vae=_vae(pairs),
        model_hash=pairs.get("Model hash") or model_hash or None,
        loras=tuple(loras.wanted),
        lora_hashes={**hashes, **loras.hashes},
        program=_program(pairs),
        version=version,
        ignored=(*ignored, *loras.ignored, *said.scraps, *others),
        unread=unread,
    )


def _without_tags(networks: str, prompt: str) -> list[str]:
    """Those LoRAs that SD.Next used and that no tag of the prompt names."""
    if not networks:
        return []
    tagged = {tag.name.casefold() for tag in sift_tags(prompt)[1]}
    names = [name.strip() for name in networks.split(",")[:MOST_SAID]]
    return [name for name in names if name and name.casefold() not in tagged]


def _vae(pairs: Mapping[str, str]) -> str | None:
    """The VAE's name; None where it is the model's own, or not given."""
    name = pairs.get("VAE", "").strip()
    return stem(name) if name and name.lower() not in OFF else None


def _program(pairs: Mapping[str, str]) -> str:
    """What wrote the settings, where they say so."""
    for said in (pairs.get("App", ""), pairs.get("Version", "")):
        for name in ("SD.Next", "Fooocus", "ComfyUI", "InvokeAI", "reForge"):
            if name.lower().replace(".", "") in said.lower().replace(".", ""):
                return name
    return "A1111"


def _counting(pairs: Mapping[str, str]) -> Counting | None:
    """Who counted the clip skip; None where a setting of its own says so."""
    version = pairs.get("Version", "")
    return None if version.startswith(OWN) else terms.counting_of(_program(pairs), version)


def _loras(pairs: Mapping[str, str], unread: dict[str, str]) -> Loras:
    """The LoRAs of settings: their hashes, and those that are in no tag. unread: told of values that cannot be read."""
    found = Loras()
    if pairs.get("LoRA networks") and found.take_networks_of_sdnext(
        pairs["LoRA networks"], pairs.get("Lora hashes")
    ):
        pairs = {key: value for key, value in pairs.items() if key != "Lora hashes"}
    for key, take in (
        ("Lora hashes", found.take_hashes),
        ("Lora weights", found.take_weights),
        ("Civitai resources", found.take_resources),
    ):
        if pairs.get(key) and not take(pairs[key]):
            unread[key] = (
                f"{shown(pairs[key])} names no {'hash' if key == 'Lora hashes' else 'LoRA or model'}"
            )
    if pairs.get("Hashes") and not isinstance(infotext.read_value(pairs["Hashes"]), dict):
        unread["Hashes"] = f"{shown(pairs['Hashes'])} is not an object of JSON"
    found.take_networks(pairs)
    return found


def _values(key: str, said: str, pairs: Mapping[str, str]) -> dict[str, Any] | None:
    """The values that one setting stands for, by Request's names; None where its key means nothing here. Raises
    StudioError for a value that cannot be read."""
    if key == "Size":
        match = _SIZE.fullmatch(said.strip("() ").replace(", ", "x"))
        if match is None:
            raise RequestError(f"{shown(said)} must be a width and a height, as in 512x768")
        return {"width": int(match[1]), "height": int(match[2])}
    if key == "Clip skip":
        return terms.clip_skip(_read(BY_NAME["clip_skip"], said), _counting(pairs))
    if key in ("Width", "Height"):
        return {} if "Size" in pairs else {key.lower(): _read(BY_NAME[key.lower()], said)}
    if key == "Denoising strength":
        twice = any(one.startswith(HIRES) for one in pairs)
        strength = _read(BY_NAME["strength"], said)
        return None if twice else {"strength": strength} if strength else {}  # some write 0 for "no picture"
    field = BY_KEY.get(key)
    if field is None:
        return None
    if not said and field.kind != "text":
        return {}
    if field.kind == "scheduler":
        return {field.name: named(said, _spacing(pairs))}
    value = _read(field, said)
    return {field.name: terms.seed(value) if field.name == "seed" else value}


def _spacing(pairs: Mapping[str, str]) -> str:
    """The spacing beside a sampler. SD.Next gives the class of its scheduler there, and its spacing apart."""
    said = pairs.get("Schedule type", "")
    sigmas = pairs.get("Sampler sigma", "")
    return sigmas if sigmas and (not said or is_class(said)) else said


def _read(field: Field, said: str) -> Any:
    """The value of a field, from its text. Raises StudioError."""
    if field.kind == "method":
        return parse_composer(check_text(field.name, said, LONGEST_METHOD))
    if field.kind in ("whole", "real"):
        if not _NUMBER.fullmatch(said):
            raise RequestError(f"{field.name}={shown(said)} must be a number")
        said = said.replace(",", ".")
        if field.kind == "whole" and (whole := _WHOLE.fullmatch(said)) is not None:
            said = whole[1]
    return field.read(said)


def pairs(text: str) -> dict[str, str]:
    """The settings of such a text, by their keys there; {} where there are none."""
    return dict(infotext.taken_apart(text)[2].pairs)
