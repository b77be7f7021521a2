"""How far the host runs ahead of the device, and how long each call takes the device.

A CUDA device queues its work. While it runs one UNet call, the host prepares and queues the next one, so that the
device never waits for the host. The host stops there: at most two calls are unfinished at any time. So the steps that
are reported run at most two calls ahead of the device, and a cancelled picture costs the device at most two more calls.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Tell = Callable[[float], None]
"""Takes the seconds that one call took the device."""


class Pace:
    """Times one session's calls, and keeps the host at most two calls ahead of the device."""

    def __init__(self) -> None:
        self._laps: deque[tuple[torch.cuda.Event, torch.cuda.Event, Tell]] = deque()

    @contextmanager
    def lap(self, device: torch.device, tell: Tell) -> Iterator[None]:
        """Within: the host gives one call to the device. Before a third one, it waits for the oldest to end.

        tell: gets the call's seconds on the device. On a CUDA device they are known only later: `tell` is called by a
        later `lap` or by `settle`, in the order of the calls. Elsewhere it is called at once. It is not called for a
        block that raises.
        """
        if device.type != "cuda":
            before = time.perf_counter()
            yield
            tell(time.perf_counter() - before)
            return
        while len(self._laps) > 1:
            self._tell_oldest()
        began, ended = _event(), _event()
        began.record()
        yield
        ended.record()
        self._laps.append((began, ended, tell))

    def settle(self) -> None:
        """Tell the seconds of all calls that the device has finished. Does not wait."""
        while self._laps and self._laps[0][1].query():  # type: ignore[no-untyped-call]
            self._tell_oldest()

    def _tell_oldest(self) -> None:
        """Wait for the oldest call to end, and tell its seconds."""
        began, ended, tell = self._laps.popleft()
        ended.synchronize()
        tell(began.elapsed_time(ended) / 1000)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor, on the device. On CUDA it goes through pinned memory, so that the host need not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
