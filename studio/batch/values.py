"""Lists and ranges in a job: the values that a field stands for, and the combinations of all fields.

    seed: [1, 2, 5]            a list                      {"any": [...]}       alternatives, for any field
    seed: -1                   the same as no seed: the job gets its own, the same in every run
    seed: "1-4"                1, 2, 3, 4                  adapters: {"fox": [0.5, 1.0]}     strengths
    steps: "10-30 (+10)"       10, 20, 30                  composer: {"method": "switch", "interval": [1, 5]}
    guidance_scale: "1-5 [3]"  1, 3, 5 (three of them)

Ranges are written as the X/Y/Z plots of A1111's web UI write them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from composers.shown import shown
from pipelines.errors import RequestError
from pipelines.home.plain import check_plain, reading, short
from studio.drafts.draft import NEW_SEED
from studio.drafts.fields import BY_NAME, of_kind

WHOLE = (*(field.name for field in of_kind("whole")), "count")
REAL = tuple(field.name for field in of_kind("real"))
AS_IT_STANDS = (*(field.name for field in of_kind("prompt", "text")), "name", "model")
"""Fields whose values are taken literally."""
PAIRS = tuple(field.name for field in of_kind("pair"))
MOST_VALUES = 100_000
"""Most values of a field, and most pictures of a batch."""

LONGEST_RANGE = 100
"""Most characters of one number or range."""

_NUMBER = r"[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?"
_RANGE = re.compile(
    rf"(?P<first>{_NUMBER})\s*-\s*(?P<last>{_NUMBER})"
    rf"(?:\s*\(\s*(?P<step>{_NUMBER})\s*\)|\s*\[\s*(?P<count>\d+)\s*\])?"
)


def numbers(text: str, *, whole: bool, most: int = MOST_VALUES) -> list[Any]:
    """'1, 3, 5-7' -> [1, 3, 5, 6, 7]; ranges are written as at the top of this file. Raises RequestError; for more than
    `most` values before any is made."""
    found: list[float] = []
    for part in text.split(","):
        found += _numbers(part.strip(), whole, most - len(found))
    if whole:
        return [int(number) for number in found]
    return found


def _numbers(text: str, whole: bool, room: int) -> list[float]:
    """The values of one number or range. room: how many there may be."""
    if len(text) > LONGEST_RANGE:
        raise RequestError(f"{text[:40]!r}… is no number and no range; write 5, or 1-5")
    if not room:
        raise RequestError("there are too many values before it; shorten them")
    if re.fullmatch(_NUMBER, text):
        if whole and re.search(r"[eE]\+", text):  # as spreadsheet programs write what is too long for a cell
            raise RequestError(f"{text!r} has lost its last digits; write all of them")
        number = float(text)
        if whole and not number.is_integer():
            raise RequestError(f"{text!r} must be a whole number")
        if not math.isfinite(number):
            raise RequestError(f"{text!r} is a number too large to be held")
        # a float cannot hold every seed
        return [int(text)] if whole and re.fullmatch(r"[+-]?\d+", text) else [number]
    match = _RANGE.fullmatch(text)
    if match is None:
        raise RequestError(
            f"{text!r} is no number and no range; write 5, 1-5, 1-5 (+2), 1-5 [3], or several with commas"
        )
    first, last = float(match["first"]), float(match["last"])
    if not math.isfinite(last - first):
        raise RequestError(f"{text!r} leads to a number too large to be held")
    if match["count"] is not None:
        found = _so_many(first, last, int(match["count"]), room)
    else:
        step = float(match["step"]) if match["step"] is not None else math.copysign(1, last - first)
        if not math.isfinite(step):
            raise RequestError(f"{text!r} has a step too large to be held")
        found = _stepped(text, first, last, step, room)
    return [round(number) if whole else round(number, 10) for number in found]


def _so_many(first: float, last: float, count: int, room: int) -> list[float]:
    if not 1 <= count <= room:
        raise RequestError(f"a range may hold 1 … {room} values here, not {count}")
    return [first + (last - first) * place / max(count - 1, 1) for place in range(count)]


def _stepped(text: str, first: float, last: float, step: float, room: int) -> list[float]:
    if step == 0 or (last - first) * step < 0:
        raise RequestError(
            f"{text!r} never arrives: the step {step:g} does not lead from {first:g} to {last:g}"
        )
    length = (last - first) / step + 1e-9
    if not length < room:
        told = math.floor(length) + 1 if length < 1e15 else f"{length:g}"
        raise RequestError(f"{text!r} holds {told} values; there may be {room} here")
    count = math.floor(length) + 1
    return [first + step * place for place in range(count)]


def alternatives(field: str, value: object) -> list[Any]:
    """The values that a field of a job stands for, in order. A value that is no list or range stands for itself.

    Raises RequestError that names the field.
    """
    try:
        return _alternatives(field, value)
    except RequestError as error:
        raise RequestError(f"{field}: {error}") from error


def _alternatives(field: str, value: object) -> list[Any]:
    if isinstance(value, Mapping) and list(value) == ["any"] and isinstance(value["any"], list):
        return _any_of(field, value["any"])
    if field == "adapters":
        return _mixes(value)
    if field == "composer" and isinstance(value, Mapping):
        return _products(value)
    if isinstance(value, list) and (field not in PAIRS or any(isinstance(entry, list) for entry in value)):
        return _any_of(field, value)
    if field == "seed" and isinstance(value, str):
        return _seeds(value)
    if field == "seed" and not isinstance(value, bool) and value == NEW_SEED:
        return [None]
    if isinstance(value, str) and field in (*WHOLE, *REAL):
        return numbers(value, whole=field in WHOLE)
    if isinstance(value, str) and field in BY_NAME and BY_NAME[field].kind in ("pair", "truth"):
        return [BY_NAME[field].read(value)]
    return [value]


def _seeds(text: str) -> list[Any]:
    """As `numbers`; a -1 that stands alone is None, which stands for a seed of the job's own."""
    found: list[Any] = []
    for part in text.split(","):
        if part.strip() == str(NEW_SEED):
            found.append(None)
            _refuse_many(len(found))
        else:
            seeds = numbers(part, whole=True, most=MOST_VALUES - len(found))
            if min(seeds) < 0:
                raise RequestError(
                    f"{shown(part)} holds seeds below 0; only a -1 that stands alone asks for a new one"
                )
            found += seeds
    return found


def _any_of(field: str, values: list[Any]) -> list[Any]:
    if not values:
        raise RequestError("an empty list leaves nothing to draw; give it a value or take the field away")
    found: list[Any] = []
    for value in values:
        found += _alternatives(field, value)
        _refuse_many(len(found))
    return found


def _refuse_many(count: int) -> None:
    if count > MOST_VALUES:
        raise RequestError(f"its lists come to {count} values, more than {MOST_VALUES}; shorten them")


def _mixes(value: object) -> list[Any]:
    """The mixes that a mix with lists or ranges as strengths stands for."""
    if isinstance(value, Mapping):
        return _products({name: _strengths(weight) for name, weight in value.items()})
    if not isinstance(value, list):
        return [value]
    entries = [
        _products(
            {key: _strengths(item) if key.endswith("weight") else [item] for key, item in entry.items()}
        )
        if isinstance(entry, Mapping)
        else [entry]
        for entry in value
    ]
    _refuse_many(math.prod(map(len, entries)))
    return [list(mix) for mix in itertools.product(*entries)]


def _strengths(value: object) -> list[Any]:
    if isinstance(value, str):
        return list(numbers(value, whole=False))
    return _any_of("weight", value) if isinstance(value, list) else [value]


def _products(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An object whose values may be lists -> an object for each combination."""
    choices = [item if isinstance(item, list) else [item] for item in value.values()]
    _refuse_many(math.prod(map(len, choices)))
    return [dict(zip(value, combination, strict=True)) for combination in itertools.product(*choices)]


def products(fields: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the alternatives. The last field varies fastest."""
    for combination in itertools.product(*fields.values()):
        yield dict(zip(fields, combination, strict=True))


def read_override(text: str) -> tuple[str, Any]:
    """ "steps=8" -> ("steps", 8), a field for every job. Raises RequestError."""
    name, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise RequestError(f"--set {short(text)}: write FIELD=VALUE, as in --set steps=8")
    name = name.strip()
    if name in AS_IT_STANDS:
        return name, value
    with reading(f"--set {short(text)}", RequestError, "check its brackets and quotes"):
        content = yaml.safe_load(value)
    check_plain(content, f"--set {short(name)}", longest=len(value))
    return name, content
