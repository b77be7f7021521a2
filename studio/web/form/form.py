"""What stands in the Compose form, as plain values, and the jobs that it asks for. No gradio."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composers.registry import build, settings_of
from composers.registry import methods as all_methods
from composers.shown import shown
from pipelines.bounds import STRONGEST
from pipelines.errors import RequestError
from pipelines.request import SEEDS
from pipelines.text.tags import take_tags
from studio.drafts.draft import Draft, check_count, counted
from studio.web.form import methods, mix

OWN = "the model's own"
MOST_COMPARED = 500
"""Pictures of one comparison or one sweep."""


@dataclass(frozen=True)
class Form:
    """What stands in the form. steps, guidance, width, height: 0 or below means the model's own; vae: "" does."""

    prompt: str = ""
    negative: str = ""
    method: str = "merge"
    method_values: Mapping[str, object] = field(default_factory=dict)
    rows: mix.Rows = ()
    seed: int = -1
    count: int = 1
    steps: int = 0
    guidance: float = -1.0
    width: int = 0
    height: int = 0
    scheduler: str = OWN
    rescale: float = 0.0
    clip_skip: int = 0
    init_image: str | None = None
    strength: float = 0.8
    vae: str = ""


def draft_of(form: Form) -> Draft:
    """The form as a job asks for it; its seed may be drawn later. Raises StudioError for settings of a method."""
    if form.method not in all_methods():
        build(shown(form.method), {})  # which says what methods there are
    tags = mix.preset_tags(form.rows)
    values: dict[str, Any] = {
        "prompt": f"{form.prompt} {tags}".strip(),
        "negative_prompt": form.negative or None,
        "composer": methods.built(form.method, form.method_values),
        "steps": form.steps or None,
        "guidance_scale": None if form.guidance < 0 else form.guidance,
        "width": form.width or None,
        "height": form.height or None,
        "scheduler": None if form.scheduler == OWN else form.scheduler,
        "guidance_rescale": form.rescale or None,
        "clip_skip": form.clip_skip or None,
        "strength": form.strength if form.init_image else None,
        "seed": None if form.seed < 0 else form.seed,
    }
    image = Path(form.init_image) if form.init_image else None
    said = {name: value for name, value in values.items() if value is not None}
    return Draft(said, mix.asked(form.rows), image)


@dataclass(frozen=True)
class Asked:
    """Pictures to ask for in one job, with their labels. before: the weights before the mix was normalised."""

    drafts: Sequence[Draft]
    labels: Sequence[str] = ()
    before: Mapping[str, float] = field(default_factory=dict)


def composed(form: Form) -> Asked:
    """One picture a seed, rising from the first. Raises StudioError."""
    drafts = counted(draft_of(form), max(form.count, 1), _seeded(form).seed)
    return Asked(drafts, before=mix.weights_before(form.rows))


DRAFT_STEPS = 8


def live(form: Form, seed: int) -> Asked:
    """A draft of the form: one picture of few steps. seed: where the form leaves it open. Raises StudioError."""
    steps = min(form.steps, DRAFT_STEPS) if form.steps else DRAFT_STEPS
    return Asked([draft_of(replace(form, steps=steps, seed=seed if form.seed < 0 else form.seed))])


def form_of(draft: Draft, vae: str | None = None) -> Form:
    """The form that asks for a draft: a picture's settings, put back. vae: the one that it was made with."""
    values = draft.values
    composer = values.get("composer")
    _, tags = take_tags(str(values.get("prompt", "")))

    def number(name: str, default: float) -> float:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            return default  # a stranger's: Request would refuse it
        return value

    rows = tuple(mix.row_of(wanted) for wanted in draft.wanted)
    prompt, rows = (
        mix.taken_from(str(values.get("prompt", "")), rows) if tags else (values.get("prompt", ""), rows)
    )
    return Form(
        prompt=str(prompt),
        negative=str(values.get("negative_prompt") or ""),
        method=composer.name if composer is not None else "merge",
        method_values=settings_of(composer) if composer is not None else {},
        rows=rows,
        seed=int(number("seed", -1)),
        steps=int(number("steps", 0)),
        guidance=float(number("guidance_scale", -1)),
        width=int(number("width", 0)),
        height=int(number("height", 0)),
        scheduler=str(values.get("scheduler", OWN)),
        rescale=float(number("guidance_rescale", 0)),
        clip_skip=int(number("clip_skip", 0)),
        init_image=None if draft.init_image is None else str(draft.init_image),
        strength=float(number("strength", Form.strength)),
        vae=vae or "",
    )


def compared(form: Form, names: Sequence[str], factors: Sequence[float] = (1.0,)) -> Asked:
    """The form's mix by every method and at every factor of its strengths, at one seed.

    names: methods; the form's own keeps its settings, the others have their defaults. Raises StudioError.
    """
    if not names:
        raise RequestError("tick at least one method to compare")
    check_count(len(names) * len(factors), "methods x strengths", MOST_COMPARED)
    for factor in factors:
        real(factor, "a strength's factor")
    seeded = _seeded(form)
    drafts, labels = [], []
    for name in names:
        values = form.method_values if name == form.method else {}
        for factor in factors:
            scaled = tuple(replace(row, weight=round(row.weight * factor, 4)) for row in form.rows)
            drafts.append(draft_of(replace(seeded, method=name, method_values=values, rows=scaled)))
            labels.append(name if len(factors) == 1 else f"{name} x {factor:g}")
    return Asked(drafts, labels)


def left_out(form: Form) -> Asked:
    """The whole mix, the mix without each LoRA in turn, and the base alone: who did what. Raises StudioError."""
    acting = mix.active(form.rows)
    if not acting:
        raise RequestError("the mix is empty; add LoRAs first, then see which one does what")
    seeded = _seeded(form)
    others = [(f"without {row.name}", tuple(r for r in acting if r is not row)) for row in acting]
    cases = [("all", acting), *(others if len(acting) > 1 else []), ("the base alone", ())]
    drafts = []
    for _, rows in cases:
        short = len(rows) < 2 and form.method not in ("merge",)
        method = "merge" if short else form.method  # one LoRA is the same by every method
        values = {} if short else form.method_values
        drafts.append(draft_of(replace(seeded, rows=rows, method=method, method_values=values)))
    return Asked(drafts, [label for label, _ in cases])


def sweep(form: Form, name: str, low: float, high: float, count: int) -> Asked:
    """The strength of one LoRA of the mix, or of all ("all"), over a range, at one seed. Raises StudioError."""
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
            else replace(row, weight=round(row.weight * value, 3))
            if name == ALL
            else row
            for row in form.rows
        )
        drafts.append(draft_of(replace(seeded, rows=rows)))
        labels.append(f"{'all x ' if name == ALL else name + ' '}{value:g}")
    return Asked(drafts, labels)


SWEPT = 5
"""Pictures of a sweep that a row asks for."""


def row_sweep(form: Form, name: str) -> Asked:
    """One LoRA's strength from 0 to half again as much as it has now, at least to 1.5. Raises StudioError."""
    now = next((row.weight for row in form.rows if row.name == name), 1.0)
    end = 1.5 * now if now < 0 else max(1.5, min(1.5 * now, mix.HIGHEST))
    rows = tuple(replace(row, on=True) if row.name == name else row for row in form.rows)
    return sweep(replace(form, rows=rows), name, 0.0, end, SWEPT)


ALL = "all"
"""In a sweep: every LoRA's strength by one factor."""


def real(value: object, what: str, low: float = -STRONGEST, high: float = STRONGEST) -> float:
    """A number that a page sent. Raises RequestError for what is none, or lies outside."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"{what}={shown(value)} must be a number in {low:g} … {high:g}")
    return float(value)


def whole(value: object, what: str, low: int, high: int) -> int:
    """A whole number that a page sent, which may come as 3.0. Raises RequestError for what is none, or lies outside."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{what}={shown(value)} must be a whole number in {low} … {high}")
    return value


def _seeded(form: Form) -> Form:
    return form if form.seed >= 0 else replace(form, seed=random.randrange(SEEDS))
