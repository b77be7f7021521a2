"""CMLoRA: every adapter predicts alone, they take turns to dominate, and most lanes run on remembered features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Literal

from composers.errors import ComposerError
from composers.plan import Composer, Mix, Plan, Step, Use, guided, knob
from composers.shown import shown

RELEASE_PARTITION = 120
"""The last step of the early phase in the released code, however long the run is."""


@dataclass(frozen=True)
class CMLoRA(Composer):
    """Cached multi-LoRA (Zou et al. 2025, arXiv 2502.04923).

    The equations are those of the released code (Yqcca/CMLoRA, 5e79e41) with its faults mended. The paper's own
    equations were not at hand.

    Of N adapters, the n of the high band come first, in mix order, then those of the low band. An adapter without a
    band counts as high. Where all are low, n = N. T is the number of steps; R is the number of refresh steps so far,
    this one included.

    Turns. The dominant adapter, counted from 0, is

        (R - 1) mod n  before step round(partition * T),   (R - 1) mod N  from that step on.

    Shares. The dominant lane has the share c / (c + N - 1), every other lane 1 / (c + N - 1), with c = N - 1/2. With
    `decay`, c is max(1, N - 1/2 - sum of 0.5^j over j < m) once the dominant adapter has changed m times.

    Refresh steps. At interval c they are every c-th step. At interval 0 they are every 2nd step before 0.375 T, every
    3rd step before 0.875 T, and every 2nd step after that. The first step is one in any case.

    Caching. At the first step, and at interval 1, every lane is evaluated in full. Otherwise `refresh` says which
    lanes are, and the other lanes may run on remembered features:
        dominant_only        the dominant lane, at refresh steps
        dominant_every_step  the dominant lane, at every step
        every_step_in_turn   the dominant lane, at every step; the turn passes at every step too (R counts steps)
        all                  every lane, at refresh steps
        uncached             every lane, at every step: the method without its caching
    Features expire after N times the interval (3 N steps at interval 0, N steps with every_step_in_turn), the longest
    that a whole round of turns takes. The default is the cheapest choice whose latents are no further from the
    uncached method's than Composite's are, as measured on the embedded model (BENCHMARKS.md).

    compat "release" repeats the released code with its faults:
        - interval 0 never caches;
        - the late phase begins after step 120, whatever T is;
        - in the late phase of a mix with a low adapter, the first adapter never dominates, and nothing is refreshed;
        - so the low adapters run on the features of the first step;
        - decay does nothing.
    "release_online" is the variant that finds the partition with a frequency metric. At 512 x 512 this metric is not
    a number, so the late phase begins at step 1. Steps are solver steps here and UNet calls in the release; for
    solvers that make one call a step these are the same.
    """

    name: ClassVar[str] = "cmlora"
    summary: ClassVar[str] = (
        "Every adapter predicts alone, one dominates in turn; most passes run only the UNet's outer blocks."
    )
    fewest: ClassVar[int] = 1
    by_band: ClassVar[bool] = True
    plans_reuse: ClassVar[bool] = True

    refresh: Literal["dominant_only", "dominant_every_step", "every_step_in_turn", "all", "uncached"] = knob(
        "dominant_every_step",
        "Refresh",
        "Which lanes are evaluated in full, rather than on remembered features.",
        choices=("dominant_only", "dominant_every_step", "every_step_in_turn", "all", "uncached"),
    )
    interval: int = knob(
        0,
        "Refresh interval",
        "Steps between refreshes; 0 is every 2nd, 3rd, 2nd step over the run, 1 caches nothing.",
        unit="steps",
        low=0,
        high=1000,
    )
    partition: float = knob(
        120 / 220,
        "Partition",
        "Fraction of the steps after which the low band joins the turns.",
        low=0,
        high=1,
    )
    decay: bool = knob(False, "Decay", "Let the dominant adapter's share fall with every change of turn.")
    compat: Literal["none", "release", "release_online"] = knob(
        "none",
        "Compatibility",
        "Repeat the released code, faults included.",
        choices=("none", "release", "release_online"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.decay, bool):
            raise ComposerError(f"{self.name}: decay={shown(self.decay)} must be true or false")

    def resolved(self, mix: Mix, count: int) -> CMLoRA:
        super().resolved(mix, count)
        if self.compat != "none" and len(mix) > 1 and all(use.band == "low" for use in mix.uses):
            raise ComposerError(
                f"{self.name}: the released code has no turn for low-band adapters alone; give one of "
                f"{', '.join(use.adapter for use in mix.uses)} the high band, or set compat=none"
            )
        return self

    def plan(self, step: Step, mix: Mix) -> Plan:
        uses = _by_band(mix.uses)
        high = sum(use.band != "low" for use in uses) or len(uses)
        turns = self.turns(len(uses), high, step.count)
        dominant = turns[step.index]
        shares = self._shares(turns[: step.index + 1], len(uses))
        fresh = self._fresh(step, dominant, len(uses), high)
        lanes = [
            mix.lane([use], shares[place != dominant], fresh=fresh[place]) for place, use in enumerate(uses)
        ]
        return replace(guided(lanes, step), max_age=self._max_age(len(uses), step.count))

    def turns(self, adapters: int, high: int, count: int) -> tuple[int, ...]:
        """The dominant adapter of each of `count` steps, as a number from 0 to `adapters` - 1.

        The high-band adapters have the numbers below `high`.
        """
        late = {"none": round(count * self.partition), "release": RELEASE_PARTITION + 1, "release_online": 1}
        return _turns(self._turn_interval, late[self.compat], self._is_release, adapters, high, count)

    def _shares(self, turns: tuple[int, ...], adapters: int) -> tuple[float, float]:
        """(share of the dominant lane, share of each other lane) at the last of these turns."""
        weight = adapters - 0.5
        if self.decay and self.compat == "none":
            changes = sum(a != b for a, b in pairwise(turns))
            weight -= 2 - 2 ** (1 - changes)  # sum of 0.5^j over j < changes
        weight = max(weight, 1.0)
        total = weight + adapters - 1
        return weight / total, 1 / total

    def _fresh(self, step: Step, dominant: int, adapters: int, high: int) -> list[bool]:
        everyone, nobody = [True] * adapters, [False] * adapters
        if self.interval == 1 or self.refresh == "uncached" or (self._is_release and not self.interval):
            return everyone
        refreshes = step.index in _refresh_steps(self.interval, step.count)
        leads = [place == dominant for place in range(adapters)]
        if self._is_release:
            early = step.index <= RELEASE_PARTITION if self.compat == "release" else step.index == 0
            return leads if refreshes and (early or high == adapters) else nobody
        if self.refresh == "all":
            return everyone if refreshes else nobody
        return leads if refreshes or self.refresh != "dominant_only" else nobody

    def _max_age(self, adapters: int, count: int) -> int:
        return count if self._is_release else (self._turn_interval or 3) * adapters

    @property
    def _turn_interval(self) -> int:
        every_step = self.refresh == "every_step_in_turn" and not self._is_release
        return 1 if every_step else self.interval

    @property
    def _is_release(self) -> bool:
        return self.compat != "none"


def _by_band(uses: tuple[Use, ...]) -> tuple[Use, ...]:
    """The high-band uses, then the low-band ones, each in mix order. A use without a band counts as high."""
    return tuple(sorted(uses, key=lambda use: use.band == "low"))


@lru_cache(maxsize=64)
def _refresh_steps(interval: int, count: int) -> frozenset[int]:
    if interval:
        return frozenset(range(0, count, interval))
    first, second = int(0.375 * count), int(0.875 * count)
    return frozenset((*range(0, first, 2), *range(first, second, 3), *range(second, count, 2)))


@lru_cache(maxsize=64)
def _turns(interval: int, late: int, plus_one: bool, adapters: int, high: int, count: int) -> tuple[int, ...]:
    """The dominant adapter of every step. The low band has turns from step `late` on.

    plus_one: compute the late phase as the released code does, (R - 1) mod n + 1, so that adapter 0 gets no turn.
    """
    refreshes = _refresh_steps(interval, count)
    found: list[int] = []
    passed = -1  # R - 1
    for index in range(count):
        passed += index in refreshes
        if index < late or high == adapters:
            found.append(passed % high)
        else:
            found.append(passed % high + 1 if plus_one else passed % adapters)
    return tuple(found)
