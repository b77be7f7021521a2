"""Who is next: owners in turn, live pictures first, models by arrival."""

from __future__ import annotations

import pytest

from studio.drafts.draft import Draft
from studio.jobs.gate import ModelKey
from studio.jobs.job import Job, JobState
from studio.jobs.queue import LIVE, Queue, Side, Task, Work

ONE, OTHER = ModelKey("one"), ModelKey("other")


def work(
    seq: int, owner: str, pictures: int = 3, *, key: ModelKey = ONE, kind: str = "compose", size: int = 64
) -> Work:
    job = Job(
        seq, f"job{seq}", owner, kind, "", key.source, None, {}, JobState.QUEUED, "", 0, 0.0, None, None
    )
    made = Work(job, key)
    made.add(
        Task(made, place, "", Draft({"seed": place, "width": size, "height": size, "steps": 4}))
        for place in range(pictures)
    )
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
    assert taken(queue, 5) == ["bob", "ann", "bob", "ann", "ann"]


def test_what_counts_is_what_pictures_cost(queue: Queue) -> None:
    queue.add(work(1, "ann", 9, size=128))
    queue.add(work(2, "bob", 9, size=64))
    assert taken(queue, 10) == ["ann", *["bob"] * 4, "ann", *["bob"] * 4]


def test_the_real_cost_replaces_what_was_expected(queue: Queue) -> None:
    queue.add(work(1, "ann", 9))
    queue.add(work(2, "bob", 9))
    chosen = queue.next()
    assert chosen is not None
    task = queue.take(chosen)
    queue.costs(task, 3.5 * task.cost)  # it composes many adapters
    assert taken(queue, 6) == ["bob", "bob", "bob", "bob", "ann", "bob"]


def test_who_comes_later_or_comes_back_starts_level_with_the_others(queue: Queue) -> None:
    queue.add(work(1, "ann", 500))
    taken(queue, 100)
    queue.add(work(2, "bob", 1))
    assert taken(queue, 3) == ["bob", "ann", "ann"]
    queue.add(work(3, "bob", 100))
    assert taken(queue, 20).count("bob") in (10, 11)


def test_an_owners_jobs_are_done_in_order(queue: Queue) -> None:
    queue.add(work(1, "ann", 1))
    queue.add(work(2, "ann", 1))
    first = queue.next()
    assert first is not None
    assert first.job.id == "job1"


def test_one_model_and_some_owners_may_be_asked_for(queue: Queue) -> None:
    for own in (work(1, "ann"), work(2, "bob", key=OTHER), work(3, "bob")):
        queue.add(own)

    def found(key: ModelKey | None, owners: list[str] | None) -> str | None:
        chosen = queue.next(key, owners)
        return chosen and chosen.job.id

    assert found(None, None) == "job1"
    assert found(OTHER, None) == found(None, ["bob"]) == "job2"
    assert found(ONE, ["bob"]) == "job3"
    assert found(OTHER, ["ann"]) is found(None, []) is None


def test_what_is_left_to_do_is_counted(queue: Queue) -> None:
    """A picture that is not handed over yet counts with the most steps of its job's others."""
    first, second = work(1, "ann"), work(2, "bob", 2)
    queue.add(first)
    queue.add(second)
    assert [task.work.job.id for task in queue.tasks()] == ["job1"] * 3 + ["job2"] * 2
    assert (queue.waiting_of("ann"), queue.waiting_of("eve")) == (3, 0)
    assert first.seconds_left is None
    begun = queue.take(first)
    begun.count, begun.step, first.most_steps, first.pace = 6, 4, 6, 0.5
    assert first.seconds_left == 0.5 * (2 + 6 + 6)


def test_live_pictures_come_first(queue: Queue) -> None:
    queue.add(work(1, "ann"))
    queue.add(work(2, "ann", kind=LIVE))
    chosen = queue.next()
    assert chosen is not None
    assert chosen.job.kind == LIVE


def test_positions_follow_the_turns(queue: Queue) -> None:
    for seq, owner in enumerate(("ann", "ann", "ann", "bob"), 1):
        queue.add(work(seq, owner))
    assert [queue.positions().get(f"job{seq}", 0) for seq in (1, 2, 3, 4)] == [1, 3, 4, 2]
    queue.works["job1"].running = True
    assert [queue.positions().get(f"job{seq}", 0) for seq in (1, 2, 3, 4)] == [0, 1, 3, 2]


def test_a_stream_of_live_pictures_gets_half_at_most_while_another_waits(queue: Queue) -> None:
    queue.add(work(1, "live", 500, kind=LIVE))
    queue.add(work(2, "ann", 500))
    owners = taken(queue, 100)
    assert owners[0] == "live"
    assert owners.count("ann") == 50


def test_live_pictures_of_many_leave_everybody_a_fair_share(queue: Queue) -> None:
    for seq in range(1, 9):
        queue.add(work(seq, f"live{seq}", 500, kind=LIVE))
    queue.add(work(9, "ann", 500))
    assert taken(queue, 90).count("ann") == 10


def test_cheap_live_pictures_hardly_hold_up_expensive_ones(queue: Queue) -> None:
    queue.add(work(1, "ann", 500, size=256))
    queue.add(work(2, "bob", 500, kind=LIVE, size=64))
    assert taken(queue, 18) == ["bob", "ann", *["bob"] * 16]


def test_live_pictures_need_not_wait_for_one_another(queue: Queue) -> None:
    queue.add(work(1, "ann", 2, kind=LIVE))
    queue.add(work(2, "bob", 2, kind=LIVE))
    assert taken(queue, 4) == ["ann", "bob", "ann", "bob"]


def test_each_models_suspects_are_a_side_of_their_own(queue: Queue) -> None:
    first, second = work(1, "ann"), work(2, "bob", key=OTHER)
    queue.add(first)
    queue.add(second)
    assert queue.sides() == [Side(ONE), Side(OTHER)]
    first.put_back(queue.take(first), suspect=True)
    assert queue.sides() == [Side(ONE, alone=True), Side(ONE), Side(OTHER)]
    assert taken(queue, 1) == ["bob"]
    suspect = queue.take_suspect(ONE)
    assert suspect is not None
    assert (suspect.index, suspect.suspect) == (0, True)
    assert queue.take_suspect(ONE) is None


def test_the_suspect_with_which_the_studio_died_least_often_is_tried_first(queue: Queue) -> None:
    own = work(1, "ann")
    queue.add(own)
    for deaths in (0, 1, 2):
        task = queue.take(own)
        task.deaths = 2 - deaths
        own.put_back(task, suspect=True)
    tried = [queue.take_suspect(ONE) for _ in range(3)]
    assert [task.deaths for task in tried if task is not None] == [0, 1, 2]
