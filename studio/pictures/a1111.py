"""A1111's text about a picture (the PNG chunk `parameters`), written and read. Pure: no model, no file.

    a fox in a red hat <lora:fox:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, CFG scale: 3.5, Seed: 7, Size: 128x128, Model hash: 0123456789, Model: tiny-sdxl,
    Lora hashes: "fox: 0123456789ab"

The last line (broken in two here) holds the settings, if it contains at least three `Key: value` pairs. A value with a
comma, a colon or a line break is written as a JSON string. The keys come from the table of a request's fields
(`studio.drafts.fields`); only what A1111 expresses in its own way is spelled here. Reading takes linear time, whatever
the text is. Other programs use more keys than we know; those that are not understood are listed.
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
from studio.drafts.entries import LONGEST_METHOD
from studio.drafts.fields import BY_NAME, FIELDS, Field

FEWEST_PAIRS = 3
NEGATIVE = "Negative prompt:"

MOST_PAIRS = 1_000
"""Most settings in the last line; a line with more is taken for a part of the prompt."""

# all quantifiers are possessive, so that nothing is matched twice and no text takes quadratic time
_KEY = re.compile(r"\s*+(?P<key>\w[\w /+.-]*+)\s*+:\s*+")
_QUOTED = re.compile(r'(?P<value>"(?:[^"\\]|\\.)*+")\s*+(?:,|$)')
_BARE = re.compile(r"(?P<value>[^,]*+)(?:,|$)")
_SPECIAL = re.compile(r'[,:\n"]')
_SIZE = re.compile(r"([0-9]{1,9}+)x([0-9]{1,9}+)")
_NUMBER = re.compile(r"[+-]?+[0-9]{1,20}+(?:\.[0-9]{1,60}+)?+(?:[eE][+-]?+[0-9]{1,3}+)?+")

BY_KEY: Mapping[str, Field] = {field.key: field for field in FIELDS if field.key}
FIRST = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model", "Denoising strength", "Clip skip",
         "CFG Rescale", "Composition")  # fmt: skip
"""The order that other programs expect. Keys of our own come after it."""
LAST = ("Lora hashes", "Version")
HIRES = "Hires upscale"
"""With one of these keys, the denoising strength is that of a second pass, and there was no initial image."""
BESIDE = ("Schedule type", "Model", "Model hash", *LAST)
"""Keys that are read together with others, or that belong to no field of a request."""


@dataclass(frozen=True)
class Parameters:
    """What the text says. None stands for what it does not say.

    prompt: with its `<lora:…>` tags. values: the other fields of a request, by Request's names and in Request's units.
    lora_hashes: adapter name -> its short hash. ignored: keys that mean nothing here. unread: key -> what is wrong with
    its value.
    """

    prompt: str
    negative_prompt: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_hash: str | None = None
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
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
        "Size": f"{values['width']}x{values['height']}" if "width" in values else None,
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
        lines.append(f"{NEGATIVE} {said.negative_prompt}")
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
    """What such a text says. Whatever cannot be understood is left out; no text is refused."""
    *lines, last = text.strip("\n").split("\n")
    pairs = _pairs(last)
    if len(pairs) < FEWEST_PAIRS:
        lines, pairs = [*lines, last], {}
    prompt, negative = _prompts(lines)
    values: dict[str, Any] = {}
    ignored: list[str] = []
    unread: dict[str, str] = {}
    for key, said in pairs.items():
        if key in BESIDE:
            continue
        try:
            found = _values(key, said, pairs)
            if found is None:
                ignored.append(key)
                continue
            Request("", **found)  # the gate of all values
            values |= found
        except StudioError as error:
            unread[key] = str(error)
    hashes = pairs.get("Lora hashes", "")
    found_hashes = _hashes(hashes)
    if hashes and not found_hashes:
        unread["Lora hashes"] = f"{shown(hashes)} names no hash"
    return Parameters(
        prompt=prompt,
        negative_prompt=negative,
        values=values,
        model=pairs.get("Model") or None,
        model_hash=pairs.get("Model hash") or None,
        lora_hashes=found_hashes,
        version=pairs.get("Version"),
        ignored=tuple(ignored),
        unread=unread,
    )


def _values(key: str, said: str, pairs: Mapping[str, str]) -> dict[str, Any] | None:
    """The values that one setting stands for, by Request's names; None where its key means nothing here. Raises
    StudioError for a value that cannot be read."""
    if key == "Size":
        match = _SIZE.fullmatch(said)
        if match is None:
            raise RequestError(f"{shown(said)} must be a width and a height, as in 512x768")
        return {"width": int(match[1]), "height": int(match[2])}
    if key == "Clip skip":  # 1 skips nothing
        return {"clip_skip": _read(BY_NAME["clip_skip"], said) - 1}
    if key == "Denoising strength":
        return None if HIRES in pairs else {"strength": _read(BY_NAME["strength"], said)}
    field = BY_KEY.get(key)
    if field is None:
        return None
    if not said and field.kind != "text":
        return {}
    if field.kind == "scheduler":
        spacing = pairs.get("Schedule type", "Automatic")
        apart = spacing not in ("Automatic", "Uniform") and not said.endswith(spacing)
        return {field.name: f"{said} {spacing}" if apart else said}
    return {field.name: _read(field, said)}


def _read(field: Field, said: str) -> Any:
    """The value of a field, from its text. Raises StudioError."""
    if field.kind == "method":
        return parse_composer(check_text(field.name, said, LONGEST_METHOD))
    if field.kind in ("whole", "real") and not _NUMBER.fullmatch(said):
        raise RequestError(f"{field.name}={shown(said)} must be a number")
    return field.read(said)


def pairs(text: str) -> dict[str, str]:
    """The settings in the last line, by their keys there; {} where there are none."""
    found = _pairs(text.strip("\n").split("\n")[-1])
    return found if len(found) >= FEWEST_PAIRS else {}


def _pairs(line: str) -> dict[str, str]:
    """`Key: value, …` -> key -> value; {} where the line contains anything else."""
    found: dict[str, str] = {}
    place, end = 0, len(line.rstrip(" ,"))
    while place < end:
        key = _KEY.match(line, place)
        if key is None or len(found) == MOST_PAIRS:
            return {}
        value = _QUOTED.match(line, key.end()) or _BARE.match(line, key.end())
        if value is None:
            return {}
        found[key["key"].rstrip()] = _unquoted(value["value"].strip())
        place = value.end()
    return found


def _prompts(lines: list[str]) -> tuple[str, str | None]:
    for number, line in enumerate(lines):
        if line.startswith(NEGATIVE):
            negative = "\n".join([line.removeprefix(NEGATIVE).removeprefix(" "), *lines[number + 1 :]])
            return "\n".join(lines[:number]), negative
    return "\n".join(lines), None


def _hashes(text: str) -> dict[str, str]:
    found = {}
    begun: list[str] = []  # of a name with commas in it
    for entry in text.split(","):
        name, colon, digest = entry.rpartition(":")
        if not colon:
            begun.append(entry)
            continue
        if re.fullmatch(r"[0-9a-fA-F]{8,64}", digest.strip()):
            found[",".join([*begun, name]).strip()] = digest.strip().lower()
        begun = []
    return found


def _unquoted(text: str) -> str:
    if len(text) < 2 or not (text[0] == text[-1] == '"'):
        return text
    try:
        found = str(json.loads(text))
        found.encode()  # an escape may stand for half a character (a lone surrogate), which cannot be written
        return found
    except ValueError:
        return text
