"""The queue in memory: what waits, what is in the making, and who is next. Pure: no model, no thread, no file.

Owners take turns. The next picture comes from the owner whose pictures have cost least while others waited, and from
the oldest of that owner's jobs. Live pictures, which somebody watches while moving a slider, come before all others,
as long as they have not cost more than these.

A suspect is a picture that was in the making when something broke. It is drawn alone, so that no other picture breaks
with it. A side is a set of pictures that may share rounds: a model's suspects are one side, its other pictures another.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import Request
from pipelines.turns import Turns
from studio.drafts.draft import Draft
from studio.drafts.shelf import Shelf
from studio.jobs.gate import ModelKey
from studio.jobs.job import Job, JobState

LIVE = "live"
"""The kind of a job whose pictures are shown but not kept."""
USUAL = (512, 30)
"""Side in pixels, and steps, that are assumed for a picture that does not say them, until its cost is known."""


@dataclass(frozen=True)
class Side:
    """Pictures of one model that may share rounds. alone: suspects instead, which are drawn one after another."""

    key: ModelKey
    alone: bool = False


@dataclass(eq=False)
class Task:
    """One picture that is not done. request: resolved; None until it is handed over to the session.

    suspect: it was in the making when something broke. deaths: how often the studio died while it alone was in the
    making. cost: what its owner was charged for it, in UNet rows x steps x pixels.
    """

    work: Work
    index: int
    label: str
    draft: Draft
    state: JobState = JobState.QUEUED
    request: Request | None = None
    step: int = 0
    count: int = 0
    preview: Path | None = None
    suspect: bool = False
    deaths: int = 0
    cost: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it is neither finished nor stopped."""
        return self.work.tasks.get(self.index) is self

    @property
    def steps_left(self) -> int:
        return (self.count or self.work.most_steps) - self.step


@dataclass
class Work:
    """A job that is not over. shelf: holds its adapters; None after a restart, until its first picture is due.

    pace: average seconds for one step of one of its pictures; None before the first step.
    """

    job: Job
    key: ModelKey
    tasks: dict[int, Task] = field(default_factory=dict)
    waiting: deque[Task] = field(default_factory=deque)
    suspects: deque[Task] = field(default_factory=deque)
    shelf: Shelf | None = None
    running: bool = False
    pace: float | None = None
    most_steps: int = 0

    def add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self.tasks[task.index] = task
            (self.suspects if task.suspect else self.waiting).append(task)

    def put_back(self, task: Task, *, suspect: bool) -> None:
        """Lets a picture that was handed over wait again, before the others of its job. It will be drawn anew from its
        seed."""
        task.state, task.request, task.step, task.suspect = JobState.QUEUED, None, 0, suspect
        (self.suspects if suspect else self.waiting).appendleft(task)

    def forget_waiting(self) -> None:
        self.waiting.clear()
        self.suspects.clear()

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
        self._turns = Turns()

    def add(self, work: Work) -> None:
        self.works[work.job.id] = work

    def remove(self, id: str) -> None:
        self.works.pop(id, None)

    def next(self, key: ModelKey | None = None, owners: Iterable[str] | None = None) -> Work | None:
        """The job whose picture is next; None where none waits. key: only jobs of this model. owners: only theirs.
        Suspects do not count."""
        chosen = None if owners is None else set(owners)
        waiting = [work for work in self.works.values() if work.waiting]
        self._turns.among((work.job.owner, work.priority) for work in waiting)
        ready = [
            work
            for work in waiting
            if key in (None, work.key) and (chosen is None or work.job.owner in chosen)
        ]
        return min(
            ready,
            key=lambda work: (*self._turns.key(work.job.owner, work.priority), work.job.seq),
            default=None,
        )

    def take(self, work: Work) -> Task:
        """Takes the next waiting picture out of a job, and charges its owner with the expected cost."""
        task = work.waiting.popleft()
        task.cost = _expected(task.draft)
        self._turns.serve(work.job.owner, work.priority, task.cost)
        return task

    def take_suspect(self, key: ModelKey) -> Task | None:
        """Takes out the model's next suspect: the one with the fewest deaths. None where there is none."""
        suspects = [task for work in self.works.values() if work.key == key for task in work.suspects]
        task = min(suspects, key=lambda task: (task.deaths, task.work.job.seq, task.index), default=None)
        if task is not None:
            task.work.suspects.remove(task)
        return task

    def costs(self, task: Task, cost: float) -> None:
        """Corrects what a picture's owner was charged. cost: the picture's real one, in UNet rows x steps x pixels."""
        self._turns.correct(task.work.job.owner, task.work.priority, cost - task.cost)
        task.cost = cost

    def sides(self) -> list[Side]:
        """The sides for which pictures wait, in the order of their first jobs. A model's suspects come before its other
        pictures."""
        found: dict[Side, None] = {}
        for work in sorted(self.works.values(), key=lambda work: (-work.priority, work.job.seq)):
            if work.suspects:
                found[Side(work.key, alone=True)] = None
            if work.waiting:
                found[Side(work.key)] = None
        return list(found)

    def owners_waiting(self, key: ModelKey) -> set[str]:
        return {work.job.owner for work in self.works.values() if work.waiting and work.key == key}

    def positions(self) -> dict[str, int]:
        """The queued jobs' places in the queue, from 1, as owners take turns."""
        turns: Counter[str] = Counter()
        places = []
        for work in self.works.values():
            if not work.running:
                turns[work.job.owner] += 1
                places.append((-work.priority, turns[work.job.owner], work.job.seq, work.job.id))
        return {id: place for place, (*_, id) in enumerate(sorted(places), 1)}

    def waiting_of(self, owner: str) -> int:
        """How many pictures of an owner are not done."""
        return sum(len(work.tasks) for work in self.works.values() if work.job.owner == owner)

    def tasks(self) -> Iterator[Task]:
        """All pictures that are not done."""
        for work in self.works.values():
            yield from work.tasks.values()


def _expected(draft: Draft) -> float:
    """The expected cost of a picture, in UNet rows x steps x pixels, judged by its draft."""
    width, height, steps = (
        value if isinstance(value, int) else usual
        for value, usual in (
            (draft.values.get("width"), USUAL[0]),
            (draft.values.get("height"), USUAL[0]),
            (draft.values.get("steps"), USUAL[1]),
        )
    )
    return 2.0 * steps * width * height
