"""Times several ways of doing one thing in turns, and records calls as CUDA graphs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pipelines.engine.products.graphs import Recorder, Recording

Call = Callable[[], object]
Key = TypeVar("Key")
FEWEST = 3
"""Fewest turns of every way, however slow it is."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(largest - smallest) over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def now(device: torch.device) -> float:
    """The time in seconds, after all work that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call: Call, device: torch.device) -> float:
    began = now(device)
    call()
    return now(device) - began


def take_turns(
    ways: Mapping[Key, Call], device: torch.device, repeats: int, *, limit: float = 10.0
) -> dict[Key, Timing]:
    """Times every way `repeats` times, in turns, so that a busy machine affects all alike. The ways must be warmed up.

    limit: seconds; a way that has taken longer gets only the fewest turns.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in ways.items():
            if turn < FEWEST or sum(seconds[name]) < limit:
                seconds[name].append(seconds_of(way, device))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass(frozen=True)
class Captured:
    """A call that is recorded as a CUDA graph. The next replay overwrites its output in place.

    call: kept, since the graph reads its inputs in place. Never replay two calls of one recorder at the same time.
    """

    call: Callable[[], Tensor]
    recording: Recording[Tensor]

    @classmethod
    def by(cls, recorder: Recorder, call: Callable[[], Tensor]) -> Captured:
        return cls(call, recorder.record(call))

    def __call__(self) -> Tensor:
        return self.recording.replay()
