"""Drafts and requests as plain data that JSON can hold: in requests files, in the database, in pictures."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from composers.errors import StudioError
from composers.plan import Composer, Schedule, Use
from composers.registry import build as build_composer
from composers.registry import parse as parse_composer
from composers.registry import settings_of
from composers.shown import shown
from pipelines.bounds import (
    LONGEST_NAME,
    LONGEST_PROMPT,
    MOST_ADAPTERS,
    MOST_BLOCKS,
    MOST_POINTS,
    STRONGEST,
    check_text,
)
from pipelines.errors import RequestError
from pipelines.home.plain import check_plain, read_json, read_text, reading, short
from pipelines.request import PROMPTS, Request
from studio.drafts.draft import MOST_PICTURES, USE_FIELDS, Draft, Wanted, placed
from studio.drafts.fields import NAMES, of_kind
from studio.drafts.input_images import LONGEST_INLINE, MASK, InputImage, input_image, mask_mark, picture_mark

HUGE = 2**128
"""A number beyond this is refused here, whatever its field. Request knows each field's own range."""
LATEST = sys.float_info.max
"""The last step that a schedule may name. One that no run reaches never comes, whichever road said it."""
LONGEST_PATH = 4_096
"""Characters."""
LONGEST_METHOD = 4_000
"""Most characters of a method written as text; it may name adapters."""
MOST_SETTINGS = 100
"""Most settings of a method."""
PICTURES: tuple[str, ...] = tuple(field.name for field in of_kind("picture"))
"""The fields whose values are pictures."""


def read_requests(file: Path) -> list[Draft]:
    """The drafts of a file that holds a JSON list of requests, one picture each. Raises SetupError for a file that
    cannot be read, and RequestError that names entry and field."""
    with reading(str(file), RequestError, "save it as UTF-8 text"):
        content = read_json(read_text(file), str(file))
    if not isinstance(content, list) or not content:
        raise RequestError(f'{file} must hold a list of requests, as in [{{"prompt": "a fox", "seed": 7}}]')
    if len(content) > MOST_PICTURES:
        raise RequestError(
            f"{file} holds {len(content)} requests, more than {MOST_PICTURES}; split it, or use lora-studio batch"
        )
    return [
        read_draft(entry, f"{file.name}, entry {number}", file.parent)
        for number, entry in enumerate(content, 1)
    ]


def read_draft(entry: object, where: str, folder: Path | None = None) -> Draft:
    """The draft of one request as JSON holds it: an object with Request's field names. A field that is left out, or
    None, says nothing.

    composer: text, as in "switch:interval=3", or {"method": "switch", "interval": 3}.
    adapters: {name: strength or null}, or a list of names and of objects with Use's fields.
    Pictures (init_image, mask): a path, relative to `folder`, or a `data:` URL; anything but a text is ignored.
    where: where the entry stands, for messages.
    The lengths of texts, names and lists are checked here, so that a draft is never too large to be kept. Request
    judges the rest. Raises RequestError, ComposerError, and PromptError for LoRA tags that cannot be read.
    """
    if not isinstance(entry, dict):
        raise RequestError(f"{where}: it must be an object with Request's fields, not {_shown(entry)}")
    for name in entry:
        if name not in NAMES:
            raise RequestError(f"{where}: unknown field {shown(name)}; {_hint(name, NAMES)}")
    if not isinstance(entry.get("prompt", ""), str):
        raise RequestError(f"{where}: prompt={_shown(entry['prompt'])} must be text")
    values = {
        name: _value(name, value, where)
        for name, value in entry.items()
        if name not in ("adapters", "composer", *PICTURES) and value is not None
    }
    if entry.get("composer") is not None:
        values["composer"] = _composer(entry["composer"], where)
    wanted = tuple(_wanted(entry.get("adapters") or (), where))
    images = {
        name: _picture(name, text, where, folder)
        for name in PICTURES
        if isinstance(text := entry.get(name), str)
    }
    return Draft(values, wanted, images, where)


def _picture(name: str, text: str, where: str, folder: Path | None) -> InputImage:
    check_text(f"{where}: {name}", text, LONGEST_INLINE if text.startswith("data:") else LONGEST_PATH)
    try:
        return input_image(name, text, folder)
    except RequestError as error:
        raise placed(error, where) from error


def checked(draft: Draft) -> Draft:
    """The draft, where its texts, names and lists are within bounds. Raises RequestError that says where."""
    if len(draft.wanted) > MOST_ADAPTERS:
        raise RequestError(
            f"{draft.where}: {len(draft.wanted)} adapters are more than one picture may have ({MOST_ADAPTERS})"
        )
    for wanted in draft.wanted:
        _name(wanted.adapter, draft.where)
    for name, value in draft.values.items():
        if name != "composer":
            _value(name, value, draft.where)
    return draft


def _value(name: str, value: object, where: str) -> object:
    """The value of a field: a single value, or a pair of numbers. Raises RequestError."""
    if isinstance(value, str):
        return check_text(f"{where}: {name}", value, LONGEST_PROMPT if name in PROMPTS else LONGEST_NAME)
    if isinstance(value, bool | int | float):
        if not abs(value) <= HUGE:
            raise RequestError(f"{where}: {name}={_shown(value)} must be a number that means something")
        return value
    if isinstance(value, list | tuple) and len(value) <= 2 and all(isinstance(v, int | float) for v in value):
        return tuple(_value(name, side, where) for side in value)
    raise RequestError(f"{where}: {name}={_shown(value)} must be one value, or a pair of numbers")


def _composer(value: object, where: str) -> Composer:
    if isinstance(value, str):
        check_text(f"{where}: composer", value, LONGEST_METHOD)
    else:
        check_plain(value, f"{where}: composer", longest=LONGEST_NAME, most=2 * MOST_SETTINGS, deepest=2)
    try:
        if isinstance(value, str):
            return parse_composer(value)
        if isinstance(value, dict) and isinstance(value.get("method"), str):
            return build_composer(value["method"], {k: v for k, v in value.items() if k != "method"})
    except StudioError as error:
        raise placed(error, f"{where}: composer") from error
    raise RequestError(
        f'{where}: composer={_shown(value)} must be text, as in "switch:interval=3", or an object, as in '
        '{"method": "switch", "interval": 3}'
    )


def _wanted(value: object, where: str) -> Iterable[Wanted]:
    if isinstance(value, Mapping | list | tuple) and len(value) > MOST_ADAPTERS:
        raise RequestError(
            f"{where}: {len(value)} adapters are more than one picture may have ({MOST_ADAPTERS}); leave some out"
        )
    if isinstance(value, Mapping):
        named = ((_name(str(name), where), weight) for name, weight in value.items())
        return [Wanted(name, _number(weight, f"{where}: adapters: {short(name)}")) for name, weight in named]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RequestError(
            f'{where}: adapters={_shown(value)} must be an object of strengths, as in {{"fox": 0.8}}, or a list'
        )
    return [_one_wanted(entry, f"{where}: adapters, entry {number}") for number, entry in enumerate(value, 1)]


def _one_wanted(entry: object, where: str) -> Wanted:
    if isinstance(entry, str):
        return Wanted(_name(entry, where))
    if not isinstance(entry, dict) or not isinstance(entry.get("adapter"), str):
        raise RequestError(
            f'{where}: {_shown(entry)} must be a name or an object, as in {{"adapter": "fox"}}'
        )
    for name in entry:
        if name not in (*USE_FIELDS, "named"):
            raise RequestError(f"{where}: unknown field {shown(name)}; {_hint(name, USE_FIELDS)}")
    for name in ("pinned", "text_scheduled"):
        if not isinstance(entry.get(name, False), bool):
            raise RequestError(f"{where}: {name}={_shown(entry[name])} must be true or false")
    if entry.get("band") not in (None, "high", "low"):
        raise RequestError(f"{where}: band={_shown(entry['band'])} must be high or low")
    points = _pairs(entry.get("schedule") or (), f"{where}: schedule", MOST_POINTS)
    blocks = _pairs(entry.get("blocks") or (), f"{where}: blocks", MOST_BLOCKS)
    try:
        schedule = Schedule(tuple((_start(start, f"{where}: schedule"), factor) for start, factor in points))
    except StudioError as error:
        raise placed(error, where) from error
    return Wanted(
        _name(entry["adapter"], where),
        _number(entry.get("weight"), f"{where}: weight"),
        _number(entry.get("text_weight"), f"{where}: text_weight"),
        tuple((_name(str(name), f"{where}: blocks"), factor) for name, factor in blocks),
        schedule if points else None,
        entry.get("pinned", False),
        entry.get("band"),
        entry.get("text_scheduled", False),
        entry.get("named") is True,
    )


def _name(text: str, where: str) -> str:
    """The name of a block, or of an adapter, which may be a path. Raises RequestError."""
    return check_text(f"{where}: a name", text, LONGEST_NAME)


def _pairs(value: object, where: str, most: int) -> list[tuple[object, float]]:
    """[[a, 1], [b, 2]] or {"a": 1, "b": 2} -> pairs."""
    if isinstance(value, Mapping | list | tuple) and len(value) > most:
        raise RequestError(f"{where} has {len(value)} pairs, more than {most}; leave some out")
    items = list(value.items()) if isinstance(value, Mapping) else value
    if isinstance(items, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in items
    ):
        return [(first, _real(second, where)) for first, second in items]
    raise RequestError(f"{where}={_shown(value)} must be a list of pairs, as in [[0.0, 1.0], [0.5, 0.2]]")


def _number(value: object, where: str) -> float | None:
    return None if value is None else _real(value, where)


def _real(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{where}: {_shown(value)} must be a number")
    if not -STRONGEST <= value <= STRONGEST:
        raise RequestError(f"{where}: {_shown(value)} must be a number in {-STRONGEST:g} … {STRONGEST:g}")
    return float(value)


def _start(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LATEST:
        raise RequestError(
            f"{where}: {_shown(value)} must be a fraction of the steps below 1, or the number of a step"
        )
    return float(value)


def _hint(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(shown(name).strip("'").lower(), known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"Fields are {', '.join(known)}"


def _shown(value: object) -> str:
    text = shown(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) else text


def plain_request(request: Request) -> dict[str, Any]:
    """Every field of a request as JSON can hold it. `read_draft` reads all of it back except pictures: of the initial
    image, only size and hash are kept, and the mask as `mask_mark` writes it."""
    plain = {name: getattr(request, name) for name in NAMES}
    plain["composer"] = {"method": request.composer.name, **settings_of(request.composer)}
    plain["adapters"] = [_plain_use(use) for use in request.uses]
    for name in PICTURES:
        if plain[name] is not None:
            plain[name] = mask_mark(plain[name]) if name == MASK else picture_mark(plain[name])
    return plain


def plain_draft(draft: Draft) -> dict[str, Any]:
    """The draft as JSON can hold it. `read_draft` reads it back, pictures by their paths."""
    plain = dict(draft.values)
    composer = plain.get("composer")
    if isinstance(composer, Composer):
        plain["composer"] = {"method": composer.name, **settings_of(composer)}
    plain["adapters"] = [_plain_wanted(wanted) for wanted in draft.wanted]
    return plain | {name: str(source) for name, source in draft.images.items()}


def _plain_wanted(wanted: Wanted) -> dict[str, Any]:
    return _plain_use(wanted) | ({"named": True} if wanted.named else {})


def _plain_use(use: Use | Wanted) -> dict[str, Any]:
    """Its fields as JSON can hold them. Later ones are left out where they say nothing, so that records of before are
    equal to those of now."""
    plain = {name: getattr(use, name) for name in USE_FIELDS}
    plain["schedule"] = None if use.schedule is None else use.schedule.points
    if not use.text_scheduled:
        del plain["text_scheduled"]
    return plain
