"""Ctrl+C is never lost. Python drops a KeyboardInterrupt that is raised in an object's finaliser; a note stays."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noting_interrupts(*, at_once: bool) -> Iterator[list[bool]]:
    """While the block runs, every Ctrl+C adds True to the list that it gets. Callers look at it between steps.

    at_once: True: the first Ctrl+C also raises KeyboardInterrupt, as usual. False: only a second one raises it, so that
    the first never breaks a step in the middle. Python delivers signals to the main thread alone; on any other
    thread the list stays empty.
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
