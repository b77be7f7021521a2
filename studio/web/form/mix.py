"""The mix as the page edits it: rows as plain values, every edit a function from rows to rows. No gradio."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from composers.plan import Mix, Use
from composers.shown import shown
from pipelines.bounds import STRONGEST
from pipelines.errors import RequestError
from pipelines.text.tags import LoraTag, take_tags
from studio.drafts.draft import Wanted

LOWEST, HIGHEST = -2.0, 2.0
"""Strengths that a slider offers; what a picture or a tag brings may lie beyond."""
MOST_ROWS = 200
"""Of the mix, those that are off among them; twice as many as one picture may have adapters."""
ROUNDING = 0.01
"""A total this near to what was wished for is that: rounded weights do not add up to it exactly."""
CUSTOM = "custom"
PRESETS: dict[str, str] = {
    "": "All blocks",
    "content": "Content blocks",
    "style": "Style blocks",
    "INALL": "Way in",
    "MIDD": "Deep middle",
    "OUTALL": "Way out",
    "INS": "In, shallow",
    "IND": "In, deep",
    "OUTD": "Out, deep",
    "OUTS": "Out, shallow",
}
"""Block presets by what a tag's lbw= calls them; see `pipelines.blocks`."""


@dataclass(frozen=True)
class Row:
    """One LoRA of the mix.

    on: whether it acts; a row that is off keeps its place. text_weight: None is "as weight".
    preset: a key of PRESETS, else CUSTOM with `wanted.blocks`.
    before: the weight before the mix was normalised; None in one that was not, or was changed since.
    wanted: what else the adapter brings (its schedule, pinned, band), as it came from a picture.
    """

    name: str
    on: bool = True
    weight: float = 1.0
    text_weight: float | None = None
    preset: str = ""
    before: float | None = None
    wanted: Wanted | None = None

    def asked(self) -> Wanted:
        """The row as a job asks for it."""
        base = self.wanted or Wanted(self.name)
        blocks = base.blocks if self.preset == CUSTOM else ()
        return replace(
            base, adapter=self.name, weight=self.weight, text_weight=self.text_weight, blocks=blocks
        )


Rows = tuple[Row, ...]


def row_of(wanted: Wanted) -> Row:
    """The row that asks for the same."""
    weight = 1.0 if wanted.weight is None else wanted.weight
    preset = CUSTOM if wanted.blocks else ""
    return Row(wanted.adapter, True, weight, wanted.text_weight, preset, wanted=wanted)


def added(rows: Rows, name: str, weight: float = 1.0) -> Rows:
    """With one more LoRA at the end; one that is there already is switched on and keeps its place. Raises
    RequestError for more rows than a page can hold."""
    if len(rows) >= MOST_ROWS:
        raise RequestError(f"the mix has {len(rows)} rows, the most there can be; take some out first")
    rows = _as_edited(rows)
    if any(row.name.casefold() == name.casefold() for row in rows):
        return tuple(replace(row, on=True) if row.name.casefold() == name.casefold() else row for row in rows)
    return (*rows, Row(name, weight=weight))


def removed(rows: Rows, place: int) -> Rows:
    return tuple(row for other, row in enumerate(_as_edited(rows)) if other != place)


def moved(rows: Rows, place: int, by: int) -> Rows:
    """One row up (-1) or down (+1); at the ends nothing moves."""
    target = place + by
    if not (0 <= place < len(rows) and 0 <= target < len(rows)):
        return rows
    order = list(rows)
    order.insert(target, order.pop(place))
    return tuple(order)


def changed(rows: Rows, place: int, **edits: Any) -> Rows:
    """One row with other values of its fields: on, weight, text_weight (None is "as weight"), preset. Raises
    RequestError for a strength that is none."""
    if not 0 <= place < len(rows):
        return rows
    for name in edits.keys() & {"weight", "text_weight"}:
        if edits[name] is not None or name == "weight":
            _check_strength(name, edits[name])
    edited = replace(rows[place], **edits)
    if (edited.on, edited.weight) != (rows[place].on, rows[place].weight):
        rows, edited = _as_edited(rows), replace(edited, before=None)
    return (*rows[:place], edited, *rows[place + 1 :])


def _check_strength(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -STRONGEST <= value <= STRONGEST:
        raise RequestError(f"{name}={shown(value)} must be a number in {-STRONGEST:g} … {STRONGEST:g}")


def _as_edited(rows: Rows) -> Rows:
    """Not normalised any more: its total is another one."""
    return tuple(replace(row, before=None) for row in rows)


def active(rows: Rows) -> Rows:
    return tuple(row for row in rows if row.on)


def total(rows: Rows) -> float:
    """The sum of the strengths' sizes of all that act together under Merge."""
    return sum(abs(row.weight) for row in active(rows))


def normalised(rows: Rows, target: float = 1.0) -> Rows:
    """The acting rows scaled so that their total is `target`; text-encoder strengths scale along.

    What the weights were stays with the rows (`Row.before`), so that a picture can say it.
    """
    factor = target / total(rows) if total(rows) else 1.0
    if abs(factor - 1.0) < ROUNDING:
        return rows
    return tuple(
        replace(
            row,
            weight=round(row.weight * factor, 3),
            text_weight=None if row.text_weight is None else round(row.text_weight * factor, 3),
            before=row.weight,
        )
        if row.on
        else row
        for row in rows
    )


def weights_before(rows: Rows) -> dict[str, float]:
    """Name -> weight before the mix was normalised; {} where it was not."""
    return {row.name: row.before for row in active(rows) if row.before is not None}


def asked(rows: Rows) -> tuple[Wanted, ...]:
    """All acting rows that no preset changes, as a job asks for them; the others are written as tags."""
    return tuple(row.asked() for row in active(rows) if row.preset in ("", CUSTOM))


def preset_tags(rows: Rows) -> str:
    """Rows with a block preset as tags, since only the model knows which blocks a preset means."""
    return " ".join(_tag(row) for row in active(rows) if row.preset not in ("", CUSTOM))


def _tag(row: Row) -> str:
    name = re.sub(r"([:<>\\])", r"\\\1", row.name)
    text = row.weight if row.text_weight is None else row.text_weight
    return f"<lora:{name}:te={text:g}:unet={row.weight:g}:lbw={row.preset}>"


def taken_from(prompt: str, rows: Rows) -> tuple[str, Rows]:
    """A prompt's plain tags as rows: the prompt without them, and the rows with them.

    Tags that a row cannot show (with moments, or block numbers) stay in the prompt. Raises PromptError.
    """
    _, tags = take_tags(prompt)
    for tag in tags:
        if tag.points or tag.dyn is not None or (tag.lbw and tag.lbw not in PRESETS):
            continue
        prompt = _without(prompt, tag)
        rows = added(rows, tag.name)
        place = next(i for i, row in enumerate(rows) if row.name.casefold() == tag.name.casefold())
        rows = changed(rows, place, on=True, weight=tag.weight, text_weight=tag.text_weight, preset=tag.lbw)
    return prompt, rows


def _without(prompt: str, tag: LoraTag) -> str:
    before, _, after = prompt.partition(tag.source)
    seam = ", " if before.strip(" ,") and after.strip(" ,") else ""
    return before.rstrip(" ,") + seam + after.lstrip(" ,")


def uses_of(rows: Rows, tags: Iterable[LoraTag] = ()) -> Mix:
    """The mix as composers see it, for a method's schedule; step numbers and presets do not change that."""
    uses = [Use(row.name, row.weight, band=row.asked().band) for row in active(rows) if row.weight]
    names = {use.adapter.casefold() for use in uses}
    uses += [Use(tag.name, tag.weight) for tag in tags if tag.weight and tag.name.casefold() not in names]
    return Mix(tuple(uses))


def as_text(rows: Sequence[Row]) -> str:
    """In one line, for titles: "fox 0.8 + comic 1"."""
    return " + ".join(f"{row.name} {row.weight:g}" for row in rows) or "no LoRA"
