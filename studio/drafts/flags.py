"""Drafts of what was said on the command line."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from composers.registry import parse as parse_composer
from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, check_text
from pipelines.checkpoints.card import read_card
from pipelines.errors import RequestError
from pipelines.home import Entry
from pipelines.home.paths import expanded
from pipelines.home.plain import short
from pipelines.request import SEEDS
from studio.drafts.draft import MOST_PICTURES, Draft, Wanted, check_count, counted, placed
from studio.drafts.entries import read_requests

_STRENGTHS = re.compile(r"(?P<name>.+)=(?P<weight>[^=]*)", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """What a command line asks for: prompts x composers x seeds.

    draft: what is said of all pictures. prompts: () takes the prompts of the requests file; without one, the prompt of
    the picture to repeat, or the model's first example. composers: methods as text. count: pictures of each prompt,
    with rising seeds. requests: a file with a JSON list of requests.
    """

    draft: Draft
    prompts: tuple[str, ...] = ()
    composers: tuple[str, ...] = ()
    count: int = 1
    requests: Path | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether a picture that these flags are laid over stays as it was. An initial image counts as no change: a
        picture does not hold its own, so it must be given again."""
        others = {name: source for name, source in self.draft.images.items() if name != "init_image"}
        said = replace(self.draft, images=others).said()
        return not (said or self.prompts or self.composers) and self.count == 1


def wanted_of(loras: Sequence[str], pins: Sequence[str]) -> tuple[Wanted, ...]:
    """The adapters of --lora and --pin; those of --pin act in every pass. Raises RequestError."""
    pinned = [replace(parse_lora(text), pinned=True) for text in pins]
    return (*map(parse_lora, loras), *pinned)


def parse_lora(text: str) -> Wanted:
    """`NAME`, `NAME=0.8` or `NAME=0.8:0.5` (UNet, text encoder); a path may stand for the name. Raises RequestError."""
    check_text("a LoRA", text, LONGEST_NAME)
    match = _STRENGTHS.fullmatch(text)
    if match is None or os.path.exists(expanded(text)):
        return Wanted(text)
    try:
        weight, colon, text_weight = match["weight"].partition(":")
        return Wanted(match["name"], float(weight), float(text_weight) if colon else None)
    except ValueError as error:
        raise RequestError(
            f"--lora {short(text)}: {shown(match['weight'])} is no strength; write NAME=0.8, or NAME=0.8:0.5 for "
            "another one in the text encoder"
        ) from error


def drafts_of(asked: Asked, base: Draft, example: Callable[[], str]) -> list[Draft]:
    """One draft for each picture: prompts x composers x seeds, laid over `base`, or over each request of the file.

    example: gives a prompt where none is said. Raises RequestError, and ComposerError for a method.
    """
    if asked.requests is not None:
        if asked.prompts:
            raise RequestError("give either --prompt or --requests, whose entries hold their own prompts")
        bases = [_seeded(asked.draft.over(entry), None) for entry in read_requests(asked.requests)]
        bases = [base if "prompt" in base.values else base.with_value("prompt", example()) for base in bases]
    else:
        prompts = asked.prompts or ([] if "prompt" in base.values else [example()])
        said = [asked.draft.with_value("prompt", prompt) for prompt in prompts] or [asked.draft]
        seed = random.randrange(SEEDS)
        bases = [_seeded(draft.over(base), seed) for draft in said]
    if asked.composers:
        methods = [parse_composer(text) for text in asked.composers]
        check_count(len(bases) * len(methods), "prompts x methods")
        bases = [base.with_value("composer", method) for base in bases for method in methods]
    total = len(bases) * check_count(asked.count, "--count")
    if total > MOST_PICTURES:
        raise RequestError(
            f"prompts x methods x --count come to {total} pictures, more than {MOST_PICTURES}; ask for fewer, or use "
            "lora-studio batch"
        )
    return [draft for base in bases for draft in _counted(base, asked.count)]


def _seeded(draft: Draft, shared: int | None) -> Draft:
    """The draft with a seed. shared: the seed where none is said; None draws one. It is drawn here, not later, so that
    file names can contain it."""
    if draft.seed is not None:
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
