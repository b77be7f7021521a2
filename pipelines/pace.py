"""How far the host runs ahead of the device, and how long the device is at work.

A CUDA device takes work in and does it later. While it is at work on one UNet call the host prepares the next, so that
the device need not wait for the host between them; but no more than that, so that what is told of a picture's steps is
never more than two calls ahead of the device, and a picture that is cancelled costs it no more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Tell = Callable[[float], None]


class Pace:
    """Of one session's calls."""

    def __init__(self) -> None:
        self._laps: deque[tuple[torch.cuda.Event, torch.cuda.Event, Tell]] = deque()

    @contextmanager
    def lap(self, device: torch.device, tell: Tell) -> Iterator[None]:
        """Within: a call is given to the device. `tell` gets its seconds there when they are known (see `settle`)."""
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
        """Tell the seconds of all calls that the device has done."""
        while self._laps and self._laps[0][1].query():  # type: ignore[no-untyped-call]
            self._tell_oldest()

    def _tell_oldest(self) -> None:
        """Waits for its end."""
        began, ended, tell = self._laps.popleft()
        ended.synchronize()
        tell(began.elapsed_time(ended) / 1000)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's, on the device: neither waits for the other, as a copy from ordinary memory would."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
