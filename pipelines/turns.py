"""Whose turn it is, by what each party has had so far. Pure: no clock, no device.

Nobody saves up credit: a party that arrives, or comes back, starts level with the one that has had least. Nobody loses
debt by leaving for a moment.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Party = TypeVar("Party", bound=Hashable)


class Ledger(Generic[Party]):
    """How much each party has had, in one unit of the caller's choice (seconds, rows, …)."""

    def __init__(self) -> None:
        self._had: dict[Party, float] = {}
        self._least = 0.0

    def among(self, parties: Iterable[Party]) -> None:
        """Say who wants something now. The least that any of them has had becomes the level for newcomers."""
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
            del self._had[party]  # it has no debt, so it would come back as a newcomer

    def charge(self, party: Party, amount: float) -> None:
        """Add what a party has just had. A negative amount gives it back."""
        self._had[party] = self._had.get(party, self._least) + amount

    def ahead(self, party: Party) -> float:
        """How much more it has had than the party with the least among those present; 0 for a newcomer."""
        return max(self._had.get(party, self._least) - self._least, 0.0)


class Turns:
    """Who is next: a higher priority first, then the owner that has had least, then the one served longest ago.

    A priority goes first only until it has had as much as the priority that has had least. So of two priorities the
    higher one gets its half early, and no more. Once it is ahead, its pictures wait their turn like all others.
    """

    def __init__(self) -> None:
        self._owners: Ledger[Hashable] = Ledger()
        self._priorities: Ledger[int] = Ledger()
        self._lowest = 0
        self._ticks: dict[Hashable, int] = {}
        self._tick = 0

    def among(self, waiting: Iterable[tuple[Hashable, int]]) -> None:
        """Say who waits now, as (owner, priority) pairs. `key` and `serve` refer to these."""
        pairs = set(waiting)
        self._owners.among(owner for owner, _ in pairs)
        self._priorities.among(priority for _, priority in pairs)
        self._lowest = min((priority for _, priority in pairs), default=0)
        if not pairs:
            self._ticks.clear()

    def key(self, owner: Hashable, priority: int) -> tuple[int, float, int]:
        """The sort key of what an owner asks for at a priority. The smallest key is next."""
        leads = priority > self._lowest and not self._priorities.ahead(priority)
        return (-priority if leads else -self._lowest, self._owners.ahead(owner), self._ticks.get(owner, 0))

    def serve(self, owner: Hashable, priority: int, cost: float) -> None:
        """Record that this owner had its turn at this priority. cost: in one unit of the caller's choice."""
        self._tick += 1
        self._ticks[owner] = self._tick
        self.correct(owner, priority, cost)

    def correct(self, owner: Hashable, priority: int, cost: float) -> None:
        """Charge more than `serve` was told, or less where `cost` is negative. It does not count as a turn."""
        self._owners.charge(owner, cost)
        self._priorities.charge(priority, cost)
