"""What `lora-studio bench quality` is asked for, and its run: a test set is drawn by every method, scored and
reported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.home.files import write_whole
from studio.batch.values import numbers
from studio.bench.quality.cells import CellPlan, QualityCell, part_of
from studio.bench.quality.drawing import Shot, draw, drawn
from studio.bench.quality.elements import Composition
from studio.bench.quality.eyes import EMBEDDED, clip_eye, world_eye
from studio.bench.quality.judge import Judged, endpoint, judge_all, judged_text
from studio.bench.quality.measures import Eyes, Scored, bounds, measure
from studio.bench.quality.methods import BASELINE, Method, default_methods, read_method
from studio.bench.quality.page import write_page
from studio.bench.quality.plots import over_cost, over_size
from studio.bench.quality.references import shipped_references
from studio.bench.quality.results import as_json, as_text, rows_of
from studio.bench.quality.sets import Suite, library_suite, read_suite, set_file
from studio.library.models import BUILT_IN
from studio.rendering.opening import Opening, model_name, pick_device
from studio.terminal.exits import INTERRUPTED
from studio.terminal.progress import Teller

CLIP = "ViT-B-16:openai"
"""The paper's scorer, for pictures that are not of the built-in world."""
PART = re.compile(r"(?P<number>[1-9]\d*)/(?P<count>[1-9]\d*)")


@dataclass(frozen=True)
class QualityOrder:
    """What to compare.

    set: a YAML file or an included set; None is the library, from which `loras` picks some (() is all that fit).
    sizes: LoRAs in a mix. only_kinds: of compositions; () is all. limit: most compositions of each size and kind.
    seeds: as in "1-3". methods: () is the standard ones. overrides: job fields of every picture.
    part: "2/8" draws only that part and scores nothing. judge: an endpoint that compares pairs. clip: an open_clip
    model, "none", or None for the one that suits the model. out: None is the day's folder.
    """

    opening: Opening
    set: str | None
    loras: tuple[str, ...]
    sizes: tuple[int, ...]
    only_kinds: tuple[str, ...]
    limit: int | None
    seeds: str
    methods: tuple[str, ...]
    overrides: Mapping[str, Any]
    part: str | None
    judge: str | None
    judge_model: str | None
    judge_pairs: int
    clip: str | None
    out: Path | None


def run(order: QualityOrder, home: Home, teller: Teller) -> int:
    """Draws, scores and reports. Exit code: 0 all done, 1 some pictures failed, 130 interrupted. Raises StudioError
    for bad input."""
    suite = _suite(order, home)
    opening = settled(order.opening, suite, home)
    out = order.out or home.outputs / date.today().isoformat() / "quality"
    plan = CellPlan(
        suite=replace(suite, settings={**suite.settings, **order.overrides}),
        compositions=tuple(_compositions(order, suite)),
        methods=tuple(_methods(order, suite)),
        seeds=tuple(int(seed) for seed in numbers(order.seeds, whole=True)),
    )
    judge = endpoint(order.judge, order.judge_model) if order.judge else None
    cells = [*plan.singles, *plan.cells]
    _tell(plan, cells, teller)
    if order.part is not None:
        number, count = _part(order.part)
        name = f"{number}-of-{count}"
        return draw(plan, part_of(cells, number, count), out, opening, home, teller, part=name)
    code = draw(plan, cells, out, opening, home, teller)
    if code == INTERRUPTED:
        return code
    shots = drawn(plan, cells, out)
    eyes = open_eyes(order.clip, opening, home, plan)
    scored = score(plan, shots, eyes, teller)
    judged = [] if judge is None else judge_all(judge, shots, plan.cells, BASELINE, order.judge_pairs)
    report(plan, scored, eyes, judged, out, teller)
    return code


def _suite(order: QualityOrder, home: Home) -> Suite:
    """The set of --set, else the library's."""
    if order.set is not None:
        if order.loras:
            raise RequestError("give either --set or --lora; a set names its own LoRAs")
        return read_suite(set_file(order.set), home, order.opening.source)
    return library_suite(home, model_name(order.opening, home), order.loras)


def settled(opening: Opening, suite: Suite, home: Home) -> Opening:
    """The opening, with the set's model and VAE if the user gives none."""
    source = opening.source or suite.model or model_name(opening, home)
    return replace(opening, source=source, vae=opening.vae or suite.vae)


def open_eyes(clip: str | None, opening: Opening, home: Home, plan: CellPlan) -> Eyes:
    """The scorers for this model: those of the built-in world for built-in models, an open_clip model for all others.

    clip: another open_clip model, or "none". Raises SetupError.
    """
    device = pick_device(opening.device or home.settings.device or "auto")
    model = opening.source or BUILT_IN
    entry = home.find_model(model)
    is_world = entry is not None and entry.embedded
    name = clip or (EMBEDDED if is_world else CLIP)
    return Eyes(
        world=world_eye(device) if is_world else None,
        clip=None if name == "none" else clip_eye(name, device),
        references=shipped_references(plan.compositions) if is_world else None,
    )


def score(plan: CellPlan, shots: dict[QualityCell, Shot], eyes: Eyes, teller: Teller) -> list[Scored]:
    """The scores of all pictures, and of the bounds."""
    cells = plan.cells
    with teller.waiting(f"scoring {len(cells)} pictures"), torch.inference_mode():
        found = measure(shots, cells, eyes, lambda count: None)
        return found + bounds(plan.compositions, eyes)


def report(
    plan: CellPlan,
    scored: Sequence[Scored],
    eyes: Eyes,
    judged: Sequence[Judged],
    out: Path,
    teller: Teller,
) -> None:
    """Prints the tables; writes tables, figures, a page and JSON; and prints the files' names."""
    rows = rows_of(scored)
    text = as_text(rows)
    if judged:
        text += f"\n\n{judged_text(judged, BASELINE)}"
    print(text)
    figures: dict[str, Path] = {}
    for caption, file, make in (
        ("Scores against the number of LoRAs", out / "scores.png", over_size),
        ("Scores against cost", out / "cost.png", over_cost),
    ):
        if make(rows, file):
            figures[caption] = file
    page = write_page(f"Methods compared on {plan.suite.name}", rows, scored, figures, eyes.references)
    about = _about(plan, scored, eyes) | {"judge": [asdict(one) for one in judged]}
    write_whole(out / "tables.txt", text + "\n", force=True)
    write_whole(out / "results.json", as_json(rows, scored, about) + "\n", force=True)
    write_whole(out / "quality.html", page, force=True)
    for file in (*figures.values(), out / "tables.txt", out / "results.json", out / "quality.html"):
        teller.say(str(file))


def _about(plan: CellPlan, scored: Sequence[Scored], eyes: Eyes) -> dict[str, Any]:
    shots = [one.shot for one in scored if one.shot is not None]
    return {
        "set": plan.suite.name,
        "prompt": plan.suite.prompt,
        "settings": dict(plan.suite.settings),
        "compositions": len(plan.compositions),
        "methods": [method.label for method in plan.methods],
        "seeds": list(plan.seeds),
        "clip": None if eyes.clip is None else eyes.clip.name,
        "devices": sorted({f"{shot.device}, {shot.dtype}" for shot in shots}),
    }


def _compositions(order: QualityOrder, suite: Suite) -> list[Composition]:
    found = suite.compositions(order.sizes, order.limit)
    if order.only_kinds:
        found = [one for one in found if one.kind in order.only_kinds]
    if not found:
        sizes = ", ".join(map(str, order.sizes))
        raise RequestError(f"{suite.name} makes no composition of {sizes} LoRAs; give other sizes with --k")
    return found


def _methods(order: QualityOrder, suite: Suite) -> list[Method]:
    if not order.methods:
        return default_methods(suite.kinds)
    found = list(dict.fromkeys(read_method(text) for text in order.methods))
    if all(method.label != BASELINE for method in found):
        found.insert(0, read_method(BASELINE))  # what the others are compared with
    return found


def _part(text: str) -> tuple[int, int]:
    match = PART.fullmatch(text)
    if match is None or int(match["number"]) > int(match["count"]):
        raise RequestError(f"--part {text!r} must be a number and a count, as in 2/8")
    return int(match["number"]), int(match["count"])


def _tell(plan: CellPlan, cells: Sequence[QualityCell], teller: Teller) -> None:
    teller.say(
        f"{plan.suite.name}: {len(plan.compositions)} compositions, {len(plan.methods)} methods, "
        f"{len(plan.seeds)} seeds: {len(cells)} pictures"
    )
