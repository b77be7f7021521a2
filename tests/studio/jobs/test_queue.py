"""Who is next: owners in turn, live pictures first, models by arrival."""

from __future__ import annotations

import pytest

from studio.jobs.gate import ModelKey
from studio.jobs.job import Job, JobState
from studio.jobs.queue import LIVE, Queue, Task, Work
from studio.recipe import Draft

ONE, OTHER = ModelKey("one"), ModelKey("other")


def work(seq: int, owner: str, pictures: int = 3, *, key: ModelKey = ONE, kind: str = "compose") -> Work:
    job = Job(
        seq, f"job{seq}", owner, kind, "", key.source, None, {}, JobState.QUEUED, "", 0, 0.0, None, None
    )
    made = Work(job, key)
    made.add(Task(made, place, "", Draft({"seed": place})) for place in range(pictures))
    return made


def taken(queue: Queue, count: int) -> list[str]:
    """The owners of the next pictures."""
    owners = []
    for _ in range(count):
        chosen = queue.next()
        assert chosen is not None
        owners.append(queue.take(chosen).work.job.owner)
    return owners


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_a_large_job_does_not_hold_up_another_owner(queue: Queue) -> None:
    queue.add(work(1, "ann", 500))
    assert taken(queue, 2) == ["ann", "ann"]
    queue.add(work(2, "bob", 2))
    assert taken(queue, 4) == ["bob", "bob", "ann", "ann"]


def test_an_owners_jobs_are_done_in_order(queue: Queue) -> None:
    queue.add(work(1, "ann", 1))
    queue.add(work(2, "ann", 1))
    first = queue.next()
    assert first is not None
    assert first.job.id == "job1"


def test_live_pictures_come_first(queue: Queue) -> None:
    queue.add(work(1, "ann"))
    queue.add(work(2, "ann", kind=LIVE))
    chosen = queue.next()
    assert chosen is not None
    assert chosen.job.kind == LIVE


def test_positions_follow_the_turns(queue: Queue) -> None:
    for seq, owner in enumerate(("ann", "ann", "ann", "bob"), 1):
        queue.add(work(seq, owner))
    assert [queue.position(f"job{seq}") for seq in (1, 2, 3, 4)] == [1, 3, 4, 2]
    queue.works["job1"].running = True
    assert [queue.position(f"job{seq}") for seq in (1, 2, 3, 4)] == [0, 1, 3, 2]


def test_the_other_model_that_waited_longest_is_next(queue: Queue) -> None:
    queue.add(work(1, "ann"))
    assert queue.other_than(ONE) is None
    queue.add(work(2, "bob", key=OTHER))
    assert queue.other_than(ONE) == OTHER
    assert queue.other_than(OTHER) == ONE
