"""Ctrl+C, so that none is lost: Python drops a KeyboardInterrupt that meets an object's finaliser on its way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted(*, at_once: bool) -> Iterator[list[bool]]:
    """Within: Ctrl+C fills the list, which is to be looked at between steps.

    at_once: it also interrupts as always; else only a second one does, and a step is never broken in the middle.
    Python tells of signals on the main thread alone; on another one nothing is noted.
    """
    stopped: list[bool] = []

    def note(number: int, frame: FrameType | None) -> None:
        again = bool(stopped)
        stopped.append(True)
        if at_once or again:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
