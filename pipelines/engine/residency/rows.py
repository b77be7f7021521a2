"""The rank rows of all resident adapters: one pool for each width that a layer reads or writes."""

from __future__ import annotations

import torch
from torch import Tensor


class RowPool:
    """Rows of one width, [capacity, width]. Row 0 is zero; it pads mixes of lower rank.

    An adapter's rows are one block. So they arrive by one copy, and their place is free again when it has left.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        self.rows = like.new_zeros((1, width))
        self._free: list[tuple[int, int]] = []  # (first, count), by place

    @property
    def used_bytes(self) -> int:
        free = sum(count for _, count in self._free)
        return (len(self.rows) - free) * self.rows.shape[1] * self.rows.itemsize

    def insert(self, rows: Tensor) -> int:
        """Store rows [n, width] as one block; returns the number of its first row. Raises what torch raises where
        memory runs out; then nothing is stored."""
        rows = rows.to(self.rows)
        count = len(rows)
        for place, (first, room) in enumerate(self._free):
            if room >= count:
                self._free[place : place + 1] = [(first + count, room - count)] if room > count else []
                break
        else:
            first = self._grow(count)
        self.rows[first : first + count] = rows
        return first

    def remove(self, first: int, count: int) -> None:
        """Free the block of `count` rows from `first` on."""
        joined: list[tuple[int, int]] = []
        for start, room in sorted([*self._free, (first, count)]):
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + room)
            else:
                joined.append((start, room))
        self._free = joined

    def to(self, like: Tensor) -> None:
        self.rows = self.rows.to(like)

    def _grow(self, count: int) -> int:
        """Make room for `count` rows at the end, and an eighth to spare, so that many adapters do not mean many copies.

        Returns the number of the first of these rows.
        """
        old = len(self.rows)
        have = self._free[-1][1] if self._free and sum(self._free[-1]) == old else 0
        more = count - have
        spare = 0 if old == 1 else more // 8 + old // 8
        self.rows = torch.cat([self.rows, self.rows.new_zeros((more + spare, self.rows.shape[1]))])
        if have:
            self._free.pop()
        if spare:
            self._free.append((old + more, spare))
        return old - have
