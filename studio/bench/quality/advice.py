"""Finds the method and strength that suit one mix, by drawing it: what `lora-studio advise` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from composers import methods
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.home.files import write_whole
from studio.batch.values import numbers
from studio.bench.quality.cells import CellPlan
from studio.bench.quality.drawing import draw, drawn
from studio.bench.quality.elements import Composition
from studio.bench.quality.measures import NAMES, Scored
from studio.bench.quality.methods import read_method
from studio.bench.quality.order import open_eyes, score, settled
from studio.bench.quality.results import SHALLOW
from studio.bench.quality.sets import Suite, library_suite
from studio.bench.quality.statistics import DRAWS, value_of
from studio.drafts.draft import Wanted
from studio.grid.axes import Axis
from studio.grid.grid import ONE, Cell, Grid
from studio.grid.sheet import draw_sheet
from studio.rendering.opening import Opening, model_name
from studio.terminal.exits import INTERRUPTED
from studio.terminal.progress import Teller

STRENGTHS = {"merge": (1.0, 0.8, 0.6)}
OTHERS = (1.0, 0.8)
"""The strengths at which each method is tried."""


@dataclass(frozen=True)
class Rank:
    """A method's place. overall: mean of its standardised scores. behind: its distance from the first method, with a
    95 % interval over seeds; 0 for the first. level: whether that interval contains 0. work: of one picture, in full
    UNet rows."""

    method: str
    overall: float
    behind: tuple[float, float, float]
    level: bool
    means: dict[str, float]
    work: float


@dataclass(frozen=True)
class Question:
    """The mix that advice is asked for.

    prompt: None takes the trigger words. seeds: as in "1-4". methods: () takes the standard ones. overrides: job fields
    of every picture. clip: an open_clip model, "none", or None for the one that suits the model. out: None is the day's
    folder.
    """

    opening: Opening
    mix: tuple[Wanted, ...]
    prompt: str | None
    seeds: str
    methods: tuple[str, ...]
    overrides: Mapping[str, Any]
    clip: str | None
    out: Path | None
    as_json: bool = False


def run(question: Question, home: Home, teller: Teller) -> int:
    """Draws, scores and prints the ranking. Exit code: 0 all done, 1 some pictures failed, 130 interrupted. Raises
    StudioError for bad input."""
    suite = _suite(question, home, model_name(question.opening, home))
    opening = settled(question.opening, suite, home)
    composition = Composition(suite.elements)
    asked = [read_method(text) for text in question.methods or standard_methods()]
    plan = CellPlan(
        suite=suite,
        compositions=(composition,),
        methods=tuple(method for method in asked if method.suits(composition)),
        seeds=tuple(int(seed) for seed in numbers(question.seeds, whole=True)),
        prompt=question.prompt,
    )
    if not plan.methods:
        raise RequestError(f"no method takes {composition.size} LoRAs; give others with --method")
    out = question.out or home.outputs / date.today().isoformat() / "advice"
    eyes = open_eyes(question.clip, opening, home, plan)
    if eyes.world is None and eyes.clip is None:
        raise RequestError(
            "--clip none leaves nothing to score this model's pictures by; name an open_clip model"
        )
    cells = [*plan.singles, *plan.cells]
    code = draw(plan, cells, out, opening, home, teller)
    if code == INTERRUPTED:
        return code
    scored = [one for one in score(plan, drawn(plan, cells, out), eyes, teller) if one.shot is not None]
    ranking = rank(scored)
    print(json.dumps([asdict(one) for one in ranking], indent=1) if question.as_json else as_text(ranking))
    print(write_sheet(ranking, scored, plan, out))
    return code


def standard_methods() -> list[str]:
    """Every registered method at its strengths, without B-LoRA: it needs pairs that were trained for it, and can be
    asked for by name."""
    return [
        f"{name}@{strength:g}"
        for name in methods()
        if name != "blora"
        for strength in STRENGTHS.get(name, OTHERS)
    ]


def _suite(question: Question, home: Home, model: str) -> Suite:
    wanted = question.mix
    if len(wanted) < 2:
        raise RequestError(
            "give two or more LoRAs, as in --lora fox --lora hat; one alone has no method to choose"
        )
    suite = library_suite(home, model, [one.adapter for one in wanted])
    by_path = {home.find_lora(one.adapter, model).name: one for one in wanted}
    elements = [
        element if (weight := by_path[element.adapter].weight) is None else replace(element, weight=weight)
        for element in suite.elements
    ]
    if len({one.casefold() for one in by_path}) < len(wanted):
        raise RequestError("a LoRA stands twice in --lora; give it one strength")
    return replace(suite, name=" + ".join(by_path), elements=tuple(elements), settings=question.overrides)


def rank(scored: Sequence[Scored]) -> list[Rank]:
    """The methods, the best first, by the mean of all their scores, which are standardised over the pictures."""
    names = [
        name
        for name in NAMES
        if name != "complete" and all(value_of(row, name) is not None for row in scored)
    ]
    labels = list(dict.fromkeys(row.method for row in scored))
    seeds = sorted({row.seed for row in scored})
    values = np.full((len(names), len(labels), len(seeds)), np.nan)
    for row in scored:
        for place, name in enumerate(names):
            values[place, labels.index(row.method), seeds.index(row.seed)] = value_of(row, name)
    spread = np.nanstd(values, axis=(1, 2), keepdims=True)
    centred = values - np.nanmean(values, axis=(1, 2), keepdims=True)
    overall = (centred / np.where(spread > 1e-9, spread, np.inf)).mean(0)  # [methods, seeds]
    drawn = np.random.default_rng(0).integers(0, len(seeds), (DRAWS, len(seeds)))
    means = np.nanmean(overall, 1)
    best = int(np.argmax(means))
    found = []
    for place in np.argsort(-means, kind="stable"):
        behind = overall[place] - overall[best]
        low, high = np.percentile(np.nanmean(behind[drawn], 1), [2.5, 97.5])
        own = [row for row in scored if row.method == labels[place]]
        shots = [row.shot for row in own if row.shot is not None]
        found.append(
            Rank(
                method=labels[place],
                overall=float(means[place]),
                behind=(float(np.nanmean(behind)), float(low), float(high)),
                level=bool(high >= 0),
                means={name: float(np.nanmean(values[at, place])) for at, name in enumerate(names)},
                work=float(np.mean([shot.full_rows + SHALLOW * shot.shallow_rows for shot in shots])),
            )
        )
    return found


def as_text(ranking: Sequence[Rank]) -> str:
    """The ranking in columns, and how certain it is."""
    names = list(ranking[0].means)
    lines = [("", "method", "overall", *names, "UNet rows")]
    for place, one in enumerate(ranking, 1):
        figures = [
            f"{value:.1f}" if name == "clip" else f"{100 * value:.1f}" for name, value in one.means.items()
        ]
        lines.append((str(place), one.method, f"{one.overall:+.2f}", *figures, f"{one.work:.0f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(
            cell.ljust(width) if place == 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    level = [one for one in ranking[1:] if one.level]
    if not level:
        return f"{text}\n\n{ranking[0].method} is ahead of all others on these seeds"
    cheapest = min([ranking[0], *level], key=lambda one: one.work)
    return (
        f"{text}\n\nNo clear difference on these seeds between {ranking[0].method} and "
        f"{', '.join(one.method for one in level)}; the cheapest of them is {cheapest.method}"
    )


def write_sheet(ranking: Sequence[Rank], scored: Sequence[Scored], plan: CellPlan, out: Path) -> Path:
    """Writes advice.png: a row for each method, the best first, and a column for each seed."""
    shots = {(row.method, row.seed): row.shot for row in scored}
    title = plan.prompt or plan.suite.prompt_of(plan.compositions[0].words)
    x = Axis("seed", tuple((str(seed), dict) for seed in plan.seeds))
    y = Axis("method", tuple((one.method, dict) for one in ranking))
    cells = []
    for row, one in enumerate(ranking):
        for column, seed in enumerate(plan.seeds):
            shot = shots.get((one.method, seed))
            cells.append(
                Cell((column, row, 0), (), shot.file if shot else None, {}, None if shot else "failed")
            )
    sheet = draw_sheet(Grid(title, x, y, ONE, {}), cells)
    return write_whole(out / "advice.png", lambda path: sheet.save(path, format="PNG"), force=True)
