"""What is wrong with the machine or the worker at present, and since when. Pages, jobs, the health answer and the log
tell it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Health:
    """fault: what is wrong and what to do; "" where nothing is. since: when it began, in seconds since 1970.
    restarts: how often the worker has been started again after a fault of its own."""

    fault: str = ""
    since: float = 0.0
    restarts: int = 0

    @property
    def sentence(self) -> str:
        """What is wrong, since when, and what to do; "" where nothing is wrong."""
        if not self.fault:
            return ""
        return (
            f"since {time.strftime('%H:%M:%S', time.localtime(self.since))}: {self.fault}; "
            "jobs wait meanwhile, and go on by themselves"
        )


class Faults:
    """Remembers the present fault. Safe for several threads; nothing here raises."""

    def __init__(self) -> None:
        self.health = Health()
        self._lock = threading.Lock()

    @property
    def lasts(self) -> bool:
        return bool(self.health.fault)

    def note(self, fault: Exception) -> None:
        """Something is wrong. It goes into the log when it begins, and when it becomes another fault."""
        said = str(fault)
        with self._lock:
            before = self.health
            since = before.since if before.fault else time.time()
            self.health = Health(said, since, before.restarts)
        if said != before.fault:
            _LOG.error("%s", self.health.sentence)

    def restarted(self) -> None:
        with self._lock:
            now = self.health
            self.health = Health(now.fault, now.since, now.restarts + 1)

    def over(self) -> None:
        """Nothing is wrong any more."""
        with self._lock:
            before = self.health
            self.health = Health(restarts=before.restarts)
        if before.fault:
            _LOG.warning("it is over after %.0f s; the work goes on", time.time() - before.since)
