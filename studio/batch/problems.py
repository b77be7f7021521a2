"""Mistakes are gathered, so that all of them are told at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipelines.bounds import LONGEST_NAME
from pipelines.errors import RequestError, StudioError

MOST_PROBLEMS = 1_000
"""Different mistakes that are kept; whoever made more of them need not read all."""
MOST_FOUND = 100_000
"""Mistakes at all places together."""
MOST_PLACES = 5
"""Places of one and the same mistake that are named one by one."""


class Problems:
    """The mistakes found so far, each once, in the order they were found. count: how often one was found."""

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
        """Whether no more are kept, so that reading on makes no sense."""
        return len(self._places) >= MOST_PROBLEMS or self.count >= MOST_FOUND

    @property
    def messages(self) -> list[str]:
        """One for each mistake and place; a mistake made very often, as by the defaults, is told once."""
        found = []
        for what, places in self._places.items():
            named = list(places)
            if len(named) > MOST_PLACES:
                named = [f"{named[0]} and {len(named) - 1} other places"]
            found += [f"{where}: {what}" if where else what for where in named]
        return sorted(found, key=_place)

    @contextmanager
    def gathered(self, where: str) -> Iterator[None]:
        """Within: a StudioError is noted and ends the block."""
        try:
            yield
        except StudioError as error:
            self.add(where, error)

    def refuse(self, what: str) -> None:
        """Raises RequestError with every mistake; does nothing where there is none."""
        messages = self.messages
        if not messages:
            return
        count = len(messages)
        head = f"{what}: {count} mistake{'' if count == 1 else 's'}, nothing was rendered"
        raise RequestError("\n".join([head, *(f"  {message}" for message in messages)]))


def _place(message: str) -> tuple[int, ...]:
    """Where in the file it stands; what has no place comes last."""
    number = re.match(r"[^:]*?, (?:line|job|entry) (\d+)|job (\d+)", message)
    return (0, int(number[1] or number[2])) if number else (1, 0)


def nearest(name: object, known: Iterable[str]) -> str:
    """ "did you mean 'seed'?", or all that is known where nothing is near."""
    known = tuple(known)
    near = difflib.get_close_matches(str(name)[:LONGEST_NAME].lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
