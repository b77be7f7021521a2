"""The device's seconds, shared among the owners of the pictures in flight, and among the shapes of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from pipelines.flight import Flight, Group
from pipelines.turns import Ledger

SLACK = 1.0
"""Seconds of the device that an owner, or one of an owner's shapes, may be ahead of the others before it rests."""


class DeviceTime:
    """Of one session. Where all groups cost about the same, all are due in every round."""

    def __init__(self) -> None:
        self._owners: Ledger[Hashable] = Ledger()
        self._groups: defaultdict[Hashable, Ledger[Group]] = defaultdict(Ledger)

    def due(self, flights: Sequence[Flight]) -> list[list[Flight]]:
        """The pictures in flight by the calls that they share, but for those whose owners, or whose owner's shapes,
        have had more of the device than others in flight."""
        groups: dict[Group, list[Flight]] = {}
        for flight in flights:
            groups.setdefault(flight.group, []).append(flight)
        owners = {flight.owner for flight in flights}
        self._owners.among(owners)
        for owner in [owner for owner in self._groups if owner not in owners]:
            del self._groups[owner]
        for owner in owners:
            self._groups[owner].among({flight.group for flight in flights if flight.owner == owner})
        return [own for group, own in groups.items() if not self._rests(group, own)]

    def _rests(self, group: Group, flights: Sequence[Flight]) -> bool:
        """Whether a group lets others go first: its least served owner speaks for it."""
        ahead = self._owners.ahead
        owner = min((flight.owner for flight in flights), key=ahead)
        return ahead(owner) > SLACK or self._groups[owner].ahead(group) > SLACK

    def spent(self, shares: Sequence[tuple[Flight, int]], seconds: float) -> None:
        """Add a call's seconds on the device to the pictures' costs and their owners' shares, by their rows in it."""
        together = sum(rows for _, rows in shares)
        for flight, rows in shares:
            own = seconds * rows / together
            flight.cost.device_seconds += own
            self._owners.charge(flight.owner, own)
            if flight.owner in self._groups:
                self._groups[flight.owner].charge(flight.group, own)
