"""Mistakes are gathered, so that all of them are told at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pipelines.errors import RequestError, StudioError
from studio.recipe import placed


class Problems:
    """The mistakes found so far, each once, in the order they were found."""

    def __init__(self) -> None:
        self.messages: dict[str, None] = {}

    def add(self, where: str, error: StudioError | str) -> None:
        error = RequestError(error) if isinstance(error, str) else error
        self.messages[str(placed(error, where))] = None

    @contextmanager
    def gathered(self, where: str) -> Iterator[None]:
        """Within: a StudioError is noted and ends the block."""
        try:
            yield
        except StudioError as error:
            self.add(where, error)

    def refuse(self, what: str) -> None:
        """Raises RequestError with every mistake; does nothing where there is none."""
        if not self.messages:
            return
        count = len(self.messages)
        head = f"{what}: {count} mistake{'' if count == 1 else 's'}, nothing was rendered"
        raise RequestError(
            "\n".join([head, *(f"  {message}" for message in sorted(self.messages, key=_place))])
        )


def _place(message: str) -> tuple[int, ...]:
    """Where in the file it stands; what has no place comes last."""
    number = re.match(r"[^:]*?, (?:line|job|entry) (\d+)|job (\d+)", message)
    return (0, int(number[1] or number[2])) if number else (1, 0)


def nearest(name: object, known: Iterable[str]) -> str:
    """ "did you mean 'seed'?", or all that is known where nothing is near."""
    known = tuple(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
