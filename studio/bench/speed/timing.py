"""Seconds of several ways of doing one thing, taken in turns; calls recorded."""

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
"""Turns that every way gets, however slow it is."""


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
    """Seconds, all work that was given to the device being done."""
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
    """Every way `repeats` times, in turns so that a busy machine troubles all alike.

    limit: seconds after which a way gets no further turns than the fewest. The ways have been warmed up before.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, way in ways.items():
            if turn < FEWEST or sum(seconds[name]) < limit:
                seconds[name].append(seconds_of(way, device))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass(frozen=True)
class Captured:
    """A call recorded as a CUDA graph; its output stays where it is and is overwritten by the next replay.

    call: kept, since the graph reads where its inputs lie. Those of one recorder are replayed one after another only.
    """

    call: Callable[[], Tensor]
    recording: Recording[Tensor]

    @classmethod
    def by(cls, recorder: Recorder, call: Callable[[], Tensor]) -> Captured:
        return cls(call, recorder.record(call))

    def __call__(self) -> Tensor:
        return self.recording.replay()
