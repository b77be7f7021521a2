"""Means and differences from the baseline, with standard errors and intervals.

Pictures of one composition are alike, so compositions are the sample, not pictures. Standard errors are those of the
compositions' means; intervals are percentiles of a bootstrap over compositions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from studio.bench.quality.elements import Composition
from studio.bench.quality.measures import Scored

DRAWS = 2000
TIE = {"presence": 0.0, "complete": 0.0, "clip": 0.25, "fidelity": 0.0025, "identity": 0.0025}
"""Differences up to this count as a tie."""
Pair = tuple[Composition, int]


@dataclass(frozen=True)
class Mean:
    """A mean over compositions. error: its standard error; None for a single composition. pictures: their number."""

    value: float
    error: float | None
    pictures: int


@dataclass(frozen=True)
class Against:
    """The comparison of a method with the baseline, on the same compositions and seeds.

    difference: mean, and the bounds of its 95 % interval. wins, ties, losses: shares of the pictures.
    net: wins - losses with the bounds of its 95 % interval.
    """

    difference: tuple[float, float, float]
    wins: float
    ties: float
    losses: float
    net: tuple[float, float, float]
    pictures: int

    @property
    def verdict(self) -> str:
        """ "better" or "worse" than the baseline; "" if the interval contains 0."""
        _, low, high = self.difference
        return "better" if low > 0 else "worse" if high < 0 else ""


def value_of(row: Scored, name: str) -> float | None:
    found = getattr(row.scores, name)
    return None if found is None else float(found)


def mean(rows: Sequence[Scored], name: str) -> Mean | None:
    """The mean of a score; None if no row has the score."""
    groups = _grouped({(row.composition, row.seed): value_of(row, name) for row in rows})
    if not groups:
        return None
    means = np.array([np.mean(values) for values in groups.values()])
    error = float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else None
    return Mean(float(means.mean()), error, sum(map(len, groups.values())))


def against(
    rows: Sequence[Scored], baseline: Sequence[Scored], name: str, *, seed: int = 0
) -> Against | None:
    """Compares rows with those of the baseline with the same composition and seed; None if there is no such pair."""
    base = {(row.composition, row.seed): value_of(row, name) for row in baseline}
    pairs: dict[Pair, float | None] = {}
    for row in rows:
        other, own = base.get((row.composition, row.seed)), value_of(row, name)
        pairs[row.composition, row.seed] = None if other is None or own is None else own - other
    groups = _grouped(pairs)
    if not groups:
        return None
    tie = TIE.get(name, 0.0) + 1e-9
    differences = [np.array(values) for values in groups.values()]
    signs = [np.sign(values) * (np.abs(values) > tie) for values in differences]
    every = np.concatenate(signs)
    return Against(
        difference=_interval(differences, seed),
        wins=float((every > 0).mean()),
        ties=float((every == 0).mean()),
        losses=float((every < 0).mean()),
        net=_interval(signs, seed),
        pictures=len(every),
    )


def _grouped(values: Mapping[Pair, float | None]) -> dict[Composition, list[float]]:
    groups: dict[Composition, list[float]] = {}
    for (composition, _), value in values.items():
        if value is not None:
            groups.setdefault(composition, []).append(value)
    return groups


def _interval(groups: Sequence[NDArray[np.float64]], seed: int) -> tuple[float, float, float]:
    """The mean of the groups' means, and the bounds of its 95 % percentile interval.

    If there is only one group, its members are resampled instead.
    """
    means = np.array([values.mean() for values in groups]) if len(groups) > 1 else groups[0]
    drawn = np.random.default_rng(seed).integers(0, len(means), (DRAWS, len(means)))
    low, high = np.percentile(means[drawn].mean(1), [2.5, 97.5])
    return float(means.mean()), float(low), float(high)
