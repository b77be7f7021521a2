"""Turns a job file into jobs, one for each picture, with seed, key and file name.

Nothing is loaded here and nothing is left to chance: the same file always gives the same jobs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composers.errors import StudioError
from composers.shown import shown
from pipelines.bounds import LONGEST_NAME, check_text
from pipelines.errors import RequestError, SetupError
from pipelines.home.files import check_name, slug
from pipelines.home.plain import short
from pipelines.request import SEEDS, Request
from studio.batch.jobfile import JOB_FIELDS, JobEntry, JobFile, check_names
from studio.batch.problems import Problems
from studio.batch.values import MOST_VALUES, alternatives, products
from studio.batch.variants import Template, Wildcards, draw, every, read_template, size
from studio.drafts.draft import Draft, check_count
from studio.drafts.entries import PICTURES, read_draft
from studio.drafts.fields import NAMES
from studio.drafts.input_images import read_input
from studio.pictures.files import is_spec

TEMPLATE = "{index:05d}_{name}_{seed}"
NAME_FIELDS = ("index", "name", "seed", "prompt", "composer", "model")
VARIANTS = ("random", "all")


@dataclass(frozen=True)
class PlannedPicture:
    """One picture of a batch.

    index: its place in the batch, from 1. key: hash of everything that decides the picture; the same in every run.
    fields: what the job says, with lists and choices resolved. where: for messages. file: relative to the batch's
    folder.
    """

    index: int
    key: str
    name: str
    where: str
    seed: int
    model: str
    file: Path
    draft: Draft
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Ground:
    """What applies to all jobs of a batch.

    model: for jobs that name none. overrides: fields that win over those in the file. template: of the files' names.
    vae: another VAE; it is part of the jobs' keys, since it changes the pictures.
    """

    model: str
    overrides: Mapping[str, Any]
    wildcards: Wildcards
    template: str = TEMPLATE
    vae: str | None = None


def plan(jobs: JobFile, ground: Ground, problems: Problems) -> list[PlannedPicture]:
    """All jobs in order. Mistakes go to `problems`; where there are some, the list is not complete.

    Raises SetupError for a template that cannot be used.
    """
    check_template(ground.template)
    check_names(jobs.defaults, problems)
    given = JobEntry(ground.overrides, "--set")
    check_names(given, problems)
    checked = _Checked(jobs.folder, ground.wildcards)
    planned: list[PlannedPicture] = []
    seen: Counter[str] = Counter()
    for entry in _countable(jobs, given, checked, problems):
        check_names(entry, problems)
        for fields in _expanded(entry, jobs.defaults, given, checked, problems):
            with problems.gathered(entry.where):
                planned.append(_job(len(planned) + 1, fields, entry.where, jobs.folder, ground, seen))
        if problems.full:
            break
    _refuse_same_names(planned, ground.template, problems)
    return planned


def _countable(jobs: JobFile, given: JobEntry, checked: _Checked, problems: Problems) -> list[JobEntry]:
    """The entries that do not stand for too many pictures; none where all together do. Every excess becomes a problem.
    Pictures are only counted here, not made."""
    found: list[JobEntry] = []
    total = 0
    for entry in jobs.entries:
        own = _count(_merged(entry, jobs.defaults, given), checked)
        if own > MOST_VALUES:
            problems.add(
                entry.where, f"its lists come to {shown(own)} pictures, more than {MOST_VALUES}; shorten them"
            )
            continue
        found.append(entry)
        total += own
        if total > MOST_VALUES:
            problems.add(entry.where, f"the batch comes to more than {MOST_VALUES} pictures; split the file")
            return []
    return found


def _merged(entry: JobEntry, defaults: JobEntry, given: JobEntry) -> dict[str, Any]:
    return {**defaults.fields, **entry.fields, **given.fields}


def _count(merged: Mapping[str, Any], checked: _Checked) -> int:
    """How many pictures an entry stands for. A faulty value counts as one; its fault is found later."""
    choices: dict[str, list[Any]] = {}
    for field, value in merged.items():
        if value is not None and field in JOB_FIELDS:
            with suppress(RequestError):
                choices[field] = alternatives(field, value)
    times = sum(n if isinstance(n, int) and n > 0 else 1 for n in choices.pop("count", [1]))
    prompts = choices.pop("prompt", [""])
    texts = 0
    for variants in choices.pop("variants", ["random"]):
        texts += sum(checked.variants(prompt) for prompt in prompts) if variants == "all" else len(prompts)
    return math.prod(map(len, choices.values())) * times * texts


# -- one entry -> the fields of its pictures ---------------------------------------------------------------


class _Checked:
    """Checks every value of every field by itself, and only once. So all mistakes are found, not only the first."""

    def __init__(self, folder: Path, wildcards: Wildcards) -> None:
        self._folder = folder
        self._wildcards = wildcards
        self._found: dict[tuple[str, str], StudioError | None] = {}
        self.templates: dict[str, Template] = {}

    def error(self, field: str, value: object) -> StudioError | None:
        key = (field, json.dumps(_spelled(value), default=repr))
        if key not in self._found:
            try:
                self._check(field, value)
                self._found[key] = None
            except StudioError as error:
                self._found[key] = error
        return self._found[key]

    def variants(self, prompt: object) -> int:
        """How many texts a prompt stands for; 1 for a faulty prompt."""
        if not isinstance(prompt, str):
            return 1
        try:
            return size(read_template(prompt, self._wildcards))[0]
        except StudioError:
            return 1

    def _check(self, field: str, value: object) -> None:
        """Raises StudioError for a faulty value. Request judges its own fields; the others are judged here."""
        if field in ("name", "model") and not (isinstance(value, str) and value.strip()):
            raise RequestError(f"{field}={shown(value)} must be text")
        if field in ("name", "model"):
            check_text(field, value, LONGEST_NAME)
        if field == "count":
            check_count(value, most=MOST_VALUES)
        if field == "variants" and value not in VARIANTS:
            raise RequestError(f"variants={shown(value)} must be {' or '.join(VARIANTS)}")
        if field not in NAMES:
            return
        if field in PICTURES and not isinstance(value, str):
            raise RequestError(f"{field}={shown(value)} must be a path, counted from the job file")
        if field == "prompt" and isinstance(value, str):
            self.templates[value] = template = read_template(value, self._wildcards)
            if not all(isinstance(part, str) for part in template):
                return  # its tags may hold choices; what is drawn is judged with its picture
        draft = self._draft(field, value)
        for name, source in draft.images.items():
            read_input(name, source)
        Request(**{"prompt": "", **draft.values})

    def _draft(self, field: str, value: object) -> Draft:
        try:
            return read_draft({field: value}, field, self._folder)
        except StudioError as error:
            said = str(error).removeprefix(f"{field}: ")
            raise type(error)(said if said.startswith(field) else str(error)) from error


def _expanded(
    entry: JobEntry, defaults: JobEntry, given: JobEntry, checked: _Checked, problems: Problems
) -> Iterator[dict[str, Any]]:
    """The fields of each picture of one entry; seeds are added later where none is given."""
    merged = _merged(entry, defaults, given)
    choices: dict[str, list[Any]] = {}
    before = problems.count
    for field, value in merged.items():
        source = next(e for e in (given, entry, defaults) if field in e.fields)
        if value is None or field not in JOB_FIELDS:  # `check_names` has reported unknown fields
            continue
        with problems.gathered(source.at(field)):
            choices[field] = alternatives(field, value)
        for one in choices.get(field, ()):
            if error := checked.error(field, one):
                problems.add(source.at(field), error)
    if "prompt" not in merged:
        problems.add(entry.where, "it says no prompt; give it one, or the defaults")
    if problems.count > before or problems.full or "prompt" not in choices:
        return
    for fields in products(choices):
        yield from _pictures(fields, checked.templates[fields["prompt"]])


def _pictures(fields: dict[str, Any], template: Template) -> Iterator[dict[str, Any]]:
    """Resolves `count` and `variants`. Without `variants: all`, the prompt stays a template, which its seed will
    resolve."""
    count = fields.pop("count", 1)
    prompts: list[Any] = [template]
    if fields.pop("variants", "random") == "all":
        prompts = list(every(template))
    for prompt in prompts:
        for place in range(count):
            one = {**fields, "prompt": prompt}
            if one.get("seed") is not None:
                one["seed"] += place
            else:
                one.pop("seed", None)
                one |= {"place": place} if place else {}
            yield one


# -- one picture -> its job ----------------------------------------------------------------------------------


def _job(
    index: int, fields: dict[str, Any], where: str, folder: Path, ground: Ground, seen: Counter[str]
) -> PlannedPicture:
    model = fields.pop("model", ground.model)
    name = fields.pop("name", None)
    template = fields["prompt"]
    if "seed" not in fields:
        fields["seed"] = _seed(fields, model, seen)
    fields.pop("place", None)
    if not isinstance(template, str):
        fields["prompt"] = draw(template, fields["seed"])
    draft = read_draft(fields, where, folder)
    key = _hash({**fields, "model": model, **({"vae": ground.vae} if ground.vae else {})})
    seen[key] += 1
    if seen[key] > 1:
        key = f"{key}-{seen[key]}"
    prompt = draft.values["prompt"]
    composer = draft.values["composer"].name if "composer" in draft.values else "merge"
    stem = _filled(
        ground.template,
        index=index,
        name=slug(name or prompt)[:40],
        seed=fields["seed"],
        prompt=slug(prompt),
        composer=composer,
        model=slug(Path(model).name),
    )
    file = Path(stem if stem.lower().endswith(".png") else f"{stem}.png")
    return PlannedPicture(index, key, name or prompt, where, fields["seed"], model, file, draft, fields)


def _seed(fields: Mapping[str, Any], model: str, seen: Counter[str]) -> int:
    """A seed that follows from what the job says. Equal jobs get different seeds; each gets the same one in every
    run."""
    place = int(fields.get("place", 0))
    base = _hash({**fields, "model": model, "place": 0})
    seen[f"seed {base}"] += 0 if place else 1
    return (int(_hash({"job": base, "turn": seen[f"seed {base}"]}), 16) + place) % SEEDS


def _hash(fields: Mapping[str, Any]) -> str:
    text = json.dumps(_canonical(fields), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _spelled(value: Any) -> Any:
    """The value with keys and numbers that JSON can hold; those of different types stay different."""
    if isinstance(value, Mapping):
        return {f"{type(key).__name__} {_spelled(key)}": _spelled(item) for key, item in value.items()}
    if (
        isinstance(value, int) and value.bit_length() > 10_000
    ):  # Python writes no number of some thousand digits
        return hex(value)
    return [_spelled(item) for item in value] if isinstance(value, list | tuple) else value


def _canonical(value: Any) -> Any:
    """The value in a form in which 5 and 5.0 are equal."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# -- names ---------------------------------------------------------------------------------------------------


def check_template(template: str) -> None:
    """Raises SetupError for a template with unknown fields, or one whose names lead out of the folder."""
    if len(template) > LONGEST_NAME:
        raise SetupError(f"--name {short(template)}: no name is that long; write a shorter one")
    try:
        for _, name, spec, _ in string.Formatter().parse(template):
            if name is not None and name not in NAME_FIELDS:
                raise SetupError(
                    f"--name {short(template)}: no field {{{short(name)}}}; fields are {', '.join(NAME_FIELDS)}"
                )
            if spec and not is_spec(spec):
                raise SetupError(f"--name {short(template)}: no name is that long; write a shorter one")
        sample = _filled(template, index=1, name="a", seed=1, prompt="a", composer="a", model="a")
    except (ValueError, IndexError, KeyError) as error:
        raise SetupError(
            f"--name {short(template)}: {short(error)}; write a brace that is no field twice"
        ) from error
    path = Path(sample)
    try:
        for part in (*path.parts[:-1], f"{path.name}.png"):
            check_name(Path(part))
    except OSError as error:
        raise SetupError(f"--name {short(template)}: {error.strerror}; write another one") from error
    if path.is_absolute() or ".." in path.parts or not re.search(r"\w", path.name):
        raise SetupError(f"--name {short(template)}: it must name files inside the batch's folder")


def _filled(
    template: str, *, index: int, name: str, seed: int, prompt: str, composer: str, model: str
) -> str:
    return template.format(index=index, name=name, seed=seed, prompt=prompt, composer=composer, model=model)


def _refuse_same_names(jobs: list[PlannedPicture], template: str, problems: Problems) -> None:
    counts = Counter(str(job.file).casefold() for job in jobs)
    name, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        problems.add(
            "", f"--name {short(template)} gives {count} pictures the name {shown(name)}; add {{index}}"
        )
