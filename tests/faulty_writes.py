"""Writes that fail: the n-th one, or all while a switch is on. So every place that writes can be tried in turn."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.home import files
from studio.jobs.store import Store


class FaultyWrites:
    """count: the writes so far. on: whether every write fails. failing: the number of the one that fails."""

    def __init__(self) -> None:
        self.count = 0
        self.on = False
        self.failing: int | None = None

    def __call__(self, error: Callable[[], Exception]) -> None:
        """To be called before a write. Raises the error if this write is to fail."""
        self.count += 1
        if self.on or self.count == self.failing:
            raise error()


class Database:
    """A connection whose changes and COMMITs are writes."""

    def __init__(self, real: sqlite3.Connection, writes: FaultyWrites) -> None:
        self._real, self._writes = real, writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, query: str, *values: Any) -> Any:
        if query.split()[0] in ("INSERT", "UPDATE", "DELETE", "COMMIT"):
            self._writes(full_database)
        return self._real.execute(query, *values)

    def executemany(self, query: str, values: Any) -> Any:
        self._writes(full_database)
        return self._real.executemany(query, values)


def full_database() -> Exception:
    return sqlite3.OperationalError("database or disk is full")


def full_disk() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def faulty_writes(monkeypatch: pytest.MonkeyPatch) -> FaultyWrites:
    """Makes the writes of files and of databases that are opened from now on obey the switch."""
    writes = FaultyWrites()
    published, writer = files._published, Store._writer

    def publish(temporary: Path, file: Path, force: bool) -> bool:
        writes(full_disk)
        return published(temporary, file, force)

    monkeypatch.setattr(files, "_published", publish)
    monkeypatch.setattr(Store, "_writer", lambda self: Database(writer(self), writes))
    return writes
