"""The shelves of all jobs. Shelves for one model share their adapters' names."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from pipelines.home import Home
from pipelines.request import Facts
from studio.drafts.draft import Draft
from studio.drafts.shelf import LoadedNames, Shelf
from studio.jobs.gate import ModelKey, Trust, check, find_model
from studio.jobs.queue import Work


class Shelves:
    """Makes shelves. Safe for several threads; shelves share nothing but names, so that no job waits for another's
    files.

    home: gives the folders as they are now. trust: what jobs may name.
    """

    def __init__(self, home: Callable[[], Home], trust: Trust) -> None:
        self._home, self._trust = home, trust
        self._lock = threading.Lock()  # guards the mapping; never held while files are looked at
        self._names: defaultdict[ModelKey, LoadedNames] = defaultdict(LoadedNames)

    def names(self, key: ModelKey) -> LoadedNames:
        """File -> name of the adapters that a model's jobs have asked for."""
        with self._lock:
            return self._names[key]

    def checked(self, drafts: Sequence[Draft], key: ModelKey, facts: Facts | None) -> Shelf:
        """A shelf with every adapter of these drafts, which the gate has judged. Raises StudioError for a draft that
        cannot be drawn."""
        shelf = self._new(key)
        check(drafts, key, self._home(), shelf, facts)
        return shelf

    def of(self, work: Work) -> Shelf:
        """A job's shelf; a new one where an earlier server accepted the job. Raises StudioError where its model is
        gone."""
        if work.shelf is None:
            work.shelf = self._new(work.key)
        return work.shelf

    def _new(self, key: ModelKey) -> Shelf:
        home = self._home()
        entry = key.entry if key.found else find_model(key.source, home, self._trust)
        label = None if entry is None else entry.name
        return Shelf(home, label, names=self.names(key), paths=self._trust.paths)
