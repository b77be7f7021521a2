"""Which waiting picture joins those in flight: by priority, then by owners in turn, then first come, first served.

This module only decides; `pipelines.session` acts on it. A call has room for a number of rows, which depends on the
latent shape. The device has room for adapters and for remembered features. A picture that is next and finds no room
waits, and those of its shape wait behind it.

Rows. A picture with more rows than a call may hold makes calls of its own; each owner may have one such picture in
flight. Where there are several owners, the same holds for a picture with more than half as many rows. A picture that is
next and finds no room in its shape's calls keeps others of that shape from overtaking it for `PATIENCE` rounds. After
that, where there are several owners, it makes calls of its own if its owner has nothing in flight; otherwise the others
overtake it.

Features. Room for the features that a picture will remember is reserved for its whole run. A picture waits while its
features do not fit beside those in flight. One whose features would never fit keeps them on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.families.unet import Shape
from pipelines.flight import Flight

PATIENCE = 16
"""Rounds that a picture waits for room in its shape's calls before it makes calls of its own, or is overtaken."""


class Admission:
    """Decides, for one round, which of the waiting pictures join those in flight, one after another.

    rows_at_once: the rows that a call may hold at a latent shape. feature_room: bytes for all remembered features.
    turn: the sort key of a picture; the smallest is next. fits: whether adapters have room on the device beside those
    that are held.
    """

    def __init__(
        self,
        waiting: Sequence[Flight],
        flying: Sequence[Flight],
        *,
        rows_at_once: Callable[[Shape], int],
        feature_room: int,
        turn: Callable[[Flight], Any],
        fits: Callable[[Sequence[str]], bool],
    ) -> None:
        self._waiting = list(waiting)
        self._turn, self._fits = turn, fits
        self._several = len({flight.owner for flight in [*waiting, *flying]}) > 1
        for flight in flying:
            flight.own_calls = flight.own_calls or (
                self._several and 2 * flight.rows > rows_at_once(flight.shape)
            )
        self._limits = {shape: rows_at_once(shape) for shape in {flight.shape for flight in waiting}}
        together = [flight for flight in flying if not flight.own_calls]
        self._room = {
            shape: limit - sum(flight.rows for flight in together if flight.shape == shape)
            for shape, limit in self._limits.items()
        }
        self._feature_room = feature_room - reserved_for_features(flying)
        self._most_features = feature_room
        self._any_flying = bool(flying)
        self._flying_shapes = {flight.shape for flight in together}
        self._flying_owners = {flight.owner for flight in flying}
        self._owners_with_own_calls = {flight.owner for flight in flying if flight.own_calls}
        self._closed: set[Shape] = set()

    def next(self) -> Flight | None:
        """The picture that joins now; None where no other may.

        Sets in the picture whether it makes calls of its own (`own_calls`) and whether its features stay on the host.
        """
        while candidates := [flight for flight in self._waiting if flight.shape not in self._closed]:
            flight = min(candidates, key=self._turn)
            if self._may_join(flight):
                self._waiting.remove(flight)
                return flight
        return None

    def joined(self, flight: Flight) -> None:
        """Note that the picture is in flight. What it takes is not there for those that come after it."""
        self._any_flying = True
        self._flying_owners.add(flight.owner)
        if flight.own_calls:
            self._owners_with_own_calls.add(flight.owner)
        else:
            self._room[flight.shape] -= flight.rows
            self._flying_shapes.add(flight.shape)

    def _may_join(self, flight: Flight) -> bool:
        """Whether there is room for it. If not, the others of its shape either wait behind it or overtake it."""
        return self._finds_rows(flight) and self._finds_adapters(flight) and self._finds_features(flight)

    def _finds_rows(self, flight: Flight) -> bool:
        oversized = (1 + self._several) * flight.rows > self._limits[flight.shape]
        flight.own_calls = oversized and flight.owner not in self._owners_with_own_calls
        if oversized:
            return flight.own_calls or self._goes_without(flight)
        if flight.rows <= self._room[flight.shape] or flight.shape not in self._flying_shapes:
            return True
        flight.rounds_without_room += 1
        if flight.rounds_without_room <= PATIENCE or not self._several:
            return self._waits(flight)
        if flight.owner in self._flying_owners:
            return self._goes_without(flight)
        flight.own_calls = True
        return True

    def _finds_adapters(self, flight: Flight) -> bool:
        return not self._any_flying or self._fits(flight.adapters) or self._waits(flight)

    def _finds_features(self, flight: Flight) -> bool:
        """Whether there is room for the features that it will remember, which is then reserved."""
        flight.features.on_host = flight.cost.feature_bytes > self._most_features
        if flight.features.on_host:
            return True
        if flight.cost.feature_bytes > self._feature_room:
            return self._waits(flight)
        self._feature_room -= flight.cost.feature_bytes
        return True

    def _waits(self, flight: Flight) -> bool:
        """False. The others of its shape wait behind it."""
        self._closed.add(flight.shape)
        return False

    def _goes_without(self, flight: Flight) -> bool:
        """False. The others of its shape overtake it."""
        self._waiting.remove(flight)
        return False


def reserved_for_features(flying: Sequence[Flight]) -> int:
    """Bytes reserved on the device for the features of the pictures in flight."""
    return sum(flight.cost.feature_bytes for flight in flying if not flight.features.on_host)
