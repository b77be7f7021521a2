"""Passwords that fail: the first few cost nothing, then every further one has to wait, longer each time."""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE = 3
"""Failures in a row that cost nothing: people mistype."""
FIRST_WAIT = 1.0
"""Seconds to wait after the next one; twice as long after each further one."""
LONGEST_WAIT = 30.0
FORGOTTEN = 900.0
"""Seconds without an attempt after which earlier failures do not count."""
MOST_REMEMBERED = 10_000


@dataclass
class _Failures:
    count: int = 0
    last: float = 0.0
    until: float = 0.0


class Attempts:
    """Failures by (address, name). Names that do not exist are treated alike, so that nothing tells them apart."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def begin(self, address: str, name: str) -> float:
        """Seconds that this attempt comes too early; 0 lets it through.

        An attempt that is let through counts as failed until `succeeded` is called, so that many at once get no
        further than one after another.
        """
        now = self._clock()
        key = (address, name[:256])
        found = self._failures.setdefault(key, _Failures())
        self._failures.move_to_end(key)
        if len(self._failures) > MOST_REMEMBERED:
            self._forget_one()
        if now - found.last > FORGOTTEN:
            found.count, found.until = 0, 0.0
        if now < found.until:
            return found.until - now
        found.count, found.last = found.count + 1, now
        if found.count > FREE:
            found.until = now + min(FIRST_WAIT * 2.0 ** (found.count - FREE - 1), LONGEST_WAIT)
        return 0.0

    def _forget_one(self) -> None:
        """One that failed least among the oldest, so that made-up names push out no guesser's."""
        oldest = list(itertools.islice(self._failures.items(), 100))
        key, _ = min(oldest, key=lambda item: item[1].count)
        del self._failures[key]

    def succeeded(self, address: str, name: str) -> None:
        self._failures.pop((address, name[:256]), None)
