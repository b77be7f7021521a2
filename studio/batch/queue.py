"""Decides which worker renders what next. Jobs with one model and one set of adapters stay together, and no worker is
idle.

Pure bookkeeping, without Ray.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

MOST_DEATHS = 2
"""A job fails once so many workers have died while they held it."""


@dataclass(frozen=True)
class QueuedPicture:
    """A job as the queue sees it. mix: stands for its set of adapters; equal sets have equal values."""

    key: str
    model: str
    mix: Hashable


@dataclass
class Held:
    """What one worker has. model: the open one. mixes: sets of adapters that it has used. tasks: given and not done."""

    model: str | None = None
    mixes: set[Hashable] = field(default_factory=set)
    tasks: dict[str, QueuedPicture] = field(default_factory=dict)


class TaskQueue:
    """The tasks that no worker has, and how many workers have died over each task."""

    def __init__(self, tasks: Iterable[QueuedPicture]) -> None:
        self._waiting: dict[str, dict[Hashable, deque[QueuedPicture]]] = {}
        self._suspects: deque[QueuedPicture] = deque()
        self._deaths: Counter[str] = Counter()
        for task in tasks:
            self._waiting.setdefault(task.model, {}).setdefault(task.mix, deque()).append(task)

    def __len__(self) -> int:
        return len(self._suspects) + sum(self._count(model) for model in self._waiting)

    def model_for(self, held: Held) -> str | None:
        """The model that a worker should open: its present one while tasks wait for that, else the one with the most
        waiting tasks; None where nothing waits."""
        if held.model is not None and (self._count(held.model) or self._suspected(held.model)):
            return held.model
        counts = {model: self._count(model) + self._suspected(model) for model in self._waiting}
        model = max(counts, key=counts.__getitem__, default=None)
        return model if model is not None and counts[model] else None

    def take(self, held: Held, most: int, workers: int) -> list[QueuedPicture]:
        """Gives a worker up to `most` tasks for its open model, and notes that it holds them.

        Mixes that the worker has used come first. The last tasks are shared among all workers. A task whose worker has
        died is given alone, so that a second death shows whether it is the cause.
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
        """Takes back the tasks of a dead worker; returns those over which too many workers have died."""
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
