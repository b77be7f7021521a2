"""Axes of a grid: `seed=1-4`, `method=merge,switch`, `weight:fox=0-1 [5]`, `lora=none,fox,owl`, `prompt=fox,owl`.

An axis is a list of labelled changes to a job; a grid is the product of its axes over one job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from composers.shown import shown
from pipelines.bounds import LONGEST_PROMPT, check_text
from pipelines.errors import RequestError
from studio.batch.problems import nearest
from studio.batch.prompts import plain_wanted
from studio.batch.values import WHOLE, numbers
from studio.drafts.draft import Draft
from studio.drafts.fields import of_kind
from studio.drafts.flags import parse_lora

Fields = Mapping[str, Any]
Change = Callable[[Fields], Fields]

NUMBERS = {axis: field.name for field in of_kind("whole", "real") for axis in field.axes}
TEXTS = {
    **{
        axis: field.name
        for field in of_kind("method", "scheduler", "choice", "text", "truth")
        for axis in field.axes
    },
    "model": "model",
}
NAMES = (*NUMBERS, *TEXTS, "lora", "weight", "prompt")
SETTING = "="
MOST_CELLS = 2500
"""Most pictures of a grid, and so most values of one axis."""
LONGEST_AXIS = 100_000
"""Characters."""


@dataclass(frozen=True)
class Axis:
    """One axis. name: as it is shown. cells: (label, change to the job), in order."""

    name: str
    cells: tuple[tuple[str, Change], ...]


def read_axis(text: str) -> Axis:
    """The axis of a text NAME=VALUES. Raises RequestError for an unknown axis and for values that cannot be read."""
    check_text("an axis", text, LONGEST_AXIS)
    name, equals, values = text.partition("=")
    name, values = name.strip(), values.strip()
    if not equals or not values:
        raise RequestError(
            f"axis {shown(text)}: write NAME=VALUES, as in seed=1-4; axes are {', '.join(NAMES)}"
        )
    kind, _, target = name.partition(":")
    key = kind.lower().replace("-", "_")
    try:
        if key in NUMBERS and not target:
            return _number_axis(key, values)
        if key in TEXTS and not target:
            return Axis(key, tuple((value, _set(TEXTS[key], value)) for value in split_values(values, key)))
        if key == "weight":
            return _weight_axis(target, values)
        if key == "lora" and not target:
            return Axis("LoRA", tuple(_lora(value) for value in split_values(values)))
        if key == "prompt" and not target:
            return _prompt_axis(split_values(values))
    except RequestError as error:
        raise RequestError(f"axis {shown(text)}: {error}") from error
    raise RequestError(f"axis {shown(text)}: unknown axis {shown(name)}; {nearest(key, NAMES)}")


def split_values(text: str, key: str = "") -> list[str]:
    """Splits at |, or at commas where there is no |. Further settings of a method stay with it (switch:interval=3,…).

    Raises RequestError for more than MOST_CELLS.
    """
    if text.count("|") + text.count(",") >= 10 * MOST_CELLS:
        raise RequestError(f"it has more than {MOST_CELLS} values; shorten it")
    parts = _split(text, key)
    if len(parts) > MOST_CELLS:
        raise RequestError(f"it has {len(parts)} values, more than {MOST_CELLS}; shorten it")
    return parts


def _split(text: str, key: str) -> list[str]:
    if "|" in text:
        return [part.strip() for part in text.split("|") if part.strip()]
    parts: list[str] = []
    for part in text.split(","):
        if (
            parts
            and key in ("method", "composer")
            and SETTING in part
            and ":" in parts[-1]
            and ":" not in part
        ):
            parts[-1] += f",{part.strip()}"
        elif part.strip():
            parts.append(part.strip())
    return parts


def _number_axis(key: str, values: str) -> Axis:
    field = NUMBERS[key]
    found = numbers(values.replace("|", ","), whole=field in WHOLE, most=MOST_CELLS)
    return Axis(
        key, tuple((f"{value:g}" if value < 1e6 else str(value), _set(field, value)) for value in found)
    )


def _set(field: str, value: object) -> Change:
    return lambda fields: {**fields, field: value}


def _weight_axis(target: str, values: str) -> Axis:
    """The axis of one adapter's strength, or (weight=…) of the strength of all."""
    cells = []
    for value in numbers(values.replace("|", ","), whole=False, most=MOST_CELLS):
        cells.append((f"{value:g}", _weighted(target, value)))
    return Axis(f"weight of {target}" if target else "weight", tuple(cells))


def _weighted(target: str, value: float) -> Change:
    def change(fields: Fields) -> Fields:
        mix = list(fields.get("adapters", ()))
        names = [entry["adapter"] for entry in mix]
        tagged = [wanted.adapter for wanted in Draft({"prompt": fields["prompt"]}).wanted]
        if target and target.casefold() not in (name.casefold() for name in names):
            hint = " (it stands in the prompt: give it as --lora instead)" if target in tagged else ""
            raise RequestError(f"the mix has no LoRA {shown(target)}{hint}; add it with --lora")
        if not mix:
            raise RequestError("the mix has no LoRA whose weight could vary; add --lora NAME")
        chosen = (
            {**entry, "weight": value}
            if not target or entry["adapter"].casefold() == target.casefold()
            else entry
            for entry in mix
        )
        return {**fields, "adapters": list(chosen)}

    return change


def _lora(value: str) -> tuple[str, Change]:
    """Adds one LoRA, or several joined by +, to those of --lora. "none" adds nothing."""
    added = (
        []
        if value.casefold() == "none"
        else [plain_wanted(parse_lora(one.strip())) for one in value.split("+")]
    )

    def change(fields: Fields) -> Fields:
        return {**fields, "adapters": [*fields.get("adapters", ()), *added]}

    return value, change


def _prompt_axis(values: list[str]) -> Axis:
    """Search and replace: each value in turn replaces the first one, which the prompt must contain."""
    sought = values[0]

    def replaced(value: str) -> Change:
        def change(fields: Fields) -> Fields:
            prompt = fields["prompt"]
            if sought not in prompt:
                raise RequestError(
                    f"prompt=…: {shown(sought)} does not stand in the prompt {shown(prompt)}; "
                    "the first value is what the others replace"
                )
            length = len(prompt) + prompt.count(sought) * (len(value) - len(sought))
            if length > LONGEST_PROMPT:
                raise RequestError(
                    f"prompt=…: with {shown(value)} the prompt has {length} characters, more than {LONGEST_PROMPT}"
                )
            return {**fields, "prompt": prompt.replace(sought, value)}

        return change

    return Axis("prompt", tuple((value, replaced(value)) for value in values))
