"""From flags to drafts: which pictures the command line asks for."""

from __future__ import annotations

import os
import random
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from composers.registry import parse as parse_composer
from pipelines.bounds import LONGEST_NAME, check_text
from pipelines.checkpoints.card import read_card
from pipelines.checkpoints.folders import folder_files
from pipelines.checkpoints.hashes import short_hash
from pipelines.errors import ModelError, RequestError
from pipelines.home import Entry, Home
from pipelines.request import SEEDS
from studio.drafts.draft import MOST_PICTURES, Draft, Wanted, check_count, counted, placed, read_requests
from studio.pictures.metadata import Remembered

_STRENGTHS = re.compile(r"(?P<name>.+)=(?P<weight>[^=]*)", re.DOTALL)


def flag_draft(args: Namespace) -> Draft:
    """What the flags say of every picture: all but prompts and methods, of which there may be several."""
    width, height = args.size or (None, None)
    if args.size and (args.width or args.height):
        raise RequestError("give either --size or --width and --height")
    values: dict[str, Any] = {
        "negative_prompt": args.negative or None,
        "seed": args.seed,
        "steps": args.steps,
        "guidance_scale": args.guidance,
        "guidance_rescale": args.guidance_rescale,
        "width": args.width or width,
        "height": args.height or height,
        "scheduler": args.scheduler,
        "strength": args.strength,
        "clip_skip": args.clip_skip,
        "reuse": args.reuse,
        "cut": args.cut,
        "text_mode": args.text_mode,
    }
    image = None if args.init_image is None else Path(args.init_image).expanduser()
    given = {name: value for name, value in values.items() if value is not None}
    pinned = tuple(replace(parse_lora(text), pinned=True) for text in args.pin)
    return Draft(given, (*map(parse_lora, args.lora), *pinned), image)


def parse_lora(text: str) -> Wanted:
    """`NAME`, `NAME=0.8` or `NAME=0.8:0.5` (UNet, text encoder); a path may stand for the name. Raises RequestError."""
    check_text("a LoRA", text, LONGEST_NAME)
    match = _STRENGTHS.fullmatch(text)
    if match is None or os.path.exists(os.path.expanduser(text)):  # which, unlike Path's, raise nothing
        return Wanted(text)
    try:
        weight, colon, text_weight = match["weight"].partition(":")
        return Wanted(match["name"], float(weight), float(text_weight) if colon else None)
    except ValueError as error:
        raise RequestError(
            f"--lora {text}: {match['weight']!r} is no strength; write {match['name']}=0.8, or "
            f"{match['name']}=0.8:0.5 for another one in the text encoder"
        ) from error


def ask(args: Namespace, remembered: Remembered | None, example: Callable[[], str]) -> list[Draft]:
    """One draft a picture: prompts x methods x seeds, each laid over what a file or a picture says.

    `example` gives the prompt where there is none. Raises RequestError and ComposerError.
    """
    flags = flag_draft(args)
    if args.requests is not None:
        if args.prompt:
            raise RequestError("give either --prompt or --requests, whose entries hold their own prompts")
        bases = [
            _seeded(flags.over(entry), None) for entry in read_requests(Path(args.requests).expanduser())
        ]
        bases = [base if "prompt" in base.values else base.with_value("prompt", example()) for base in bases]
    else:
        base = _seeded(flags.over(remembered.draft if remembered else Draft()), random.randrange(SEEDS))
        prompts = args.prompt or [base.values["prompt"] if "prompt" in base.values else example()]
        bases = [base.with_value("prompt", prompt) for prompt in prompts]
    if args.composer:
        methods = [parse_composer(text) for text in args.composer]
        check_count(len(bases) * len(methods), "prompts x methods")
        bases = [base.with_value("composer", method) for base in bases for method in methods]
    total = len(bases) * check_count(args.count, "--count")
    if total > MOST_PICTURES:
        raise RequestError(
            f"prompts x methods x --count come to {total} pictures, more than {MOST_PICTURES}; ask for fewer, or use "
            "lora-studio batch"
        )
    return [draft for base in bases for draft in _counted(base, args.count)]


def _seeded(draft: Draft, shared: int | None) -> Draft:
    """Seeds are drawn here and not later, so that file names can hold them."""
    if draft.values.get("seed") is not None:
        return draft
    return draft.with_value("seed", random.randrange(SEEDS) if shared is None else shared)


def _counted(draft: Draft, count: int) -> list[Draft]:
    try:
        return counted(draft, count, draft.values["seed"])
    except RequestError as error:
        raise placed(error, draft.where) from error


def first_example(model: str, entry: Entry | None) -> str:
    """The first example of a model's card. Raises RequestError where there is none."""
    card = read_card(entry.path) if entry is not None else None
    if card is None or not card.examples:
        raise RequestError(f"{model} brings no example of its own; say what to draw with --prompt")
    return card.examples[0]


def is_repeat(args: Namespace) -> bool:
    """Whether `--from` renders the picture as it was, so that the two can be compared."""
    asked = flag_draft(args)
    again = replace(asked, init_image=None)
    return not (again.said() or args.prompt or args.composer or args.model or args.vae) and args.count == 1


def remembered_model(remembered: Remembered, home: Home, say: Callable[[str], None]) -> str:
    """The model a picture was made with, by name, else by hash. Raises ModelError."""
    names: Sequence[str] = [remembered.model, str(remembered.record.get("model_source", ""))]
    for name in filter(None, dict.fromkeys(names)):
        try:
            home.find_model(name)
            return name
        except ModelError:
            continue
    wanted = remembered.model_hash.lower()
    if wanted:
        say(
            f"model {remembered.model!r} is not here under that name; comparing the hashes of those that are …"
        )
        for entry in home.models():
            if _model_hash(entry, home) == wanted[:10]:
                say(f"model {remembered.model!r} was found by its hash: it is called {entry.name!r} here")
                return str(entry.path)
    called = f"{remembered.model!r}" + (f" (hash {wanted})" if wanted else "")
    raise ModelError(
        f"the model {called} of this picture is not here; put it into {home.path / 'models'}, name its folder with "
        "--model-dir, or take another one with --model"
    )


def _model_hash(entry: Entry, home: Home) -> str:
    try:
        files = folder_files(entry.path, torch.float32) if entry.path.is_dir() else [entry.path]
        return short_hash(files, home.hashes)
    except (ModelError, OSError):
        return ""
