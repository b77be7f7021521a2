"""`studio.json`, the card that a model's folder may hold: how to render with the model, its words, its blocks.

The card is optional, and so is every key in it. Defaults come from the card, else from the folder (its scheduler and
the UNet's native size), else from the family. For single files they come from the family.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from composers.shown import shown
from pipelines.errors import ModelError, RequestError
from pipelines.families.family import FAMILIES, Defaults, Family
from pipelines.home.files import read_text
from pipelines.home.plain import read_json, reading, short
from pipelines.schedulers import canonical

CARD_FILE = "studio.json"


@dataclass(frozen=True)
class ModelCard:
    """What a model's card says; None or empty where it says nothing.

    family: "sd1", "sd2" or "sdxl".
    width, height: in pixels.
    examples: prompts that suit the model.
    vocabulary: category -> word -> its synonyms.
    block_map: "content" and "style" -> the UNet blocks that hold them, as dotted names.
    """

    family: str | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    examples: tuple[str, ...] = ()
    vocabulary: Mapping[str, Mapping[str, tuple[str, ...]]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    block_map: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    description: str = ""


def read_card(folder: Path) -> ModelCard | None:
    """The card in a model's folder, None where there is none. Raises ModelError for a faulty one, and NoAnswer."""
    file = folder / CARD_FILE
    remedy = "mend it or take it away"
    with reading(str(file), ModelError, remedy):
        try:
            text = read_text(file)
        except FileNotFoundError:
            return None
    content = read_json(text, str(file), error=ModelError, remedy=remedy)
    if not isinstance(content, dict):
        raise ModelError(
            f"{file} holds a {type(content).__name__} where an object belongs; mend it or take it away"
        )
    known = [f.name for f in fields(ModelCard)]
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key[:60], known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ModelError(f"{file}: unknown key {shown(key)}; {hint}A card may hold {', '.join(known)}")
    with reading(f"{file}:", ModelError, remedy):
        return _card(file, content)


def resolve_defaults(
    family: Family, card: ModelCard | None, *, scheduler: str | None, size: tuple[int, int] | None
) -> Defaults:
    """What a picture is rendered with where the request says nothing.

    scheduler: the name of the scheduler in the model's folder, None where there is none, as for single files.
    size: the UNet's native (width, height) in pixels, None likewise.
    """
    base = family.defaults
    width, height = size or (base.width, base.height)
    card = card or ModelCard()
    return Defaults(
        width=card.width or width,
        height=card.height or height,
        scheduler=card.scheduler or scheduler or base.scheduler,
        steps=card.steps or base.steps,
        guidance_scale=base.guidance_scale if card.guidance_scale is None else card.guidance_scale,
    )


def _card(file: Path, content: Mapping[str, Any]) -> ModelCard:
    family = content.get("family")
    if family is not None and family not in tuple(FAMILIES):
        raise _faulty(file, "family", family, f"one of {', '.join(FAMILIES)}")
    scheduler = content.get("scheduler")
    guidance = content.get("guidance_scale")
    if guidance is not None and (
        isinstance(guidance, bool) or not isinstance(guidance, int | float) or not -1e6 < guidance < 1e6
    ):
        raise _faulty(file, "guidance_scale", guidance, "a number")
    vocabulary = {
        category: MappingProxyType({word: _texts(file, synonyms, word) for word, synonyms in words.items()})
        for category, words in content.get("vocabulary", {}).items()
    }
    blocks = {part: _texts(file, names, "block_map") for part, names in content.get("block_map", {}).items()}
    return ModelCard(
        family=family,
        width=_count(file, content, "width"),
        height=_count(file, content, "height"),
        scheduler=None if scheduler is None else _scheduler(file, scheduler),
        steps=_count(file, content, "steps"),
        guidance_scale=None if guidance is None else float(guidance),
        examples=_texts(file, content.get("examples", []), "examples"),
        vocabulary=MappingProxyType(vocabulary),
        block_map=MappingProxyType(blocks),
        description=str(content.get("description", "")),
    )


def _scheduler(file: Path, name: str) -> str:
    try:
        return canonical(name)
    except RequestError as error:
        raise ModelError(f"{file}: {error}") from error


def _faulty(file: Path, key: str, value: object, belongs: str) -> ModelError:
    return ModelError(f'{file}: "{short(key)}" is {shown(value)}; it must be {belongs}')


def _count(file: Path, content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise _faulty(file, key, value, "a whole number above 0")
    return value


def _texts(file: Path, value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _faulty(file, where, value, "a list of texts")
    return tuple(value)
