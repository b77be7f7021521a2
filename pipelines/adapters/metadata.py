"""What a file's metadata say about it: title, triggers, category, preferred weight, hashes.

Sources: modelspec (https://github.com/Stability-AI/ModelSpec), kohya's `ss_*`, our own `lora_studio.*` (category,
preferred_weight), and the notes beside the file. All values are strings, often with JSON inside, sometimes huge,
sometimes broken. Whatever cannot be parsed counts as absent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from pipelines.adapters.adapter import AdapterMetadata
from pipelines.adapters.sidecars import MOST_SAID, Sidecars
from pipelines.errors import StudioError
from pipelines.home.plain import read_json

CATEGORIES = (
    "character", "style", "background", "clothing", "object", "concept", "pose", "celebrity", "animal",
    "building", "vehicle", "action", "tool",
)  # fmt: skip
"""The categories by which people sort adapters (Civitai's words, in the singular)."""

LONGEST_SAID = 100_000
"""Characters of a text that are taken: a description with pictures in it has some ten thousand."""
MOST_WORDS = 1_000
"""Most triggers, and most tags, that are taken."""

_MOST_TAGS = 5
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


def describe(metadata: Mapping[str, str], beside: Sidecars) -> AdapterMetadata:
    """What a file's metadata and the notes beside it say. Where both speak, the file's own metadata win."""
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
    """(the words that call up the subject, where they were found)."""
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
        if unique := tuple(dict.fromkeys(words))[:MOST_WORDS]:
            return unique, source
    return (), ""


def _frequent_tags(text: str) -> list[str]:
    """The most frequent training tags: at most five, each at least half as frequent as the first."""
    folders = _json(text)
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int) and tag.strip():
                counts[tag.strip()[:LONGEST_SAID]] += count
    common = counts.most_common(_MOST_TAGS)
    return [tag for tag, count in common if 2 * count >= common[0][1]]


def _category(metadata: Mapping[str, str], beside: Sidecars, tags: Iterable[str]) -> str:
    """The stated category if it is one of `CATEGORIES`, else the first tag that is one, else the stated one anyway."""
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
    """The strength that its maker or its user prefers. 0 counts as absent: in A1111's notes it means "not set"."""
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
    """(lowest, highest) strength at which it works well; None unless both are given, in this order."""
    tips = _tips(beside)
    low, high = _number(tips.get("strength_min")), _number(tips.get("strength_max"))
    return None if low is None or high is None or low > high else (low, high)


def _tips(beside: Sidecars) -> Mapping[str, object]:
    """ComfyUI-Lora-Manager's `usage_tips`, which it stores as a text of JSON."""
    tips = beside.manager.get("usage_tips")
    tips = _json(tips) if isinstance(tips, str) else tips
    return tips if isinstance(tips, dict) else {}


def _hashes(metadata: Mapping[str, str], beside: Sidecars) -> dict[str, str]:
    """Name -> hash, for every hash that was written down."""
    found = {name: text for name in _HASHES if (text := _text(metadata.get(name)))}
    files = beside.civitai.get("files")
    for file in files[:MOST_WORDS] if isinstance(files, list) else ():
        hashes = file.get("hashes") if isinstance(file, dict) else None
        for name, value in hashes.items() if isinstance(hashes, dict) else ():
            found.setdefault(f"civitai.{name}", _text(value))
    if stated := _first(beside.manager.get("sha256")):
        found["manager.sha256"] = stated
    return found


def _first(*candidates: object) -> str:
    """The first candidate that is a text, and neither blank nor "none" nor "null"; "" where none is."""
    return next((text for candidate in candidates if (text := _text(candidate))), "")


def _text(value: object) -> str:
    text = value[:LONGEST_SAID].strip() if isinstance(value, str) else ""
    return "" if len(text) < 5 and text.lower() in ("none", "null") else text


def _strings(value: object) -> list[str]:
    return [text for item in value[:MOST_WORDS] if (text := _text(item))] if isinstance(value, list) else []


def _split(text: str) -> list[str]:
    return [word.strip() for word in re.split(r"[,\n]", text[:LONGEST_SAID]) if word.strip()][:MOST_WORDS]


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
        return read_json(text, "", most=MOST_SAID, finite=False, mended=True)
    except StudioError:
        return None
