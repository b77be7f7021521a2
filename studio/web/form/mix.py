"""The mix as the page edits it. Rows are plain values; every edit is a function from rows to rows. No gradio."""

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
"""The range of a strength's slider. A strength from a picture or a tag may lie beyond it."""
MOST_ROWS = 200
"""Most rows of a mix, including those that are off: twice as many as a picture may have adapters."""
ROUNDING = 0.01
"""A total this near to the target counts as equal: rounded weights do not add up exactly."""
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
"""Block presets, by their names in a tag's lbw=. A job holds one as a block such as "@INALL" (see
`pipelines.blocks`)."""


@dataclass(frozen=True)
class MixRow:
    """One LoRA of the mix.

    on: whether it acts; a row that is off keeps its place. weight: None is the strength that the file prefers.
    text_weight: None is the same as `weight`; with a preset in PARTS it is 0, whatever is given here.
    preset: a key of PRESETS, or CUSTOM, with the blocks in `wanted.blocks`.
    before: the weight before the mix was normalised; None if it was not normalised, or was changed since.
    wanted: what else a picture or a tag said of the adapter (schedule, pinned, band).
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
        """The weight as a number, 1 where it is left to the file."""
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
    """A preset as a symbolic block; the model decides which blocks it means."""
    return ((f"@{preset}", 1.0),) if preset else ()


def row_of(wanted: Wanted) -> MixRow:
    """The row that asks for this adapter."""
    preset = next((name for name in PRESETS if _symbolic(name) == wanted.blocks), CUSTOM)
    text = wanted.text_weight
    if preset in PARTS:
        preset, text = (preset, None) if text == 0 else (CUSTOM, text)
    return MixRow(wanted.adapter, True, wanted.weight, text, preset, wanted=wanted)


def added(rows: MixRows, name: str, weight: float = 1.0) -> MixRows:
    """The rows with one more LoRA at the end. One that is there already is switched on and keeps its place. Raises
    RequestError for too many rows."""
    if len(rows) >= MOST_ROWS:
        raise RequestError(f"the mix has {len(rows)} rows, the most there can be; take some out first")
    rows = _as_edited(rows)
    if any(row.name.casefold() == name.casefold() for row in rows):
        return tuple(replace(row, on=True) if row.name.casefold() == name.casefold() else row for row in rows)
    return (*rows, MixRow(name, weight=weight))


def removed(rows: MixRows, place: int) -> MixRows:
    return tuple(row for other, row in enumerate(_as_edited(rows)) if other != place)


def moved(rows: MixRows, place: int, by: int) -> MixRows:
    """The rows with one of them moved up (-1) or down (+1); none moves beyond the ends."""
    target = place + by
    if not (0 <= place < len(rows) and 0 <= target < len(rows)):
        return rows
    order = list(rows)
    order.insert(target, order.pop(place))
    return tuple(order)


def changed(rows: MixRows, place: int, **edits: Any) -> MixRows:
    """The rows with other values in one of them: on, weight, text_weight (None is the same as `weight`), preset. Raises
    RequestError for a bad strength."""
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
    """The row with its strengths times a factor. A factor of 1 changes nothing."""
    return row if factor == 1 else replace(row, weight=round(row.strength * factor, digits))


def preferring(rows: MixRows, preferred: Mapping[str, float | None]) -> MixRows:
    """The rows; where one leaves its strength to its file, it gets the one that the file prefers. preferred: strengths
    by name, in lower case."""
    return tuple(
        row
        if row.weight is not None or preferred.get(row.name.casefold()) is None
        else replace(row, weight=preferred[row.name.casefold()])
        for row in rows
    )


def _as_edited(rows: MixRows) -> MixRows:
    """The rows of a mix that counts as not normalised any more, since its total has changed."""
    return tuple(replace(row, before=None) for row in rows)


def active(rows: MixRows) -> MixRows:
    return tuple(row for row in rows if row.on)


def total(rows: MixRows) -> float:
    """The sum of the absolute strengths of all acting rows."""
    return sum(abs(row.strength) for row in active(rows))


def normalised(rows: MixRows, target: float = 1.0) -> MixRows:
    """The rows with the acting ones scaled so that their total is `target`, also their text-encoder strengths.

    Each row keeps its earlier weight (`MixRow.before`), so that pictures can record it.
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
    """Name -> weight before the mix was normalised; {} if it was not."""
    return {row.name: row.before for row in active(rows) if row.before is not None}


def asked(rows: MixRows) -> tuple[Wanted, ...]:
    """All acting rows as a job asks for them."""
    return tuple(row.asked() for row in active(rows))


def has_tags(prompt: str) -> bool:
    """Whether the prompt contains tags that can be read."""
    try:
        return bool(take_tags(prompt)[1])
    except PromptError:
        return False


def taken_from(prompt: str, rows: MixRows) -> tuple[str, MixRows]:
    """Turns a prompt's tags into rows: returns the prompt without them, and the rows with them.

    A tag wins over a row with the same LoRA. Tags that mean nothing, or that no request takes, stay in the prompt.
    Raises PromptError for malformed tags, and RequestError for too many rows.
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
    """The mix as composers see it, to show a method's schedule. Presets have no influence on that."""
    return Mix(
        tuple(Use(row.name, row.strength, band=row.asked().band) for row in active(rows) if row.strength)
    )


def as_text(rows: Sequence[MixRow]) -> str:
    """The rows in one line, for titles: "fox 0.8 + comic 1"."""
    return " + ".join(f"{row.name} {row.strength:g}" for row in rows) or "no LoRA"
