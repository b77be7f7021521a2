"""Wrong passwords. The first few cost nothing; after each further one, the next attempt has to wait, longer each
time."""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE = 3
"""Failures in a row that cost nothing, since people mistype."""
FIRST_WAIT = 1.0
"""Seconds to wait after the first failure that costs; twice as long after each further one."""
LONGEST_WAIT = 30.0
FORGOTTEN = 900.0
"""Seconds without an attempt after which earlier failures no longer count."""
MOST_REMEMBERED = 10_000


@dataclass
class _Failures:
    count: int = 0
    last: float = 0.0
    until: float = 0.0


class Attempts:
    """Failures by (address, name). Names that do not exist are treated like others, so that nobody learns which
    exist."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def begin(self, address: str, name: str) -> float:
        """By how many seconds this attempt comes too early; 0 lets it through.

        An attempt that is let through counts as failed until `succeeded` is called, so that parallel attempts gain
        nothing.
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
        """Forgets the entry with the fewest failures among the oldest ones, so that a guesser cannot push out an entry
        by inventing names."""
        oldest = list(itertools.islice(self._failures.items(), 100))
        key, _ = min(oldest, key=lambda item: item[1].count)
        del self._failures[key]

    def succeeded(self, address: str, name: str) -> None:
        self._failures.pop((address, name[:256]), None)
