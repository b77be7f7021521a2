"""Who renders what next: jobs of one model and one set of adapters stay together, no worker idles.

Pure bookkeeping, without Ray.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

MOST_DEATHS = 2
"""Workers that may die over a job before it counts as the cause."""


@dataclass(frozen=True)
class QueuedPicture:
    """A job as the queue sees it. mix: what its adapters are, equal for equal sets of them."""

    key: str
    model: str
    mix: Hashable


@dataclass
class Held:
    """What one worker has. model: open there. mixes: sets of adapters it has had. tasks: given, not yet done."""

    model: str | None = None
    mixes: set[Hashable] = field(default_factory=set)
    tasks: dict[str, QueuedPicture] = field(default_factory=dict)


class TaskQueue:
    """The tasks that no worker has, and the memory of those whose workers died."""

    def __init__(self, tasks: Iterable[QueuedPicture]) -> None:
        self._waiting: dict[str, dict[Hashable, deque[QueuedPicture]]] = {}
        self._suspects: deque[QueuedPicture] = deque()
        self._deaths: Counter[str] = Counter()
        for task in tasks:
            self._waiting.setdefault(task.model, {}).setdefault(task.mix, deque()).append(task)

    def __len__(self) -> int:
        return len(self._suspects) + sum(self._count(model) for model in self._waiting)

    def model_for(self, held: Held) -> str | None:
        """The model a worker should have open: its own while there is work for it, else the one most waited for."""
        if held.model is not None and (self._count(held.model) or self._suspected(held.model)):
            return held.model
        counts = {model: self._count(model) + self._suspected(model) for model in self._waiting}
        model = max(counts, key=counts.__getitem__, default=None)
        return model if model is not None and counts[model] else None

    def take(self, held: Held, most: int, workers: int) -> list[QueuedPicture]:
        """Up to `most` tasks for a worker's open model, noted as held.

        Mixes that it knows come first. The last tasks are shared out. One whose worker has died is given alone,
        so that it is known whether it was the cause.
        """
        if held.model is None or any(self._deaths[key] for key in held.tasks):
            return []
        if self._suspected(held.model):
            return [] if held.tasks else [self._hold(held, self._next_suspect(held.model))]
        most = min(most, -(-self._count(held.model) // workers))
        taken: list[QueuedPicture] = []
        mixes = self._waiting.get(held.model, {})
        while len(taken) < most and mixes:
            known = (mix for mix in mixes if mix in held.mixes)
            mix = next(known, None)
            if mix is None:
                mix = max(mixes, key=lambda mix: len(mixes[mix]))
            taken.append(self._hold(held, mixes[mix].popleft()))
            if not mixes[mix]:
                del mixes[mix]
        return taken

    def died(self, held: Held) -> list[QueuedPicture]:
        """Takes back what a dead worker held; returns the tasks that have now cost too many workers."""
        given_up: list[QueuedPicture] = []
        for task in held.tasks.values():
            self._deaths[task.key] += 1
            (given_up if self._deaths[task.key] >= MOST_DEATHS else self._suspects).append(task)
        held.tasks.clear()
        return given_up

    def _hold(self, held: Held, task: QueuedPicture) -> QueuedPicture:
        held.tasks[task.key] = task
        held.mixes.add(task.mix)
        return task

    def _count(self, model: str) -> int:
        return sum(len(tasks) for tasks in self._waiting.get(model, {}).values())

    def _suspected(self, model: str) -> int:
        return sum(task.model == model for task in self._suspects)

    def _next_suspect(self, model: str) -> QueuedPicture:
        task = next(task for task in self._suspects if task.model == model)
        self._suspects.remove(task)
        return task
