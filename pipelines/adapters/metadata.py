"""What a file says about itself, made sense of: title, triggers, category, preferred weight, hashes.

Sources: modelspec (https://github.com/Stability-AI/ModelSpec), kohya's `ss_*`, our own `lora_studio.*`
(category, preferred_weight), and the notes beside the file. All values are strings, often with JSON inside,
sometimes huge, sometimes broken: whatever does not parse counts as absent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from pipelines.adapters.adapter import AdapterMetadata
from pipelines.adapters.sidecars import Sidecars
from pipelines.home.files import parse_json

CATEGORIES = (
    "character", "style", "background", "clothing", "object", "concept", "pose", "celebrity", "animal",
    "building", "vehicle", "action", "tool",
)  # fmt: skip
"""The categories people sort adapters by (Civitai's words, in the singular)."""

_MOST_TAGS = 5
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


def describe(metadata: Mapping[str, str], beside: Sidecars) -> AdapterMetadata:
    """The file's own word first, then its neighbours'."""
    tags = tuple(_split(metadata.get("modelspec.tags", ""))) or tuple(_strings(beside.manager.get("tags")))
    triggers, source = _triggers(metadata, beside)
    model = beside.civitai.get("model")
    model_name = _text(model.get("name")) if isinstance(model, dict) else ""
    return AdapterMetadata(
        title=_first(metadata.get("modelspec.title"), model_name, beside.manager.get("model_name"),
                     metadata.get("ss_output_name")),
        author=_first(metadata.get("modelspec.author")),
        description=_first(metadata.get("modelspec.description"), beside.user.get("description"),
                           beside.civitai.get("description")),
        usage_hint=_first(metadata.get("modelspec.usage_hint")),
        licence=_first(metadata.get("modelspec.license")),
        category=_category(metadata, beside, tags),
        tags=tags,
        triggers=triggers,
        trigger_source=source,
        negative=_first(beside.user.get("negative text")),
        notes=_first(beside.user.get("notes"), beside.manager.get("notes"),
                     metadata.get("ss_training_comment")),
        preferred_weight=_preferred_weight(metadata, beside),
        strength_range=_strength_range(beside),
        base_model=_first(metadata.get("modelspec.architecture"), metadata.get("ss_base_model_version"),
                          beside.user.get("sd version"), beside.civitai.get("baseModel"),
                          beside.manager.get("base_model")),
        prediction_type=_first(metadata.get("modelspec.prediction_type")),
        resolution=_first(metadata.get("modelspec.resolution"), metadata.get("ss_resolution")).strip("()"),
        clip_skip=_whole(metadata.get("ss_clip_skip")),
        hashes=_hashes(metadata, beside),
        raw=metadata,
    )  # fmt: skip


def _triggers(metadata: Mapping[str, str], beside: Sidecars) -> tuple[tuple[str, ...], str]:
    """The words that call the subject, and where they stand."""
    stated = (
        (_split(metadata.get("modelspec.trigger_phrase", "")), "modelspec"),
        (_split(_text(beside.user.get("activation text"))), "activation text"),
        (
            [word for entry in _strings(beside.civitai.get("trainedWords")) for word in _split(entry)],
            "Civitai",
        ),
        (_frequent_tags(metadata.get("ss_tag_frequency", "")), "tag frequency"),
    )
    for words, source in stated:
        if unique := tuple(dict.fromkeys(words)):
            return unique, source
    return (), ""


def _frequent_tags(text: str) -> list[str]:
    """The most frequent training tags: those at least half as frequent as the first, five at most."""
    folders = _json(text)
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and tag.strip():
                counts[tag.strip()] += count
    common = counts.most_common(_MOST_TAGS)
    return [tag for tag, count in common if 2 * count >= common[0][1]]


def _category(metadata: Mapping[str, str], beside: Sidecars, tags: Iterable[str]) -> str:
    """The stated category, else the first tag that is one."""
    stated = _first(metadata.get("lora_studio.category"), beside.user.get("category"))
    model = beside.civitai.get("model")
    civitai = _strings(model.get("tags")) if isinstance(model, dict) else []
    for word in (stated, *tags, *civitai):
        word = word.lower()
        for category in CATEGORIES:
            if word in (category, f"{category}s"):
                return category
    return stated.lower()


def _preferred_weight(metadata: Mapping[str, str], beside: Sidecars) -> float | None:
    """The strength its maker or its user wants; 0 stands for "not set" in A1111's notes."""
    for value in (
        metadata.get("lora_studio.preferred_weight"),
        beside.user.get("preferred weight"),
        _tips(beside).get("strength"),
    ):
        number = _number(value)
        if number:
            return number
    return None


def _strength_range(beside: Sidecars) -> tuple[float, float] | None:
    """The strengths between which it works well, lowest first; None unless both ends are given."""
    tips = _tips(beside)
    low, high = _number(tips.get("strength_min")), _number(tips.get("strength_max"))
    return None if low is None or high is None or low > high else (low, high)


def _tips(beside: Sidecars) -> Mapping[str, object]:
    """ComfyUI-Lora-Manager's `usage_tips`, which it keeps as JSON in a text."""
    tips = beside.manager.get("usage_tips")
    tips = _json(tips) if isinstance(tips, str) else tips
    return tips if isinstance(tips, dict) else {}


def _hashes(metadata: Mapping[str, str], beside: Sidecars) -> dict[str, str]:
    """Every hash that was written down, under its own name."""
    found = {name: metadata[name] for name in _HASHES if metadata.get(name)}
    files = beside.civitai.get("files")
    for file in files if isinstance(files, list) else ():
        hashes = file.get("hashes") if isinstance(file, dict) else None
        for name, value in hashes.items() if isinstance(hashes, dict) else ():
            found.setdefault(f"civitai.{name}", _text(value))
    if stated := _first(beside.manager.get("sha256")):
        found["manager.sha256"] = stated
    return found


def _first(*candidates: object) -> str:
    """The first that is text and not blank."""
    return next((text for candidate in candidates if (text := _text(candidate))), "")


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) and value.strip().lower() not in ("none", "null") else ""


def _strings(value: object) -> list[str]:
    return [text for item in value if (text := _text(item))] if isinstance(value, list) else []


def _split(text: str) -> list[str]:
    return [word.strip() for word in re.split(r"[,\n]", text) if word.strip()]


def _number(value: object) -> float | None:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _json(text: str) -> object:
    try:
        return parse_json(text)
    except ValueError:
        return None
