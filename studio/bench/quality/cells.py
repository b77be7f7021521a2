"""The pictures of a comparison, as jobs of a batch: compositions x methods x seeds, and each element alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from composers import Merge, spell
from studio.batch.variants import literal
from studio.bench.quality.elements import Composition, Element
from studio.bench.quality.methods import Method
from studio.bench.quality.sets import Suite


@dataclass(frozen=True)
class QualityCell:
    """One picture."""

    composition: Composition
    method: Method
    seed: int


@dataclass(frozen=True)
class CellPlan:
    """What is drawn. prompt: replaces the compositions' trigger words."""

    suite: Suite
    compositions: tuple[Composition, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    prompt: str | None = None

    @property
    def cells(self) -> list[QualityCell]:
        """The compared pictures: every composition by every method that suits it, at every seed."""
        return [
            QualityCell(composition, method, seed)
            for composition in self.compositions
            for method in self.methods
            if method.suits(composition)
            for seed in self.seeds
        ]

    @property
    def singles(self) -> list[QualityCell]:
        """The pictures of every element alone, with its own words; identity is measured against these."""
        elements = dict.fromkeys(element for one in self.compositions for element in one.elements)
        return [single(element, seed) for element in elements for seed in self.seeds]

    def job(self, cell: QualityCell) -> dict[str, Any]:
        """The cell as a job of a batch. Its name is the same in every run, and unique."""
        composition, method = cell.composition, cell.method
        alone = composition.size == 1
        words = composition.words if self.prompt is None or alone else self.prompt
        members = composition.elements if method.first is None else composition.led_by(method.first)
        adapters = [
            {"adapter": element.adapter, "weight": element.weight * method.strength} for element in members
        ]
        fields: dict[str, Any] = {
            "prompt": literal(self.suite.prompt_of(words)),
            "adapters": [] if method.composer is None else adapters,
            "composer": spell(method.composer or Merge()),
            "seed": cell.seed,
        }
        digest = hashlib.sha256(json.dumps([fields, method.label]).encode()).hexdigest()[:12]
        return {**self.suite.settings, **fields, "name": f"{method.family}-{composition.size}-{digest}"}


def single(element: Element, seed: int) -> QualityCell:
    return QualityCell(Composition((element,)), Method(Merge()), seed)


def part_of(cells: Sequence[QualityCell], number: int, count: int) -> list[QualityCell]:
    """The cells of part `number`, counted from 1, of `count` parts."""
    return list(cells[number - 1 :: count])


def by_composition(cells: Iterable[QualityCell]) -> dict[Composition, list[QualityCell]]:
    found: dict[Composition, list[QualityCell]] = {}
    for cell in cells:
        found.setdefault(cell.composition, []).append(cell)
    return found
