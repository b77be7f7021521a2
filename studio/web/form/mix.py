"""The mix as the page edits it: rows as plain values, every edit a function from rows to rows. No gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from composers.errors import StudioError
from composers.plan import Mix, Use
from composers.shown import shown
from pipelines.bounds import STRONGEST
from pipelines.errors import PromptError, RequestError
from pipelines.text.tags import PARTS, LoraTag, take_tags
from studio.drafts.draft import Wanted, wanted_of

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
"""Block presets by what a tag's lbw= calls them; a job holds them as the block "@INALL" (see `pipelines.blocks`)."""


@dataclass(frozen=True)
class MixRow:
    """One LoRA of the mix.

    on: whether it acts; a row that is off keeps its place. weight: None is what the file prefers.
    text_weight: None is "as weight"; of the presets in PARTS it is 0, whatever stands here.
    preset: a key of PRESETS, else CUSTOM with `wanted.blocks`.
    before: the weight before the mix was normalised; None in one that was not, or was changed since.
    wanted: what else the adapter brings (its schedule, pinned, band), as it came from a picture or a tag.
    """

    name: str
    on: bool = True
    weight: float | None = 1.0
    text_weight: float | None = None
    preset: str = ""
    before: float | None = None
    wanted: Wanted | None = None

    @property
    def strength(self) -> float:
        """The weight as a number."""
        return 1.0 if self.weight is None else self.weight

    def asked(self) -> Wanted:
        """The row as a job asks for it."""
        base = self.wanted or Wanted(self.name)
        return replace(
            base,
            adapter=self.name,
            weight=self.weight,
            text_weight=0.0 if self.preset in PARTS else self.text_weight,
            blocks=base.blocks if self.preset == CUSTOM else _symbolic(self.preset),
        )


MixRows = tuple[MixRow, ...]


def _symbolic(preset: str) -> tuple[tuple[str, float], ...]:
    """A preset as blocks that only a model can name."""
    return ((f"@{preset}", 1.0),) if preset else ()


def row_of(wanted: Wanted) -> MixRow:
    """The row that asks for the same."""
    preset = next((name for name in PRESETS if _symbolic(name) == wanted.blocks), CUSTOM)
    text = wanted.text_weight
    if preset in PARTS:
        preset, text = (preset, None) if text == 0 else (CUSTOM, text)
    return MixRow(wanted.adapter, True, wanted.weight, text, preset, wanted=wanted)


def added(rows: MixRows, name: str, weight: float = 1.0) -> MixRows:
    """With one more LoRA at the end; one that is there already is switched on and keeps its place. Raises
    RequestError for more rows than a page can hold."""
    if len(rows) >= MOST_ROWS:
        raise RequestError(f"the mix has {len(rows)} rows, the most there can be; take some out first")
    rows = _as_edited(rows)
    if any(row.name.casefold() == name.casefold() for row in rows):
        return tuple(replace(row, on=True) if row.name.casefold() == name.casefold() else row for row in rows)
    return (*rows, MixRow(name, weight=weight))


def removed(rows: MixRows, place: int) -> MixRows:
    return tuple(row for other, row in enumerate(_as_edited(rows)) if other != place)


def moved(rows: MixRows, place: int, by: int) -> MixRows:
    """One row up (-1) or down (+1); at the ends nothing moves."""
    target = place + by
    if not (0 <= place < len(rows) and 0 <= target < len(rows)):
        return rows
    order = list(rows)
    order.insert(target, order.pop(place))
    return tuple(order)


def changed(rows: MixRows, place: int, **edits: Any) -> MixRows:
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


def scaled(row: MixRow, factor: float, digits: int = 4) -> MixRow:
    """The row at another strength; as it stands at a factor of 1."""
    return row if factor == 1 else replace(row, weight=round(row.strength * factor, digits))


def preferring(rows: MixRows, preferred: Mapping[str, float | None]) -> MixRows:
    """The rows with the strengths that their files prefer, where they leave it to them. preferred: by name in lower
    case."""
    return tuple(
        row
        if row.weight is not None or preferred.get(row.name.casefold()) is None
        else replace(row, weight=preferred[row.name.casefold()])
        for row in rows
    )


def _as_edited(rows: MixRows) -> MixRows:
    """Not normalised any more: its total is another one."""
    return tuple(replace(row, before=None) for row in rows)


def active(rows: MixRows) -> MixRows:
    return tuple(row for row in rows if row.on)


def total(rows: MixRows) -> float:
    """The sum of the strengths' sizes of all that act together under Merge."""
    return sum(abs(row.strength) for row in active(rows))


def normalised(rows: MixRows, target: float = 1.0) -> MixRows:
    """The acting rows scaled so that their total is `target`; text-encoder strengths scale along.

    What the weights were stays with the rows (`Row.before`), so that a picture can say it.
    """
    factor = target / total(rows) if total(rows) else 1.0
    if abs(factor - 1.0) < ROUNDING:
        return rows
    return tuple(
        replace(
            row,
            weight=round(row.strength * factor, 3),
            text_weight=None if row.text_weight is None else round(row.text_weight * factor, 3),
            before=row.strength,
        )
        if row.on
        else row
        for row in rows
    )


def weights_before(rows: MixRows) -> dict[str, float]:
    """Name -> weight before the mix was normalised; {} where it was not."""
    return {row.name: row.before for row in active(rows) if row.before is not None}


def asked(rows: MixRows) -> tuple[Wanted, ...]:
    """All acting rows as a job asks for them."""
    return tuple(row.asked() for row in active(rows))


def has_tags(prompt: str) -> bool:
    """Whether there are tags that can be read."""
    try:
        return bool(take_tags(prompt)[1])
    except PromptError:
        return False


def taken_from(prompt: str, rows: MixRows) -> tuple[str, MixRows]:
    """A prompt's tags as rows: the prompt without them, and the rows with them.

    A tag wins over the row of its LoRA. Tags that mean nothing, or that no request takes, stay in the prompt. Raises
    PromptError for malformed ones, and RequestError for more rows than a page can hold.
    """
    text, tags = take_tags(prompt)
    taken = []
    for tag in tags:
        try:
            wanted = wanted_of(tag)
            wanted.check()
        except StudioError:
            continue
        taken.append(tag)
        rows = added(rows, tag.name)
        rows = tuple(
            replace(row_of(wanted), name=row.name) if row.name.casefold() == tag.name.casefold() else row
            for row in rows
        )
    if len(taken) == len(tags):
        return text, rows
    for tag in taken:
        prompt = _without(prompt, tag)
    return prompt, rows


def _without(prompt: str, tag: LoraTag) -> str:
    before, _, after = prompt.partition(tag.source)
    seam = ", " if before.strip(" ,") and after.strip(" ,") else ""
    return before.rstrip(" ,") + seam + after.lstrip(" ,")


def uses_of(rows: MixRows) -> Mix:
    """The mix as composers see it, for a method's schedule; presets do not change that."""
    return Mix(
        tuple(Use(row.name, row.strength, band=row.asked().band) for row in active(rows) if row.strength)
    )


def as_text(rows: Sequence[MixRow]) -> str:
    """In one line, for titles: "fox 0.8 + comic 1"."""
    return " + ".join(f"{row.name} {row.strength:g}" for row in rows) or "no LoRA"
