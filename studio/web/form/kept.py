"""The Compose form as a browser keeps it over a reload. No gradio.

What a browser kept is read with distrust: it may be a form of another version or of another home, or anything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from composers import methods as all_methods
from composers.shown import shown
from pipelines import StudioError
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.home.plain import check_plain, reading
from studio.drafts.draft import Draft, Wanted
from studio.drafts.entries import plain_draft, read_draft
from studio.drafts.fields import Field
from studio.jobs.gate import Trust, model_key
from studio.library.card import Card
from studio.web.form import methods, mix
from studio.web.form.form import OWN_METHOD, VALUES, Form, is_proper

FORMAT = 2
"""The version of what is kept. Raise it whenever that changes its meaning."""
LONGEST_KEPT = 100_000
"""Most characters of a text. A prompt that is too long to be drawn still comes back, so that it can be shortened."""
MOST_KEPT = 20_000
"""Most values of a form."""
EXACT = 2**53
"""Browsers hold whole numbers exactly up to here; larger ones are kept as text."""
UNREADABLE = "What this browser kept of the form cannot be read, so the form begins anew."


@dataclass(frozen=True)
class PutBack:
    """What goes back into the page. model: "" for the default one. notes: what has changed since it was kept."""

    form: Form
    model: str = ""
    notes: tuple[str, ...] = ()


def kept(form: Form, model: str, user: str | None, cards: Iterable[Card]) -> dict[str, Any]:
    """The form as JSON can hold it, without its pictures, whose files are on the server.

    user: the login's name. cards: of the library, to note how the mix's files are now.
    """
    files = {card.name.casefold(): _mark(card) for card in cards}
    return {
        "format": FORMAT,
        "user": user or "",
        "model": model,
        "values": {name: _for_browser(value) for name, value in form.values.items()},
        "method": form.method,
        "method_values": dict(form.method_values),
        "rows": [{**_plain(row), "file": files.get(row.name.casefold())} for row in form.rows],
        "count": form.count,
        "vae": form.vae,
    }


def _for_browser(value: Any) -> Any:
    large = isinstance(value, int) and abs(value) > EXACT
    return str(value) if large else value


def put_back(
    value: object, user: str | None, home: Home, trust: Trust, look_up: Callable[[Iterable[str]], Iterable[Card]]
) -> PutBack | None:  # fmt: skip
    """What goes back into the page; None where nothing was kept, or somebody else kept it. Raises nothing: `notes` says
    which files are gone or have changed. look_up: names -> the library's cards of these names."""
    if value is None:
        return None
    notes: list[str] = []
    try:
        with reading("the form", RequestError):
            if not isinstance(value, Mapping) or value["format"] not in (1, FORMAT):
                raise ValueError("another version's form")
            if value["user"] != (user or ""):
                return None
            check_plain(value, "the form", longest=LONGEST_KEPT, most=MOST_KEPT, deepest=10)
            plain = value if value["format"] == FORMAT else _of_format_1(value)
            form, model = _form(plain, notes), _of_type("", plain["model"])
            files = {row["name"]: row["file"] for row in plain.get("rows", ())}
    except StudioError:
        return PutBack(Form(), notes=(UNREADABLE,))
    rows = _known_rows(form.rows, files, look_up, notes)
    try:
        model_key(model or None, None, home, trust)
    except StudioError as error:
        notes.append(f"The model of last time is not here any more: {error}")
        model = ""
    try:
        if form.vae:
            home.find_vae(form.vae, paths=trust.paths)
    except StudioError as error:
        notes.append(f"The VAE of last time is not here any more: {error}")
        form = replace(form, vae="")
    return PutBack(replace(form, rows=rows), model, tuple(notes))


def _known_rows(
    rows: mix.MixRows,
    files: Mapping[str, object],
    look_up: Callable[[Iterable[str]], Iterable[Card]],
    notes: list[str],
) -> mix.MixRows:
    """The rows. Those whose file is gone are switched off, and `notes` says so."""
    here = {card.name.casefold(): card for card in look_up(row.name for row in rows)}
    known = []
    for row in rows:
        card = here.get(row.name.casefold())
        if card is None and row.on:
            notes.append(f"LoRA {shown(row.name)} is not in the library any more; its row is switched off.")
            row = replace(row, on=False, before=None)
        elif card is not None and files[row.name] not in (None, _mark(card)):
            notes.append(f"LoRA {shown(row.name)} is another file now than when it was put into this mix.")
        known.append(row)
    return tuple(known)


def _mark(card: Card) -> str:
    """A text that differs for different files."""
    return f"{card.size}.{card.modified!r}"


def _plain(row: mix.MixRow) -> dict[str, Any]:
    plain: dict[str, Any] = {
        field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "wanted"
    }
    [wanted] = plain_draft(Draft(wanted=(row.wanted,)))["adapters"] if row.wanted is not None else [None]
    return {**plain, "wanted": wanted}


def _form(plain: Mapping[str, Any], notes: list[str]) -> Form:
    """The form that was kept; what is missing in it is as in an empty form. Raises StudioError, KeyError, TypeError,
    ValueError or OverflowError for anything that is no form."""
    method, settings = _of_type("", plain.get("method", "")), dict(plain.get("method_values", {}))
    if method not in ("", *all_methods()) or not all(isinstance(name, str) for name in settings):
        raise ValueError("another version's method")
    methods.built(method or OWN_METHOD, settings)
    rows = tuple(_row(row) for row in plain.get("rows", ()))
    if len(rows) > mix.MOST_ROWS:
        raise ValueError("more rows than there can be")
    if len({row.name.casefold() for row in rows}) < len(rows):
        raise ValueError("one LoRA twice")
    return Form(
        values=_values(dict(plain.get("values", {})), notes),
        method=method,
        method_values=settings,
        rows=rows,
        count=_of_type(1, plain.get("count", 1)),
        vae=_of_type("", plain.get("vae", "")),
    )


def _values(plain: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The values that this version accepts; `notes` names the others."""
    fields = {field.name: field for field in VALUES}
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if name not in fields:
            notes.append(f"This version has no setting {shown(name)}, so it was left out.")
            continue
        try:
            read = _value(fields[name], value)
        except StudioError:
            read = _NONE
        if is_proper(fields[name], read):
            found[name] = read
        else:
            notes.append(f"{fields[name].knob.label} {shown(value)} means nothing here, so it was left out.")
    return found


_NONE = object()
"""No value of any field."""


def _value(field: Field, plain: Any) -> Any:
    """A value as the browser kept it. Raises StudioError."""
    if plain is None or field.kind == "prompt":
        return plain
    if field.kind == "whole" and isinstance(plain, str):
        return field.read(plain)
    return read_draft({field.name: plain}, "what the browser kept").values[field.name]


_NAMES_1: Mapping[str, tuple[str, Any]] = {
    "prompt": ("prompt", ""),
    "negative": ("negative_prompt", ""),
    "seed": ("seed", -1),
    "steps": ("steps", 0),
    "guidance": ("guidance_scale", -1.0),
    "width": ("width", 0),
    "height": ("height", 0),
    "scheduler": ("scheduler", "the model's own"),
    "rescale": ("guidance_rescale", 0.0),
    "clip_skip": ("clip_skip", 0),
    "strength": ("strength", 0.8),
}
"""Format 1: name -> the field, and the value that said nothing. There, a seed or guidance below 0 said nothing too."""


def _of_format_1(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a form in format 1, which was kept before the table of fields existed. Raises KeyError, TypeError
    and OverflowError."""
    said = {
        name: _of_type(nothing, plain[old])
        for old, (name, nothing) in _NAMES_1.items()
        if plain[old] != nothing
    }
    for name in ("seed", "guidance_scale"):
        if said.get(name, 0) < 0:
            del said[name]
    own = (plain["method"], plain["method_values"]) == (OWN_METHOD, {})
    return {
        **{name: plain[name] for name in ("model", "method_values", "rows", "count", "vae")},
        "values": said,
        "method": "" if own else plain["method"],
    }


def _row(plain: Mapping[str, Any]) -> mix.MixRow:
    own = mix.MixRow("")
    if plain["preset"] not in (*mix.PRESETS, mix.CUSTOM):
        raise ValueError("another version's blocks")
    return mix.MixRow(
        _of_type("", plain["name"]),
        _of_type(own.on, plain["on"]),
        _or_none(0.0, plain["weight"]),
        _or_none(0.0, plain["text_weight"]),
        plain["preset"],
        _or_none(0.0, plain["before"]),
        None if plain["wanted"] is None else _wanted(plain["wanted"]),
    )


def _wanted(plain: object) -> Wanted:
    [wanted] = read_draft({"adapters": [plain]}, "what the browser kept").wanted
    return wanted


def _or_none(like: Any, value: object) -> Any:
    return None if value is None else _of_type(like, value)


def _of_type(like: Any, value: object) -> Any:
    """The value, converted to the type of `like`. Raises TypeError and OverflowError where that cannot be done."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    if number if isinstance(like, float) or type(like) is int else type(value) is type(like):
        return type(like)(value)
    raise TypeError(f"{shown(value)} is not of {like!r}'s kind")
