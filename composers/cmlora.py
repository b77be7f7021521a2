"""CMLoRA: every adapter predicts alone, one dominates in turn, and most lanes reuse remembered features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Literal

from composers.errors import ComposerError
from composers.plan import Composer, Mix, Plan, Step, Use, guided, knob

RELEASE_PARTITION = 120
"""The released code's partition point: a step, whatever the run's length."""


@dataclass(frozen=True)
class CMLoRA(Composer):
    """Cached multi-LoRA (Zou et al. 2025, arXiv 2502.04923).

    The equations are those of the released code (Yqcca/CMLoRA, 5e79e41), repaired; the paper's own were not at
    hand. High-band adapters stand first, in mix order, then the low ones. With R refresh steps so far
    (this one included), N adapters and n of them high (all, where none is), the dominant one is

        (R - 1) mod n  before step round(partition * T),   (R - 1) mod N  from there on;

    the dominant lane has the share c / (c + N - 1), each other one 1 / (c + N - 1), with c = N - 1/2. `decay` lowers
    c to max(1, N - 1/2 - sum of 0.5^j over j < m) after m changes of the dominant.

    interval 0 refreshes every 2nd, 3rd, 2nd step, with breaks at 0.375 T and 0.875 T; an interval c every c-th. At
    interval 1 every lane is evaluated in full at every step. At the first step all lanes are; later, in full are
        dominant_only        the dominant, at refresh steps
        dominant_every_step  the dominant, at all steps
        every_step_in_turn   the dominant, at all steps, every one of which passes the turn (R counts steps)
        all                  every lane, at refresh steps
        uncached             every lane, at all steps: the method without its caching
    and any lane whose features have outlived a whole round of turns at the schedule's widest spacing. The default is
    the cheapest of these whose latents are no further from the uncached method's than Composite's are, as measured
    on the embedded model (BENCHMARKS.md).

    compat "release" repeats the released code with its faults: interval 0 never caches; the partition is step 120;
    after it the first adapter never dominates again, where there is a low one; then nothing is refreshed at all, and
    the low adapters' features are those of the first step; decay does nothing. "release_online" is the variant that
    asks a frequency metric where to partition: at 512 x 512 that is not a number, so that the late phase
    begins at step 1. Steps are solver steps, where the release counts UNet calls: the same for all one-call solvers.
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
            raise ComposerError(f"{self.name}: decay={self.decay!r} must be true or false")

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
        """The dominant adapter of every step, as its place among the adapters, the `high` high-band ones first."""
        late = {"none": round(count * self.partition), "release": RELEASE_PARTITION + 1, "release_online": 1}
        return _turns(self._turn_interval, late[self.compat], self._is_release, adapters, high, count)

    def _shares(self, turns: tuple[int, ...], adapters: int) -> tuple[float, float]:
        """The share of the dominant lane and of each other one, after these turns."""
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
    """High band first, then low, each in mix order; a band that nobody gave is high."""
    return tuple(sorted(uses, key=lambda use: use.band == "low"))


@lru_cache(maxsize=64)
def _refresh_steps(interval: int, count: int) -> frozenset[int]:
    if interval:
        return frozenset(range(0, count, interval))
    first, second = int(0.375 * count), int(0.875 * count)
    return frozenset((*range(0, first, 2), *range(first, second, 3), *range(second, count, 2)))


@lru_cache(maxsize=64)
def _turns(interval: int, late: int, plus_one: bool, adapters: int, high: int, count: int) -> tuple[int, ...]:
    """The dominant of every step; from step `late` on the low band has turns. `plus_one`: the released code's
    late phase, (R - 1) mod n + 1, in which the first adapter has none."""
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
