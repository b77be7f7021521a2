"""Deep-feature reuse: between two full evaluations, a lane may run the UNet's outer blocks alone.

Features deep inside the UNet change slowly over the steps (DeepCache, Ma et al. 2023, arXiv 2312.00858). A full pass
leaves them behind, and a shallow pass reads them as they were; `pipelines.families.unet` runs both. `schedule` says
before the first step, from the plans alone, how each lane runs at every step. So the memory is known when a picture is
admitted, nothing is ever evicted, and no picture depends on its neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composers.plan import Lane, Plan

Memory = tuple[object, ...]
"""`Lane.memory`, the key under which a lane's features are remembered."""
MOST_MOVED = 0.1
"""Features stay usable while no strength has changed by more than this fraction since they were made."""


# -- which lane runs how ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """How one step's lanes run.

    shallow: for each lane of the plan, whether it runs on remembered features.
    kept: the keys of the features that a later step reads.
    """

    shallow: tuple[bool, ...]
    kept: frozenset[Memory]


def passes_of(plans: Sequence[Plan], *, remembering: bool) -> tuple[Passes, ...]:
    """One `Passes` for each step. remembering: whether the run remembers features at all."""
    return schedule(plans) if remembering else all_full(plans)


def all_full(plans: Sequence[Plan]) -> tuple[Passes, ...]:
    """One `Passes` for each step of a run that remembers nothing."""
    return tuple(Passes((False,) * len(plan.lanes), frozenset()) for plan in plans)


def schedule(plans: Sequence[Plan]) -> tuple[Passes, ...]:
    """One `Passes` for each step of a run that remembers features.

    A lane runs shallow if it need not be fresh, no other lane of its step shares its key, and its features are
    remembered, are at most `Plan.max_age` steps old, and were made at nearly the same strengths (`MOST_MOVED`).
    """
    shallow = tuple(_shallow(plans))
    kept: list[frozenset[Memory]] = []
    wanted: set[Memory] = set()
    for plan, flags in zip(reversed(plans), reversed(shallow), strict=True):
        kept.append(frozenset(wanted))
        for lane, on_memory in zip(plan.lanes, flags, strict=True):
            (wanted.add if on_memory else wanted.discard)(lane.memory)
    return tuple(Passes(flags, alive) for flags, alive in zip(shallow, reversed(kept), strict=True))


def most_kept(passes: Sequence[Passes]) -> int:
    """The largest number of lanes whose features are remembered at one time."""
    before: frozenset[Memory] = frozenset()
    most = 0
    for step in passes:
        most = max(most, len(before | step.kept))
        before = step.kept
    return most


def _shallow(plans: Sequence[Plan]) -> Iterator[tuple[bool, ...]]:
    remembered: dict[Memory, tuple[int, tuple[float, ...]]] = {}
    for index, plan in enumerate(plans):
        times = Counter(lane.memory for lane in plan.lanes)
        flags = []
        for lane in plan.lanes:
            born, strengths = remembered.get(lane.memory, (None, ()))
            on_memory = (
                not lane.fresh
                and born is not None
                and index - born <= plan.max_age
                and _near(strengths, _strengths(lane))
                and times[lane.memory] == 1  # two lanes that differ in strength alone would share one memory
            )
            if not on_memory:
                remembered[lane.memory] = index, _strengths(lane)
            flags.append(on_memory)
        yield tuple(flags)


def _strengths(lane: Lane) -> tuple[float, ...]:
    return tuple(value for use in lane.uses for value in (use.weight, *(factor for _, factor in use.blocks)))


def _near(then: tuple[float, ...], now: tuple[float, ...]) -> bool:
    return all(abs(b - a) <= MOST_MOVED * abs(a) + 1e-9 for a, b in zip(then, now, strict=True))


# -- what is remembered ----------------------------------------------------------------------------------


class Features:
    """One trajectory's remembered features, each [channels, h, w] in the UNet's dtype.

    on_host: they are kept in the host's memory and copied to the device for each use.
    """

    def __init__(self, *, on_host: bool = False) -> None:
        self.on_host = on_host
        self._kept: dict[Memory, Tensor] = {}

    def put(self, memory: Memory, feature: Tensor) -> None:
        # Always a copy: a slice would keep the whole batch's tensor alive.
        self._kept[memory] = (
            feature.cpu() if self.on_host and feature.device.type != "cpu" else feature.clone()
        )

    def get(self, memory: Memory, device: torch.device) -> Tensor:
        return self._kept[memory].to(device)

    def move(self, device: torch.device) -> None:
        """Move all that is remembered to a device. Features that come later follow `on_host` as before."""
        self._kept = {memory: feature.to(device) for memory, feature in self._kept.items()}

    def keep_only(self, memories: frozenset[Memory]) -> None:
        self._kept = {memory: feature for memory, feature in self._kept.items() if memory in memories}

    @property
    def bytes(self) -> int:
        return sum(feature.nbytes for feature in self._kept.values())
