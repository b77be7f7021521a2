"""What waits and what is in the making, in memory, and who is next. Pure: no model, no thread, no file.

Owners take turns: the next picture is one of whoever was served least while anybody waited, and of the oldest of
their jobs. Live pictures, which somebody watches while moving a slider, come before all others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import Request
from studio.jobs.gate import ModelKey
from studio.jobs.job import Job, JobState
from studio.recipe import Draft
from studio.shelf import Shelf

LIVE = "live"
"""The kind of jobs whose pictures are looked at and not kept."""


@dataclass
class Task:
    """One picture that is not done. id: the session's, once it was handed over. request: the resolved one."""

    work: Work
    index: int
    label: str
    draft: Draft
    state: JobState = JobState.QUEUED
    id: int | None = None
    request: Request | None = None
    step: int = 0
    count: int = 0
    preview: Path | None = None

    @property
    def steps_left(self) -> int:
        return (self.count or self.work.most_steps) - self.step


@dataclass
class Work:
    """A job that is not over. shelf: holds its adapters; None after a restart, until its first picture is due.

    pace: seconds a step of any of its pictures takes, on average; None before the first.
    """

    job: Job
    key: ModelKey
    tasks: dict[int, Task] = field(default_factory=dict)
    waiting: deque[Task] = field(default_factory=deque)
    shelf: Shelf | None = None
    running: bool = False
    pace: float | None = None
    most_steps: int = 0

    def add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self.tasks[task.index] = task
            self.waiting.append(task)

    @property
    def priority(self) -> int:
        return int(self.job.kind == LIVE)

    @property
    def seconds_left(self) -> float | None:
        if self.pace is None:
            return None
        return self.pace * sum(task.steps_left for task in self.tasks.values())


class Queue:
    """All jobs that are not over, in the order they came."""

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self._served: Counter[str] = Counter()

    def add(self, work: Work) -> None:
        self.works[work.job.id] = work

    def remove(self, id: str) -> None:
        self.works.pop(id, None)
        if not any(work.waiting for work in self.works.values()):
            self._served.clear()

    def next(self, key: ModelKey | None = None, owners: Iterable[str] | None = None) -> Work | None:
        """Whose picture is next: of one model, or of any; of some owners, or of any."""
        chosen = None if owners is None else set(owners)
        ready = [
            work
            for work in self.works.values()
            if work.waiting and key in (None, work.key) and (chosen is None or work.job.owner in chosen)
        ]
        return min(
            ready, key=lambda work: (-work.priority, self._served[work.job.owner], work.job.seq), default=None
        )

    def take(self, work: Work) -> Task:
        """The next picture of a job; it does not wait any more."""
        self._served[work.job.owner] += 1
        return work.waiting.popleft()

    def other_than(self, key: ModelKey) -> ModelKey | None:
        """The model of the first job that waits for another one."""
        others = (work for work in self.works.values() if work.waiting and work.key != key)
        first = min(others, key=lambda work: (-work.priority, work.job.seq), default=None)
        return None if first is None else first.key

    def owners_waiting(self, key: ModelKey) -> set[str]:
        return {work.job.owner for work in self.works.values() if work.waiting and work.key == key}

    def position(self, id: str) -> int:
        """A queued job's place in the queue, from 1, as owners take turns; 0 for any other."""
        turns: Counter[str] = Counter()
        places = []
        for work in self.works.values():
            if not work.running:
                turns[work.job.owner] += 1
                places.append((-work.priority, turns[work.job.owner], work.job.seq, work.job.id))
        return next((place for place, (*_, other) in enumerate(sorted(places), 1) if other == id), 0)

    def tasks(self) -> Iterator[Task]:
        """All pictures that are not done."""
        for work in self.works.values():
            yield from work.tasks.values()
