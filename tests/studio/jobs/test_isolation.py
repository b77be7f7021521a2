"""Nobody's picture is harmed by another's: faults, stops and deaths of the studio, as their owners see them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import Session
from pipelines.errors import RequestError
from pipelines.home import Home
from studio.jobs import LIVE, JobState, Worker
from studio.jobs.ledger import Ledger
from studio.jobs.resident import Resident
from studio.jobs.store import Store
from studio.jobs.worker import MOST_LIVE
from studio.rendering import saver

from .conftest import draft

Opened = Callable[..., Any]
BAD = 666
"""The seed of the picture that something is wrong with."""


def breaking_rounds(monkeypatch: pytest.MonkeyPatch, bad: Callable[[set[int]], bool]) -> list[set[int]]:
    """The session itself breaks, where `bad` of the seeds in flight; the seeds of every round."""
    rounds: list[set[int]] = []
    step = Session.step

    def faulty(self: Session) -> Any:
        events = step(self)
        seeds = {job.request.seed for job in self._flying if job.request.seed is not None}
        rounds.append(seeds)
        if bad(seeds):
            raise ZeroDivisionError("a fault of ours")
        return events

    monkeypatch.setattr(Session, "step", faulty)
    return rounds


def test_a_round_that_breaks_costs_the_guilty_picture_alone(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = breaking_rounds(monkeypatch, lambda seeds: BAD in seeds)
    paused = studio.pause()
    anns = studio.ask("ann", *(draft(seed=seed) for seed in (1, 2)))
    bobs = studio.ask("bob", draft(seed=3), draft(seed=BAD), draft(seed=4))
    paused.set()
    ann, bob = studio.over(anns, "ann"), studio.over(bobs, "bob")
    assert ann.state is JobState.DONE
    assert [str(picture.state) for picture in bob.pictures] == ["done", "failed", "done"]
    assert "ZeroDivisionError: a fault of ours" in bob.error
    assert sum(BAD in seeds for seeds in rounds) == 2  # with the others, and alone
    assert all(len(seeds) <= 1 for seeds in rounds[rounds.index({1, 2, 3, 4, BAD}) + 1 :])


def test_pictures_that_broke_only_together_are_all_made(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_rounds(monkeypatch, lambda seeds: len(seeds) > 1)
    paused = studio.pause()
    id = studio.ask("ann", *(draft(seed=seed) for seed in range(3)))
    paused.set()
    assert studio.over(id, "ann").state is JobState.DONE
    assert studio.over(studio.ask("bob", draft(seed=9)), "bob").state is JobState.DONE


def test_a_fault_that_always_comes_ends_each_picture_once(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = breaking_rounds(monkeypatch, bool)
    id = studio.ask("ann", *(draft(seed=seed) for seed in range(3)))
    view = studio.over(id, "ann")
    assert {str(picture.state) for picture in view.pictures} == {"failed"}
    assert len([seeds for seeds in rounds if seeds]) <= 6


def test_a_stop_of_a_suspect_is_kept(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_rounds(monkeypatch, lambda seeds: len(seeds) > 1)
    paused = studio.pause()
    long = studio.ask("ann", draft(seed=1, steps=900))
    short = studio.ask("bob", draft(seed=2))
    paused.set()
    studio.until(long, "ann", lambda view: view.pictures[0].step > 3)
    assert studio.worker.cancel(long, "ann")
    assert studio.over(short, "bob").state is JobState.DONE


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_fault_in_handing_over_is_of_that_picture_alone(
    studio: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    give = Resident.give

    def faulty(self: Resident, task: Any, shelf: Any) -> float:
        if task.draft.values["seed"] == BAD:
            raise error
        return give(self, task, shelf)

    monkeypatch.setattr(Resident, "give", faulty)
    paused = studio.pause()
    good = studio.ask("ann", draft(seed=1), draft(seed=2))
    bad = studio.ask("bob", draft(seed=BAD))
    paused.set()
    assert studio.over(good, "ann").state is JobState.DONE
    assert "could not be begun" in studio.over(bad, "bob").error


def test_a_fault_in_noting_progress_is_of_that_picture_alone(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Store.start_picture
    paused = studio.pause()
    good = studio.ask("ann", draft(seed=1))
    bad = studio.ask("bob", draft(seed=BAD, steps=500))

    def faulty(self: Store, job: str, index: int) -> None:
        if job == bad:
            raise OSError("the disk is full")
        start(self, job, index)

    monkeypatch.setattr(Store, "start_picture", faulty)
    paused.set()
    assert studio.over(good, "ann").state is JobState.DONE
    assert "the disk is full" in studio.over(bad, "bob").error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("x"), MemoryError()])
def test_a_picture_that_cannot_be_saved_fails_alone(
    studio: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save = saver.save_picture

    def faulty(image: Any, file: Path, **options: Any) -> Path:
        if options["record"].seed == BAD:
            raise error
        return save(image, file, **options)

    monkeypatch.setattr(saver, "save_picture", faulty)
    id = studio.ask("ann", draft(seed=1), draft(seed=BAD), draft(seed=2))
    view = studio.over(id, "ann")
    assert [str(picture.state) for picture in view.pictures] == ["done", "failed", "done"]
    assert "could not be saved" in view.error
    assert studio.over(studio.ask("ann", draft(seed=3)), "ann").state is JobState.DONE
    assert studio.worker.running


def test_a_picture_that_cannot_be_noted_as_saved_leaves_no_file(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: object) -> bool:
        raise KeyError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish_picture", faulty)
        view = studio.over(studio.ask("ann", draft(seed=1)), "ann")
    assert "a fault of ours" in view.error
    assert not list(studio.home.outputs.rglob("*.png"))
    assert studio.over(studio.ask("ann", draft(seed=3)), "ann").state is JobState.DONE


def test_a_preview_that_cannot_be_drawn_harms_nobody(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.jobs.previews.write_whole", lambda *_, **__: 1 // 0)
    id = studio.ask("ann", draft(steps=30))
    assert studio.over(id, "ann").state is JobState.DONE


def test_a_state_that_cannot_be_told_harms_nobody(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resident, "state", lambda self: 1 // 0)
    assert studio.over(studio.ask("ann", draft("a fox", "fox")), "ann").state is JobState.DONE


def test_a_model_that_nobody_foresaw_is_reported_once(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = itertools.count()

    def faulty(*_: object, **__: object) -> None:
        next(tried)
        raise KeyError("conv_in")

    with monkeypatch.context() as patch:
        patch.setattr("studio.jobs.resident.open_pipeline", faulty)
        view = studio.over(studio.ask("ann", draft()), "ann")
    assert "cannot be loaded" in view.error
    assert next(tried) == 1
    assert studio.over(studio.ask("ann", draft()), "ann").state is JobState.DONE


# -- stops -----------------------------------------------------------------------------------------------


def read_anew(studio: Any, id: str) -> list[str]:
    """The states of a job's pictures, as a server that starts after the power is cut reads them."""
    store = Store(studio.home.database)
    try:
        store.recover(interrupted=True)
        assert id not in [job.id for job in store.unfinished()]
        return [str(row.state) for row in store.pictures_of(id)]
    finally:
        store.close()


def test_a_stop_is_on_the_disk_before_it_is_answered(studio: Any) -> None:
    id = studio.ask("ann", draft(seed=1, steps=900), draft(seed=2, steps=900), draft(seed=3))
    studio.until(id, "ann", lambda view: view.pictures[0].step > 0)
    held, go = threading.Event(), threading.Event()
    studio.worker.call(lambda pipe: (held.set(), go.wait(60)), model=studio.model)
    assert held.wait(60)  # the device's thread can do nothing about it
    assert studio.worker.cancel(id, "ann")
    assert studio.worker.view(id, "ann").state is JobState.CANCELLED
    states = read_anew(studio, id)
    go.set()
    assert states[:2] == ["cancelled", "cancelled"]


def test_a_picture_that_is_finished_while_it_is_stopped_stays_stopped(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, go = threading.Event(), threading.Event()
    finish = Ledger.finish

    def slowly(self: Ledger, task: Any, file: Path, record: Any) -> None:
        saving.set()
        assert go.wait(60)
        finish(self, task, file, record)

    monkeypatch.setattr(Ledger, "finish", slowly)
    id = studio.ask("ann", draft(seed=1))
    assert saving.wait(60)
    [file] = studio.home.outputs.rglob("*.png")
    assert studio.worker.cancel(id, "ann")
    go.set()
    studio.over(studio.ask("bob", draft(seed=2)), "bob")
    assert [str(picture.state) for picture in studio.worker.view(id, "ann").pictures] == ["cancelled"]
    assert not file.exists()


def test_a_job_that_is_deleted_in_the_making_is_gone_at_once(studio: Any) -> None:
    id = studio.ask("ann", draft(seed=1, steps=900))
    studio.until(id, "ann", lambda view: view.pictures[0].step > 0)
    assert studio.worker.delete(id, "ann")
    assert studio.worker.view(id, "ann") is None
    assert read_anew(studio, id) == []
    assert studio.over(studio.ask("bob", draft(seed=2)), "bob").state is JobState.DONE
    assert len(list(studio.home.outputs.rglob("*.png"))) == 1


# -- deaths ----------------------------------------------------------------------------------------------


def test_suspects_of_an_earlier_server_are_made_alone_before_the_others(
    open_studio: Opened, studio_home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = breaking_rounds(monkeypatch, lambda seeds: False)
    first = open_studio()
    paused = first.pause()
    id = first.ask("ann", *(draft(seed=seed) for seed in range(5)))
    store = first.worker._store
    for index in (1, 3):
        store.hand_over(id, index)
    monkeypatch.setattr(store, "recover", lambda **_: None)  # it is not closed, it dies
    first.worker._rounds.closing = True
    first.worker._store.close()
    second = Worker(studio_home)
    try:
        second.start()
        version = -1
        while not second.view(id, "ann").state.over:  # type: ignore[union-attr]
            version = second.wait(version, 60)
    finally:
        second.close()
        paused.set()
    in_order = [seeds for seeds, _ in itertools.groupby(seeds for seeds in rounds if seeds)]
    assert in_order == [{1}, {3}, {0, 2, 4}]


# -- sizes -----------------------------------------------------------------------------------------------


def test_a_size_without_room_is_refused_at_the_gate(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.memory.free", lambda device, wanted=0: min(wanted, 10**9))
    studio.worker.load(studio.model).result(60)
    with pytest.raises(RequestError, match=r"16384 x 16384 pixels need .* would fit"):
        studio.ask("ann", draft(seed=1), draft(width=16384, height=16384))
    assert studio.worker.heads("ann") == []


def test_a_size_without_room_fails_alone_where_the_model_was_not_loaded_yet(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.memory.free", lambda device, wanted=0: min(wanted, 10**9))
    view = studio.over(studio.ask("ann", draft(seed=1), draft(width=16384, height=16384)), "ann")
    assert [str(picture.state) for picture in view.pictures] == ["done", "failed"]
    assert "16384 x 16384 pixels need" in view.error


# -- turns -----------------------------------------------------------------------------------------------


@pytest.fixture
def two_models(studio: Any, sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The other model's name. A turn is over at once."""
    home = studio.worker.home
    studio.worker.home = Home.resolve(home.path, model_dirs=[sd_folder.parent, *home.roots.models])
    monkeypatch.setattr("studio.jobs.rounds.TURN", 0.2)
    monkeypatch.setattr("studio.jobs.rounds.LOADS", 0.0)
    return sd_folder.name


def test_a_very_long_picture_does_not_hold_up_another_model(
    studio: Any, two_models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = studio.ask("ann", draft("a fox", "fox", seed=1, steps=120))
    studio.until(long, "ann", lambda view: view.pictures[0].step > 5)
    calls = studio.count_calls()
    other = studio.over(studio.ask("bob", draft(seed=2), model=two_models), "bob")
    assert other.state is JobState.DONE
    half = studio.worker.view(long, "ann")
    assert not half.state.over
    assert 5 < half.pictures[0].step < 120
    before = calls.count
    done = studio.over(long, "ann")
    assert done.state is JobState.DONE
    assert done.pictures[0].record["unet_calls"] == 120  # none was made twice
    assert before < 120


def test_a_picture_that_was_set_aside_can_be_stopped_and_is_no_suspect(studio: Any, two_models: str) -> None:
    long = studio.ask("ann", draft(seed=1, steps=900))
    studio.until(long, "ann", lambda view: view.pictures[0].step > 5)
    others = studio.ask("bob", draft(seed=2, steps=900), model=two_models)
    studio.until(others, "bob", lambda view: view.pictures[0].step > 2)
    store = Store(studio.home.database)
    [row] = store.pictures_of(long)
    assert row.state is JobState.QUEUED
    store.close()
    assert studio.worker.cancel(long, "ann")
    assert studio.worker.cancel(others, "bob")
    assert studio.over(studio.ask("eve", draft(seed=3)), "eve").state is JobState.DONE


def test_suspects_leave_the_others_their_turns(
    studio: Any, two_models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking_rounds(monkeypatch, lambda seeds: {1, 2} <= seeds)
    paused = studio.pause()
    suspects = studio.ask("ann", draft(seed=1, steps=120), draft(seed=2, steps=120))
    paused.set()
    studio.until(suspects, "ann", lambda view: any(picture.step > 5 for picture in view.pictures))
    innocent = studio.over(studio.ask("bob", draft(seed=3)), "bob")
    assert innocent.state is JobState.DONE
    assert not studio.worker.view(suspects, "ann").state.over
    assert studio.over(suspects, "ann").state is JobState.DONE


def test_of_an_owners_live_jobs_only_the_newest_go_on(studio: Any) -> None:
    paused = studio.pause()
    ids = [studio.ask("ann", draft(seed=seed), kind=LIVE) for seed in range(MOST_LIVE + 2)]
    bobs = studio.ask("bob", draft(seed=9), kind=LIVE)
    paused.set()
    assert studio.over(bobs, "bob").state is JobState.DONE
    states = [str(studio.over(id, "ann").state) for id in ids]
    assert states == ["cancelled"] * 2 + ["done"] * MOST_LIVE
