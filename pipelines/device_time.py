"""The device's seconds, shared out among the owners of the pictures in flight, and among each owner's groups.

A group is the set of pictures that can share a UNet call (`Flight.group`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from pipelines.flight import Flight, Group
from pipelines.turns import Ledger

SLACK = 1.0
"""How many device seconds an owner may be ahead of the other owners, or a group ahead of its owner's other groups,
before it sits out a round."""


class DeviceTime:
    """The device seconds of one session. Where all groups cost about the same, all are due in every round."""

    def __init__(self) -> None:
        self._owners: Ledger[Hashable] = Ledger()
        self._groups: defaultdict[Hashable, Ledger[Group]] = defaultdict(Ledger)

    def due(self, flights: Sequence[Flight]) -> list[list[Flight]]:
        """The groups that run in the next round, each as its pictures.

        A group sits out while its owner is more than `SLACK` seconds ahead of another owner in flight, or while it is
        so far ahead of another group of that owner. Of several owners in a group, the one with the least time counts.
        """
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
        """Whether a group sits out this round. Its owner with the least device time decides."""
        ahead = self._owners.ahead
        owner = min((flight.owner for flight in flights), key=ahead)
        return ahead(owner) > SLACK or self._groups[owner].ahead(group) > SLACK

    def spent(self, shares: Sequence[tuple[Flight, int]], seconds: float) -> None:
        """Charge a call's seconds to the pictures in it and to their owners, in proportion to their rows.

        shares: each picture and how many rows of the call are its own.
        """
        together = sum(rows for _, rows in shares)
        for flight, rows in shares:
            own = seconds * rows / together
            flight.cost.device_seconds += own
            self._owners.charge(flight.owner, own)
            if flight.owner in self._groups:
                self._groups[flight.owner].charge(flight.group, own)
