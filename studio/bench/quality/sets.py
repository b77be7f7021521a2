"""Test sets: what to compose, from the adapters' own notes or from a YAML file.

name: my five
model: my-checkpoint
prompt: masterpiece, best quality        # stands before the trigger words
weight: 0.8                              # of every adapter
steps: 30                                # and guidance_scale, width, height, scheduler, negative_prompt, vae
elements:
  character:
    - {name: Hero, adapter: hero_v2, words: [hero, red cape]}
  style:
    - {adapter: ink, weight: 0.6}        # name and words: as the file says of itself
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines import assets
from pipelines.adapters import inspect_file
from pipelines.adapters.inspection import Inspection
from pipelines.errors import AdapterError, RequestError, SetupError
from pipelines.home import Entry, Home
from pipelines.home.files import is_regular
from pipelines.home.paths import expanded
from studio.batch.problems import nearest
from studio.bench.quality.elements import BLORA, CATEGORIES, MIXED, Composition, Element, compositions, spread
from studio.library.fit import fit_of

SETTINGS = ("steps", "guidance_scale", "width", "height", "scheduler", "negative_prompt", "clip_skip")
"""Fields of a job that a set may give."""
FIELDS = ("name", "model", "vae", "prompt", "weight", "elements", *SETTINGS)
ELEMENT_FIELDS = ("name", "adapter", "words", "weight", "kind")


@dataclass(frozen=True)
class Suite:
    """A test set.

    prompt: the text before the trigger words. model, vae: None leaves the choice to the user.
    settings: job fields of every picture.
    """

    name: str
    elements: tuple[Element, ...]
    prompt: str = ""
    model: str | None = None
    vae: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(element.kind for element in self.elements))

    def compositions(self, sizes: Sequence[int], most: int | None = None) -> list[Composition]:
        """The compositions of these sizes, kind after kind. most: of each size and kind, evenly spaced."""
        found: list[Composition] = []
        for size in sizes:
            by_kind: dict[str, list[Composition]] = {}
            for composition in compositions(self.elements, size):
                by_kind.setdefault(composition.kind, []).append(composition)
            for kind, own in by_kind.items():
                if kind == MIXED:  # without B-LoRAs, which are made for one another
                    own = [one for one in own if all(element.kind != BLORA for element in one.elements)]
                found += spread(own, most)
        return found

    def prompt_of(self, words: str) -> str:
        return ", ".join(filter(None, (self.prompt, words)))


def library_suite(home: Home, model: str, only: Sequence[str] = ()) -> Suite:
    """A set of all adapters in the library that fit the model and have a category of the protocol.

    only: names or paths to use instead, whatever their category. Raises RequestError if there are fewer than two.
    """
    if only:
        entries = [home.find_lora(name, model) for name in only]
        elements = [element_of(entry, inspect_file(entry.path)) for entry in entries]
    else:
        elements = _fitting(home, model)
    if len(elements) < 2:
        wanted = ", ".join(CATEGORIES)
        raise RequestError(
            f"{len(elements)} LoRAs that fit {model} have a category ({wanted}); two are needed. Write "
            '"category" into NAME.json beside the file, or describe the set in a YAML file for --set'
        )
    return Suite(f"the LoRAs of {model}", tuple(sorted(elements, key=_order)), model=model)


def _fitting(home: Home, model: str) -> list[Element]:
    fit = fit_of(model, home)
    found = []
    for entry in home.loras():
        try:
            seen = inspect_file(entry.path)
        except AdapterError:  # broken files are left out; `loras` lists them
            continue
        if not seen.refused and fit.takes(entry, seen) and _category(seen) in CATEGORIES:
            found.append(element_of(entry, seen))
    return found


def _order(element: Element) -> tuple[int, str]:
    known = element.category in CATEGORIES
    return (CATEGORIES.index(element.category) if known else len(CATEGORIES), element.category)


def _category(seen: Inspection) -> str:
    """The category in the note beside the file, if it is one of the protocol's; else the one that the file states."""
    noted = seen.sidecars.user.get("category")
    return noted if isinstance(noted, str) and noted in CATEGORIES else seen.metadata.category


def element_of(entry: Entry, seen: Inspection) -> Element:
    """The element, as the file and the notes beside it describe it."""
    about = seen.metadata
    words = ", ".join(about.triggers) if about.trigger_source != "tag frequency" else about.triggers[0]
    kind = seen.sidecars.user.get("kind")
    return Element(
        name=entry.name,
        adapter=entry.name,
        category=_category(seen) or entry.name,  # without a category, it may be combined with all others
        words=words or entry.name.replace("-", " ").replace("_", " "),
        weight=about.preferred_weight or 1.0,
        kind=kind if isinstance(kind, str) else "",
    )


def set_file(name: str) -> Path:
    """The file of a set, given by path or by the name of an included set. Raises SetupError."""
    path = expanded(name)
    shipped = {file.stem: file for file in sorted((assets.root() / "testbed" / "sets").glob("*.yaml"))}
    if is_regular(path):
        return path
    if name in shipped:
        return shipped[name]
    raise SetupError(
        f"--set {name}: there is no such file, and no shipped set of that name; {nearest(name, [*shipped])}"
    )


def read_suite(file: Path, home: Home, model: str | None = None) -> Suite:
    """The set in a YAML file. Raises SetupError, and RequestError that names the place."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SetupError(f"{file} cannot be read as YAML ({error}); check indentation and quotes") from error
    if not isinstance(content, dict) or not isinstance(content.get("elements"), dict):
        raise RequestError(
            f"{file.name}: it must say elements:, category by category (see `studio.bench.quality.sets`)"
        )
    for name in content:
        if name not in FIELDS:
            raise RequestError(f"{file.name}: unknown field {name!r}; {nearest(str(name), FIELDS)}")
    weight = _number(content.get("weight", 1.0), f"{file.name}: weight")
    model = model or content.get("model")
    elements = [
        _element(entry, str(category), weight, home, model, f"{file.name}, {category} {number}")
        for category, entries in content["elements"].items()
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries], 1)
    ]
    return Suite(
        name=str(content.get("name", file.stem)),
        elements=tuple(elements),
        prompt=str(content.get("prompt", "")),
        model=content.get("model"),
        vae=content.get("vae"),
        settings={name: content[name] for name in SETTINGS if name in content},
    )


def _element(
    entry: object, category: str, weight: float, home: Home, model: str | None, where: str
) -> Element:
    if not isinstance(entry, dict) or not isinstance(entry.get("adapter"), str):
        raise RequestError(
            f"{where}: an element must name its adapter, as in {{adapter: hero_v2, words: [hero]}}"
        )
    for name in entry:
        if name not in ELEMENT_FIELDS:
            raise RequestError(f"{where}: unknown field {name!r}; {nearest(str(name), ELEMENT_FIELDS)}")
    adapter, words = entry["adapter"], entry.get("words")
    if words is None:  # those that the file states
        found = home.find_lora(adapter, model)
        words = element_of(found, inspect_file(found.path)).words
    return Element(
        name=str(entry.get("name", adapter)),
        adapter=adapter,
        category=category,
        words=", ".join(map(str, words)) if isinstance(words, list) else str(words),
        weight=_number(entry.get("weight", weight), f"{where}: weight"),
        kind=str(entry.get("kind", "")),
    )


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{where} is {value!r}; it must be a number")
    return float(value)
