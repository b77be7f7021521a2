"""The Compose form as a browser keeps it over a reload. No gradio.

What a browser holds is read with distrust: it may be another version's form, one of another home, or anything at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from composers import methods as all_methods
from composers.shown import shown
from pipelines import StudioError
from pipelines.home import Home
from pipelines.schedulers import scheduler_names
from studio.drafts.draft import Draft, Wanted
from studio.drafts.entries import plain_draft, read_draft
from studio.drafts.plain import check_plain
from studio.jobs.gate import Trust, model_key
from studio.library.card import Card
from studio.web.form import methods, mix
from studio.web.form.form import OWN, Form

FORMAT = 1
"""Of what is kept: one more whenever it comes to mean something else."""
LONGEST_KEPT = 100_000
"""Characters of a text: a prompt that is too long to be drawn comes back all the same, to be shortened."""
MOST_KEPT = 20_000
"""Values of a form."""
UNREADABLE = "What this browser kept of the form cannot be read, so the form begins anew."
SCALARS = tuple(
    (field.name, field.default)
    for field in dataclasses.fields(Form)
    if isinstance(field.default, str | int | float)
)
"""The form's fields of one value, with what stands in them at first. The initial picture is not kept: its file is the
server's."""


@dataclass(frozen=True)
class PutBack:
    """What goes back onto the page. model: "" for the default one. notes: what is another now than it was then."""

    form: Form
    model: str = ""
    notes: tuple[str, ...] = ()


def kept(form: Form, model: str, user: str | None, cards: Iterable[Card]) -> dict[str, Any]:
    """The form as JSON can hold it. user: who is logged in. cards: the library's, for how the mix's files are now."""
    files = {card.name.casefold(): _mark(card) for card in cards}
    return {
        "format": FORMAT,
        "user": user or "",
        "model": model,
        **{name: getattr(form, name) for name, _ in SCALARS},
        "method_values": dict(form.method_values),
        "rows": [{**_plain(row), "file": files.get(row.name.casefold())} for row in form.rows],
    }


def put_back(
    value: object, user: str | None, home: Home, trust: Trust, look_up: Callable[[Iterable[str]], Iterable[Card]]
) -> PutBack | None:  # fmt: skip
    """What goes back onto the page; None where nothing was kept, or by somebody else. Raises nothing: what is not here
    any more, or another file now, is told in `notes`. look_up: names -> those of the cards that the library has."""
    if value is None:
        return None
    try:
        if not isinstance(value, Mapping) or value["format"] != FORMAT:
            raise ValueError("another version's form")
        if value["user"] != (user or ""):
            return None
        check_plain(value, "the form", longest=LONGEST_KEPT, most=MOST_KEPT, deepest=10)
        form, model = _form(value), _of_type("", value["model"])
        files = {row["name"]: row["file"] for row in value["rows"]}
    except (StudioError, KeyError, TypeError, ValueError, OverflowError):
        return PutBack(Form(), notes=(UNREADABLE,))
    notes: list[str] = []
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
    rows: mix.Rows,
    files: Mapping[str, object],
    look_up: Callable[[Iterable[str]], Iterable[Card]],
    notes: list[str],
) -> mix.Rows:
    """The rows, of which those are off whose file is gone."""
    here = {card.name.casefold(): card for card in look_up(row.name for row in rows)}
    known = []
    for row in rows:
        card = here.get(row.name.casefold())
        if card is None and row.on:
            notes.append(f"LoRA {row.name!r} is not in the library any more; its row is switched off.")
            row = replace(row, on=False, before=None)
        elif card is not None and files[row.name] not in (None, _mark(card)):
            notes.append(f"LoRA {row.name!r} is another file now than when it was put into this mix.")
        known.append(row)
    return tuple(known)


def _mark(card: Card) -> str:
    """Another text for another file."""
    return f"{card.size}.{card.modified!r}"


def _plain(row: mix.Row) -> dict[str, Any]:
    plain: dict[str, Any] = {
        field.name: getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "wanted"
    }
    [wanted] = plain_draft(Draft(wanted=(row.wanted,)))["adapters"] if row.wanted is not None else [None]
    return {**plain, "wanted": wanted}


def _form(plain: Mapping[str, Any]) -> Form:
    """Raises StudioError, KeyError, TypeError, ValueError or OverflowError for what is none."""
    said: dict[str, Any] = {name: _of_type(default, plain[name]) for name, default in SCALARS}
    if said["method"] not in all_methods():
        raise ValueError("another version's method")
    if said["scheduler"] not in (OWN, *scheduler_names()):
        raise ValueError("another version's sampler")
    values = dict(plain["method_values"])
    methods.built(said["method"], values)
    rows = tuple(_row(row) for row in plain["rows"])
    if len(rows) > mix.MOST_ROWS:
        raise ValueError("more rows than there can be")
    if len({row.name.casefold() for row in rows}) < len(rows):
        raise ValueError("one LoRA twice")
    return Form(**said, method_values=values, rows=rows)


def _row(plain: Mapping[str, Any]) -> mix.Row:
    own = mix.Row("")
    if plain["preset"] not in (*mix.PRESETS, mix.CUSTOM):
        raise ValueError("another version's blocks")
    return mix.Row(
        _of_type("", plain["name"]),
        _of_type(own.on, plain["on"]),
        _of_type(own.weight, plain["weight"]),
        None if plain["text_weight"] is None else _of_type(0.0, plain["text_weight"]),
        plain["preset"],
        None if plain["before"] is None else _of_type(0.0, plain["before"]),
        None if plain["wanted"] is None else _wanted(plain["wanted"]),
    )


def _wanted(plain: object) -> Wanted:
    [wanted] = read_draft({"adapters": [plain]}, "what the browser kept").wanted
    return wanted


def _of_type(like: Any, value: object) -> Any:
    """The value as the type of `like`. Raises TypeError and OverflowError for what is not of its kind."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number if isinstance(like, float) or type(like) is int else type(value) is type(like):
        return type(like)(value)
    raise TypeError(f"{shown(value)} is not of {like!r}'s kind")
