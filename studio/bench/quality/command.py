"""`lora-studio bench quality`: a test set by every method, drawn, scored, and reported."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.home.files import write_whole
from studio.batch.values import numbers
from studio.bench.quality.cells import Cell, Plan, part_of
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
from studio.rendering.opening import BUILT_IN, Opening, model_name, opening_of, pick_device
from studio.terminal.progress import Teller

CLIP = "ViT-B-16:openai"
"""The paper's scorer, for pictures that are not of the embedded world."""
PART = re.compile(r"(?P<number>[1-9]\d*)/(?P<count>[1-9]\d*)")


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """The exit code: 0 all done, 1 some pictures failed, 130 interrupted. Raises StudioError for bad input."""
    opening = opening_of(args)
    suite = asked_suite(args, home, opening)
    opening = settled(opening, suite, home)
    out = Path(args.out).expanduser() if args.out else home.outputs / date.today().isoformat() / "quality"
    plan = Plan(
        suite=replace(suite, settings={**suite.settings, **overrides(args)}),
        compositions=tuple(_compositions(args, suite)),
        methods=tuple(_methods(args, suite)),
        seeds=tuple(int(seed) for seed in numbers(args.seeds, whole=True)),
    )
    judge = endpoint(args.judge, args.judge_model) if args.judge else None
    cells = [*plan.singles, *plan.cells]
    _tell(plan, cells, teller)
    if args.part is not None:
        number, count = _part(args.part)
        name = f"{number}-of-{count}"
        return draw(plan, part_of(cells, number, count), out, opening, home, teller, part=name)
    code = draw(plan, cells, out, opening, home, teller)
    if code == 130:
        return code
    shots = drawn(plan, cells, out)
    eyes = open_eyes(args.clip, opening, home, plan)
    scored = score(plan, shots, eyes, teller)
    judged = [] if judge is None else judge_all(judge, shots, plan.cells, BASELINE, args.judge_pairs)
    report(plan, scored, eyes, judged, out, teller)
    return code


def asked_suite(args: Namespace, home: Home, opening: Opening) -> Suite:
    """The set of --set, else the library's."""
    if args.set is not None:
        if args.lora:
            raise RequestError("give either --set or --lora; a set names its own LoRAs")
        return read_suite(set_file(args.set), home, opening.source)
    return library_suite(home, model_name(opening, home), args.lora)


def settled(opening: Opening, suite: Suite, home: Home) -> Opening:
    """The opening with the set's model and VAE where the user gives none."""
    source = opening.source or suite.model or model_name(opening, home)
    return replace(opening, source=source, vae=opening.vae or suite.vae)


def open_eyes(clip: str | None, opening: Opening, home: Home, plan: Plan) -> Eyes:
    """The scorers for this model: the embedded world's for the embedded models, an open_clip model for all others.

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


def score(plan: Plan, shots: dict[Cell, Shot], eyes: Eyes, teller: Teller) -> list[Scored]:
    """Every picture's scores, and the bounds'."""
    cells = plan.cells
    with teller.waiting(f"scoring {len(cells)} pictures"), torch.inference_mode():
        found = measure(shots, cells, eyes, lambda count: None)
        return found + bounds(plan.compositions, eyes)


def report(
    plan: Plan,
    scored: Sequence[Scored],
    eyes: Eyes,
    judged: Sequence[Judged],
    out: Path,
    teller: Teller,
) -> None:
    """Prints the tables; writes tables, figures, page and JSON, and prints the files' names."""
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


def _about(plan: Plan, scored: Sequence[Scored], eyes: Eyes) -> dict[str, Any]:
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


# -- flags -----------------------------------------------------------------------------------------------


def _compositions(args: Namespace, suite: Suite) -> list[Composition]:
    found = suite.compositions(args.k, args.limit)
    if args.only_kinds:
        found = [one for one in found if one.kind in args.only_kinds]
    if not found:
        sizes = ", ".join(map(str, args.k))
        raise RequestError(f"{suite.name} makes no composition of {sizes} LoRAs; give other sizes with --k")
    return found


def _methods(args: Namespace, suite: Suite) -> list[Method]:
    if not args.method:
        return default_methods(suite.kinds)
    found = list(dict.fromkeys(read_method(text) for text in args.method))
    if all(method.label != BASELINE for method in found):
        found.insert(0, read_method(BASELINE))  # what the others are compared with
    return found


def overrides(args: Namespace) -> dict[str, Any]:
    """Job fields that the flags fix for every picture."""
    given = {
        "steps": args.steps,
        "guidance_scale": args.guidance,
        "scheduler": args.scheduler,
        "width": args.width,
        "height": args.height,
        "negative_prompt": args.negative,
    }
    return {name: value for name, value in given.items() if value is not None}


def _part(text: str) -> tuple[int, int]:
    match = PART.fullmatch(text)
    if match is None or int(match["number"]) > int(match["count"]):
        raise RequestError(f"--part {text!r} must be a number and a count, as in 2/8")
    return int(match["number"]), int(match["count"])


def _tell(plan: Plan, cells: Sequence[Cell], teller: Teller) -> None:
    teller.say(
        f"{plan.suite.name}: {len(plan.compositions)} compositions, {len(plan.methods)} methods, "
        f"{len(plan.seeds)} seeds: {len(cells)} pictures"
    )
