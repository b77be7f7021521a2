"""Whose turn it is: what each party has had while others wanted something too. Pure: no clock, no device.

Nobody banks credit: who comes, or comes back, starts level with whoever has had least. Nobody sheds debt by leaving
for a moment.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Party = TypeVar("Party", bound=Hashable)


class Ledger(Generic[Party]):
    """What each of some parties has had, in any one unit."""

    def __init__(self) -> None:
        self._had: dict[Party, float] = {}
        self._least = 0.0

    def among(self, parties: Iterable[Party]) -> None:
        """Those who want something now."""
        present = set(parties)
        if not present:
            return
        known = [self._had[party] for party in present if party in self._had]
        self._least = max(min(known, default=self._least), self._least)
        for party in present:
            self._had[party] = max(self._had.get(party, self._least), self._least)
        for party in [
            other for other, had in self._had.items() if had <= self._least and other not in present
        ]:
            del self._had[party]  # it would come back as a newcomer comes

    def charge(self, party: Party, amount: float) -> None:
        self._had[party] = self._had.get(party, self._least) + amount

    def ahead(self, party: Party) -> float:
        """By how much it is ahead of whoever of those present has had least; 0 for a newcomer."""
        return max(self._had.get(party, self._least) - self._least, 0.0)


class Turns:
    """Who is next: a higher priority first, then owners by what they have had, then whoever was served longest ago.

    A higher priority goes first while its pictures have not had more than those that wait below it. Beyond that half
    they take turns like all others.
    """

    def __init__(self) -> None:
        self._owners: Ledger[Hashable] = Ledger()
        self._priorities: Ledger[int] = Ledger()
        self._lowest = 0
        self._ticks: dict[Hashable, int] = {}
        self._tick = 0

    def among(self, waiting: Iterable[tuple[Hashable, int]]) -> None:
        """The owners and priorities of all that waits now."""
        pairs = set(waiting)
        self._owners.among(owner for owner, _ in pairs)
        self._priorities.among(priority for _, priority in pairs)
        self._lowest = min((priority for _, priority in pairs), default=0)
        if not pairs:
            self._ticks.clear()

    def key(self, owner: Hashable, priority: int) -> tuple[int, float, int]:
        """The least is next."""
        leads = priority > self._lowest and not self._priorities.ahead(priority)
        return (-priority if leads else -self._lowest, self._owners.ahead(owner), self._ticks.get(owner, 0))

    def serve(self, owner: Hashable, priority: int, cost: float) -> None:
        """It was this one's turn. cost: in any one unit; less than nothing gives back what was charged too much."""
        self._tick += 1
        self._ticks[owner] = self._tick
        self.correct(owner, priority, cost)

    def correct(self, owner: Hashable, priority: int, cost: float) -> None:
        """It costs so much more than was said, or so much less where it is below 0."""
        self._owners.charge(owner, cost)
        self._priorities.charge(priority, cost)
