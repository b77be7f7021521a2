"""The contents of the Compose form as plain values, and the jobs that it asks for. No gradio."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from composers.plan import Composer
from composers.registry import build, settings_of
from composers.registry import methods as all_methods
from composers.shown import shown
from pipelines.bounds import STRONGEST
from pipelines.errors import RequestError, StudioError
from pipelines.request import SEEDS, Request
from studio.drafts.draft import Draft, check_count, counted
from studio.drafts.fields import BY_NAME, FIELDS, Field
from studio.drafts.input_images import input_image
from studio.web.form import methods, mix

MOST_COMPARED = 500
"""Most pictures of one comparison or one sweep."""
VALUES: tuple[Field, ...] = tuple(one for one in FIELDS if one.kind not in ("mix", "method", "picture"))
"""The fields whose values stand in `Form.values`."""
OWN_METHOD: str = BY_NAME["composer"].default.name
"""The method of a request that names none."""


@dataclass(frozen=True)
class Form:
    """The contents of the form.

    values: what is said, by the names of Request's fields; mix, method and pictures are kept apart from these.
    method: "" says nothing; Request's default is used. images: a picture's field -> its path, or its text where that
    stands for it (`studio.drafts.input_images`). vae: "" is the model's own.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    method_values: Mapping[str, object] = field(default_factory=dict)
    rows: mix.MixRows = ()
    images: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    vae: str = ""

    __hash__ = None  # type: ignore[assignment]  # its mappings have none, and Gradio must not compare states by it

    def said(self, name: str) -> Any:
        """The value of a field; None where nothing is said."""
        return self.values.get(name)

    def saying(self, **values: Any) -> Form:
        """The same form with these values."""
        return replace(self, values={**self.values, **values})

    @property
    def prompt(self) -> str:
        """The prompt as it was written, with its tags."""
        return str(self.said("prompt") or "")


def draft_of(form: Form) -> Draft:
    """The draft of the form; its seed may be drawn later. Raises StudioError for bad settings of the method, and for
    tags in the prompt that cannot be read."""
    values = dict(form.values)
    if form.method:
        if form.method not in all_methods():
            build(shown(form.method), {})  # which says what methods there are
        values["composer"] = methods.built(form.method, form.method_values)
    images = {name: input_image(name, text) for name, text in form.images.items()}
    return Draft(values, mix.asked(form.rows), images)


def form_of(draft: Draft, vae: str | None = None) -> Form:
    """The form that asks for a draft, to put a picture's settings back. vae: the one that the picture was made with.

    Values that no request accepts are left out, since a picture may be a stranger's.
    """
    said = draft.values.get("composer")
    composer = said if isinstance(said, Composer) else None
    return Form(
        values={
            one.name: draft.values[one.name]
            for one in VALUES
            if one.name in draft.values and is_proper(one, draft.values[one.name])
        },
        method="" if composer is None else composer.name,
        method_values={} if composer is None else settings_of(composer),
        rows=tuple(map(mix.row_of, draft.wanted)),
        images={name: str(source) for name, source in draft.images.items()},
        vae=vae or "",
    )


def is_proper(field: Field, value: object) -> bool:
    """Whether a request accepts the value. A prompt may be too long, since it can be shortened on the page."""
    if field.kind == "prompt" and isinstance(value, str):
        return True
    values: dict[str, Any] = {"prompt": "", field.name: value}
    try:
        Request(**values)
    except StudioError:
        return False
    return True


@dataclass(frozen=True)
class Submission:
    """Pictures to ask for in one job, with their labels. before: name -> weight before the mix was normalised."""

    drafts: Sequence[Draft]
    labels: Sequence[str] = ()
    before: Mapping[str, float] = field(default_factory=dict)


def composed(form: Form) -> Submission:
    """As many pictures as the form says, with rising seeds. Raises StudioError."""
    drafts = counted(draft_of(form), max(form.count, 1), _seeded(form).said("seed"))
    return Submission(drafts, before=mix.weights_before(form.rows))


DRAFT_STEPS = 8


def live(form: Form, seed: int) -> Submission:
    """A live draft: one picture in few steps. seed: used where the form gives none. Raises StudioError."""
    steps, own = form.said("steps"), form.said("seed")
    few = DRAFT_STEPS if steps is None else min(steps, DRAFT_STEPS)
    return Submission([draft_of(form.saying(steps=few, seed=seed if own is None else own))])


def compared(form: Form, names: Sequence[str], factors: Sequence[float] = (1.0,)) -> Submission:
    """The form's mix, by each of the methods and with its strengths times each of the factors, at one seed.

    names: of the methods. The form's own method keeps its settings; the others have their defaults. Raises StudioError.
    """
    if not names:
        raise RequestError("tick at least one method to compare")
    check_count(len(names) * len(factors), "methods x strengths", MOST_COMPARED)
    for factor in factors:
        real(factor, "a strength's factor")
    seeded = _seeded(form)
    drafts, labels = [], []
    for name in names:
        values = form.method_values if name == (form.method or OWN_METHOD) else {}
        for factor in factors:
            scaled = tuple(mix.scaled(row, factor) for row in form.rows)
            drafts.append(draft_of(replace(seeded, method=name, method_values=values, rows=scaled)))
            labels.append(name if len(factors) == 1 else f"{name} x {factor:g}")
    return Submission(drafts, labels)


def left_out(form: Form) -> Submission:
    """Shows which LoRA did what: the whole mix, the mix without each LoRA in turn, and the model alone. Raises
    StudioError."""
    acting = mix.active(form.rows)
    if not acting:
        raise RequestError("the mix is empty; add LoRAs first, then see which one does what")
    seeded = _seeded(form)
    others = [(f"without {row.name}", tuple(r for r in acting if r is not row)) for row in acting]
    cases = [("all", acting), *(others if len(acting) > 1 else []), ("the base alone", ())]
    drafts = []
    for _, rows in cases:
        short = len(rows) < 2
        method = OWN_METHOD if short else form.method  # with one LoRA, all methods do the same
        values = {} if short else form.method_values
        drafts.append(draft_of(replace(seeded, rows=rows, method=method, method_values=values)))
    return Submission(drafts, [label for label, _ in cases])


def sweep(form: Form, name: str, low: float, high: float, count: int) -> Submission:
    """`count` pictures at one seed, in which the strength of one LoRA, or of all ("all"), goes from `low` to `high`.
    Raises StudioError."""
    if not mix.active(form.rows):
        raise RequestError("the mix is empty; add the LoRA whose strength is to be swept")
    if name not in (ALL, *(row.name for row in form.rows)):
        raise RequestError(
            f"the mix has no LoRA {shown(name)} whose strength could be swept; choose one of its own"
        )
    check_count(count, "the pictures of a sweep", MOST_COMPARED)
    low, high = real(low, "the first strength"), real(high, "the last strength")
    seeded = _seeded(form)
    drafts, labels = [], []
    for place in range(count):
        value = round(low + (high - low) * place / max(count - 1, 1), 3)
        rows = tuple(
            replace(row, weight=value)
            if row.name == name
            else mix.scaled(row, value, 3)
            if name == ALL
            else row
            for row in form.rows
        )
        drafts.append(draft_of(replace(seeded, rows=rows)))
        labels.append(f"{'all x ' if name == ALL else name + ' '}{value:g}")
    return Submission(drafts, labels)


SWEPT = 5
"""Pictures of a sweep that is started from a row."""


def row_sweep(form: Form, name: str) -> Submission:
    """Sweeps one LoRA's strength from 0 to 1.5 times its present value, or to 1.5 if that is more. Raises
    StudioError."""
    now = next((row.strength for row in form.rows if row.name == name), 1.0)
    end = 1.5 * now if now < 0 else max(1.5, min(1.5 * now, mix.HIGHEST))
    rows = tuple(replace(row, on=True) if row.name == name else row for row in form.rows)
    return sweep(replace(form, rows=rows), name, 0.0, end, SWEPT)


ALL = "all"
"""The name by which a sweep scales the strengths of all LoRAs by one factor."""


def real(value: object, what: str, low: float = -STRONGEST, high: float = STRONGEST) -> float:
    """A number that a page sent. Raises RequestError for anything else, and for a number outside `low` … `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"{what}={shown(value)} must be a number in {low:g} … {high:g}")
    return float(value)


def whole(value: object, what: str, low: int, high: int) -> int:
    """A whole number that a page sent; it may come as 3.0. Raises RequestError for anything else, and for a number
    outside `low` … `high`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{what}={shown(value)} must be a whole number in {low} … {high}")
    return value


def _seeded(form: Form) -> Form:
    return form if form.said("seed") is not None else form.saying(seed=random.randrange(SEEDS))
