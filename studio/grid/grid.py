"""A grid: axes over one job. Its cells are the jobs of a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composers.shown import shown
from pipelines.errors import RequestError
from studio.batch.manifest import PictureOutcome
from studio.batch.variants import literal
from studio.grid.axes import MOST_CELLS, Axis

ONE = Axis("", (("", lambda fields: fields),))
"""Stands for a missing axis: one cell, which changes nothing."""


@dataclass(frozen=True)
class Cell:
    """One picture of a grid. place: (column, row, sheet), from 0. file: None where it failed, for `error`."""

    place: tuple[int, int, int]
    labels: tuple[str, ...]
    file: Path | None
    record: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Grid:
    """Columns, rows and sheets over one job."""

    title: str
    x: Axis
    y: Axis
    z: Axis
    fields: Mapping[str, Any]

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """Every cell's place, sheet by sheet, row by row."""
        sides = (range(len(self.z.cells)), range(len(self.y.cells)), range(len(self.x.cells)))
        return [(x, y, z) for z, y, x in itertools.product(*sides)]

    def labels(self, place: tuple[int, int, int]) -> tuple[str, ...]:
        """The labels of a cell, such as "seed 1" and "method switch"."""
        axes = zip((self.x, self.y, self.z), place, strict=True)
        return tuple(f"{axis.name} {axis.cells[at][0]}" for axis, at in axes if axis.name)

    def jobs(self) -> list[dict[str, Any]]:
        """The cells as jobs, in the order of `places`. Raises RequestError for a change that cannot be made."""
        count = math.prod(len(axis.cells) for axis in (self.x, self.y, self.z))
        if count > MOST_CELLS:
            raise RequestError(f"the grid has {count} cells, more than {MOST_CELLS}; shorten an axis")
        jobs = []
        for place in self.places:
            fields: Mapping[str, Any] = self.fields
            # strengths last: they need the LoRAs that other axes add
            for axis, at in sorted(zip((self.x, self.y, self.z), place, strict=True), key=_needs_loras):
                fields = axis.cells[at][1](fields)
            jobs.append({**fields, "prompt": literal(fields["prompt"]), "name": " ".join(self.labels(place))})
        return jobs

    def cells(self, outcomes: Iterable[PictureOutcome]) -> list[Cell]:
        """What has become of the cells, in the order of `places`. outcomes: of the jobs, in any order; each has its
        job's index, from 1."""
        by_index = {outcome.job.index: outcome for outcome in outcomes}
        cells = []
        for number, place in enumerate(self.places, 1):
            outcome = by_index.get(number)
            if outcome is None:
                cells.append(Cell(place, self.labels(place), None, {}, "not rendered"))
            else:
                record = outcome.record or {}
                cells.append(Cell(place, self.labels(place), outcome.file, record, outcome.error))
        return cells


def _needs_loras(pair: tuple[Axis, int]) -> bool:
    return pair[0].name.startswith("weight")


def make_grid(fields: Mapping[str, Any], axes: Sequence[Axis | None], title: str | None) -> Grid:
    """The grid of these axes. fields: of the job that all cells share. title: None is the prompt. Raises RequestError
    where no axis is given, or one is given twice."""
    x, y, z = (axis or ONE for axis in axes)
    named = [axis.name for axis in (x, y, z) if axis.name]
    if not named:
        raise RequestError("give the grid an axis, as in --x seed=1-4")
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"two axes are {shown(twice)}; give each another one")
    return Grid(title if title is not None else str(fields["prompt"]), x, y, z, fields)
