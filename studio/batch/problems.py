"""Mistakes are collected, so that all of them can be reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipelines.bounds import LONGEST_NAME
from pipelines.errors import RequestError, StudioError

MOST_PROBLEMS = 1_000
"""Most different mistakes that are kept; nobody reads more."""
MOST_FOUND = 100_000
"""Most mistakes in all, repeated ones included."""
MOST_PLACES = 5
"""Most places that are listed one by one for one mistake."""


class Problems:
    """The mistakes found so far, each once, with its places. count: mistakes found, repeated ones included."""

    def __init__(self) -> None:
        self._places: dict[str, dict[str, None]] = {}  # what -> where
        self.count = 0

    def add(self, where: str, error: StudioError | str) -> None:
        if self.full:
            return
        self.count += 1
        what = str(error).removeprefix(f"{where}: ") if where else str(error)
        self._places.setdefault(what, {})[where] = None

    @property
    def full(self) -> bool:
        """Whether no more mistakes are kept, so that there is no point in reading on."""
        return len(self._places) >= MOST_PROBLEMS or self.count >= MOST_FOUND

    @property
    def messages(self) -> list[str]:
        """One message for each mistake and place, in the file's order. A mistake at very many places, as one in the
        defaults, gets one message."""
        found = []
        for what, places in self._places.items():
            named = list(places)
            if len(named) > MOST_PLACES:
                named = [f"{named[0]} and {len(named) - 1} other places"]
            found += [f"{where}: {what}" if where else what for where in named]
        return sorted(found, key=_place)

    @contextmanager
    def gathered(self, where: str) -> Iterator[None]:
        """While the block runs, a StudioError is added to the mistakes and ends the block."""
        try:
            yield
        except StudioError as error:
            self.add(where, error)

    def refuse(self, what: str) -> None:
        """Raises RequestError that lists every mistake, if there is any. what: the name of what was read."""
        messages = self.messages
        if not messages:
            return
        count = len(messages)
        head = f"{what}: {count} mistake{'' if count == 1 else 's'}, nothing was rendered"
        raise RequestError("\n".join([head, *(f"  {message}" for message in messages)]))


def _place(message: str) -> tuple[int, ...]:
    """A message's place in the file, for sorting; messages without a place come last."""
    number = re.match(r"[^:]*?, (?:line|job|entry) (\d+)|job (\d+)", message)
    return (0, int(number[1] or number[2])) if number else (1, 0)


def nearest(name: object, known: Iterable[str]) -> str:
    """ "did you mean 'seed'?", or, where no known name is similar, a list of them all."""
    known = tuple(known)
    near = difflib.get_close_matches(str(name)[:LONGEST_NAME].lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
