"""A1111's text about a picture (the PNG chunk `parameters`), written and read. Pure: no model, no file.

    a fox in a red hat <lora:fox:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, CFG scale: 3.5, Seed: 7, Size: 128x128, Model hash: 0123456789, Model: tiny-sdxl,
    Lora hashes: "fox: 0123456789ab"

The last line (one line, broken here) holds the settings, if at least three `Key: value` pairs stand in it; a
value with a comma, a colon or a line break is written as a JSON string. Reading takes time in proportion to the text,
whatever stands in it. Other programs know more keys than we
do; what they say is listed in `Parameters.ignored`, so that nobody is told more than was understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

FEWEST_PAIRS = 3
NEGATIVE = "Negative prompt:"

MOST_PAIRS = 1_000
"""Settings of one picture; a line with more of them is taken for prompt."""

# possessive throughout: what has matched is never tried anew, so that no text takes the square of its length
_KEY = re.compile(r"\s*+(?P<key>\w[\w /+.-]*+)\s*+:\s*+")
_QUOTED = re.compile(r'(?P<value>"(?:[^"\\]|\\.)*+")\s*+(?:,|$)')
_BARE = re.compile(r"(?P<value>[^,]*+)(?:,|$)")
_SPECIAL = re.compile(r'[,:\n"]')

READ = ("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Model hash", "Lora hashes",
        "Clip skip", "Denoising strength", "Composition", "Version", "CFG Rescale", "Text mode")  # fmt: skip


@dataclass(frozen=True)
class Parameters:
    """What the text says; None where it says nothing.

    prompt: with its `<lora:…>` tags. clip_skip: A1111's count (1 skips nothing).
    lora_hashes: adapter name -> its short hash. composition: our own key, the method as `composers.parse` reads it.
    ignored: keys that mean nothing here.
    """

    prompt: str
    negative_prompt: str | None = None
    steps: int | None = None
    sampler: str | None = None
    cfg_scale: float | None = None
    cfg_rescale: float | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None
    model: str | None = None
    model_hash: str | None = None
    clip_skip: int | None = None
    denoising: float | None = None
    composition: str | None = None
    text_mode: str | None = None
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    version: str | None = None


def write(said: Parameters) -> str:
    """The text, as A1111 and everything that reads after it expects it."""
    width, height = said.size or (None, None)
    pairs: dict[str, object] = {
        "Steps": said.steps,
        "Sampler": said.sampler,
        "CFG scale": _plain(said.cfg_scale),
        "Seed": said.seed,
        "Size": f"{width}x{height}" if said.size else None,
        "Model hash": said.model_hash or None,
        "Model": said.model,
        "Denoising strength": _plain(said.denoising),
        "Clip skip": said.clip_skip,
        "CFG Rescale": _plain(said.cfg_rescale),
        "Composition": said.composition,
        "Text mode": said.text_mode,
        "Lora hashes": ", ".join(f"{name}: {short}" for name, short in said.lora_hashes.items()) or None,
        "Version": said.version,
    }
    lines = [said.prompt]
    if said.negative_prompt:
        lines.append(f"{NEGATIVE} {said.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def read(text: str) -> Parameters:
    """The other way. What cannot be understood is left out; nothing is refused."""
    *lines, last = text.strip("\n").split("\n")
    pairs = _pairs(last)
    if len(pairs) < FEWEST_PAIRS:
        lines, pairs = [*lines, last], {}
    prompt, negative = _prompts(lines)
    sampler, spacing = pairs.get("Sampler"), pairs.get("Schedule type", "Automatic")
    if sampler and spacing not in ("Automatic", "Uniform") and not sampler.endswith(spacing):
        sampler = f"{sampler} {spacing}"
    return Parameters(
        prompt=prompt,
        negative_prompt=negative,
        steps=_whole(pairs.get("Steps")),
        sampler=sampler or None,
        cfg_scale=_real(pairs.get("CFG scale")),
        cfg_rescale=_real(pairs.get("CFG Rescale")),
        seed=_whole(pairs.get("Seed")),
        size=_size(pairs.get("Size", "")),
        model=pairs.get("Model") or None,
        model_hash=pairs.get("Model hash") or None,
        clip_skip=_whole(pairs.get("Clip skip")),
        denoising=_real(pairs.get("Denoising strength")),
        composition=pairs.get("Composition") or None,
        text_mode=pairs.get("Text mode") or None,
        lora_hashes=_hashes(pairs.get("Lora hashes", "")),
        ignored=tuple(key for key in pairs if key not in READ),
        version=pairs.get("Version"),
    )


def pairs(text: str) -> dict[str, str]:
    """The settings in the last line, by their own names; {} where there are none."""
    found = _pairs(text.strip("\n").split("\n")[-1])
    return found if len(found) >= FEWEST_PAIRS else {}


def _pairs(line: str) -> dict[str, str]:
    """`Key: value, …` -> values by key; nothing where anything else stands in the line."""
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
    for entry in text.split(","):
        name, colon, digest = entry.rpartition(":")
        if colon and re.fullmatch(r"[0-9a-fA-F]{8,64}", digest.strip()):
            found[name.strip()] = digest.strip().lower()
    return found


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if _SPECIAL.search(text) or text != text.strip() else text


def _unquoted(text: str) -> str:
    if len(text) < 2 or not (text[0] == text[-1] == '"'):
        return text
    try:
        found = str(json.loads(text))
        found.encode()  # an escape may stand for half a character, which no program can write
        return found
    except ValueError:
        return text


def _plain(number: float | None) -> str | None:
    return None if number is None else f"{number:.12g}"


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,20}", text) else None


def _real(text: str | None) -> float | None:
    found = text is not None and re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,60})?", text)
    return float(found[0]) if found else None


def _size(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    return (int(match[1]), int(match[2])) if match else None
