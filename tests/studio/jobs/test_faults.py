"""Faults of the machine: jobs wait while they last, and then the work goes on by itself. Nothing is lost or doubled."""

from __future__ import annotations

import errno
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import Session
from pipelines.errors import StudioError
from pipelines.home import Home
from studio.jobs import JobState, rounds
from studio.jobs.ledger import Ledger
from studio.jobs.rounds import Rounds
from studio.jobs.store import NewPicture, Store
from studio.rendering import saver
from studio.rendering.machine import MachineFault, machine_fault
from tests.faulty_writes import FaultyWrites, faulty_writes, full_disk

from .conftest import draft

Opened = Callable[..., Any]
OPTIONS: Any = {"kind": "compose", "title": "", "model": "m", "vae": None, "settings": {}}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries are made often, so that tests do not wait."""
    monkeypatch.setattr(rounds, "RETRY", 0.02)
    monkeypatch.setattr("studio.jobs.store.PATIENCE", 0.05)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> FaultyWrites:
    return faulty_writes(monkeypatch)


@pytest.fixture
def faulty(writes: FaultyWrites, open_studio: Opened) -> Iterator[Any]:
    """A studio whose writes obey `writes`."""
    yield open_studio()
    writes.on, writes.failing = False, None


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def drawn(studio: Any, id: str) -> list[str]:
    """The states of a job's pictures once it is over; each done one has its file, and no file is there twice."""
    view = studio.over(id, "ann")
    files = [picture.file for picture in view.pictures if picture.state is JobState.DONE]
    assert all(file.is_file() for file in files)
    assert len(set(files)) == len(files)
    return [str(picture.state) for picture in view.pictures]


def pictures(home: Home) -> list[Path]:
    return list(home.outputs.rglob("*.png"))


# -- what is a fault of the machine ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/a.png"), "the disk is full .*make room"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "may not be written"),
        (OSError(errno.EIO, "Input/output error"), "check the disk"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (sqlite3.OperationalError("database is locked"), "locked by another program"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "may not be written"),
        (sqlite3.OperationalError("disk I/O error"), "check the disk"),
    ],
)
def test_a_fault_of_the_machine_says_what_to_do(error: Exception, said: str) -> None:
    fault = machine_fault(error)
    with pytest.raises(MachineFault, match=said):
        raise fault or AssertionError


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), OSError("odd"), sqlite3.IntegrityError("UNIQUE"), StudioError("no"), MemoryError()],
)
def test_other_errors_are_none(error: Exception) -> None:
    assert machine_fault(error) is None


def test_an_error_that_reading_meets_too_counts_only_where_something_was_written() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied")
    assert machine_fault(denied, writing=False) is None
    assert machine_fault(full_disk(), writing=False) is not None


# -- the store ---------------------------------------------------------------------------------------------


def test_wherever_a_write_fails_the_transaction_is_undone_and_the_next_one_works(
    writes: FaultyWrites, tmp_path: Path
) -> None:
    with closing(Store(tmp_path / "studio.sqlite")) as store:
        number = 0
        while True:
            number += 1
            writes.count, writes.failing = 0, number
            try:
                store.add(f"{number}", "ann", [NewPicture("", {"seed": 1})], **OPTIONS)
            except MachineFault:
                assert not store._database.in_transaction
                writes.failing = None
                assert store.job(f"{number}") is None
                store.add(f"again {number}", "ann", [NewPicture("", {"seed": 1})], **OPTIONS)
            else:
                break
        assert number == 4  # two inserts and the COMMIT can fail


def test_where_undoing_fails_too_a_new_connection_is_made(writes: FaultyWrites, tmp_path: Path) -> None:
    with closing(Store(tmp_path / "studio.sqlite")) as store:
        store.add("a", "ann", [NewPicture("", {"seed": 1})], **OPTIONS)
        database: Any = store._database
        real = database.execute

        def execute(query: str, *values: Any) -> Any:
            if query in ("COMMIT", "ROLLBACK"):
                raise sqlite3.OperationalError("disk I/O error")
            return real(query, *values)

        database.execute = execute
        with pytest.raises(MachineFault):
            store.begin("a")
        store.begin("a")
        job = store.job("a")
        assert job is not None
        assert (job.state, job.attempts) == (JobState.RUNNING, 1)


def test_a_locked_database_refuses_what_cannot_be_stored(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "studio.sqlite")) as store:
        with closing(sqlite3.connect(tmp_path / "studio.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(MachineFault, match="locked by another program"):
                store.add("a", "ann", [NewPicture("", {"seed": 1})], **OPTIONS)
        store.add("a", "ann", [NewPicture("", {"seed": 1})], **OPTIONS)


# -- jobs --------------------------------------------------------------------------------------------------


def test_wherever_one_write_fails_all_pictures_are_made(faulty: Any, writes: FaultyWrites) -> None:
    paused = faulty.pause()
    id = faulty.ask("ann", draft(seed=1, steps=1), draft(seed=2, steps=1))
    writes.count = 0
    paused.set()
    assert drawn(faulty, id) == ["done"] * 2
    of_a_job = writes.count
    asked = 2
    for number in range(1, of_a_job + 1):
        paused = faulty.pause()
        id = faulty.ask("ann", draft(seed=number, steps=1), draft(seed=number + 100, steps=1))
        asked += 2
        writes.count, writes.failing = 0, number
        paused.set()
        assert drawn(faulty, id) == ["done"] * 2, number
        writes.failing = None
    until(lambda: not faulty.worker.health().fault)
    assert len(pictures(faulty.home)) == asked


def test_while_the_disk_is_full_jobs_wait_and_say_so_and_then_go_on(
    faulty: Any, writes: FaultyWrites
) -> None:
    paused = faulty.pause()
    id = faulty.ask("ann", draft(seed=1), draft(seed=2))
    writes.on = True
    paused.set()
    until(lambda: faulty.worker.health().fault)
    view = faulty.worker.view(id, "ann")
    assert not view.state.over
    assert "the disk is full" in view.message
    assert "make room" in view.message
    with pytest.raises(StudioError, match="nothing was queued: the disk is full"):
        faulty.ask("bob", draft(seed=3))
    assert faulty.worker.heads("bob") == []
    with pytest.raises(StudioError, match="the disk is full"):
        faulty.worker.cancel(id, "ann")
    writes.on = False
    assert drawn(faulty, id) == ["done"] * 2
    until(lambda: not faulty.worker.health().fault)
    assert len(pictures(faulty.home)) == 2
    assert faulty.over(faulty.ask("bob", draft(seed=3)), "bob").state is JobState.DONE


def test_a_fault_in_the_middle_of_pictures_draws_none_twice(faulty: Any, writes: FaultyWrites) -> None:
    id = faulty.ask("ann", draft(seed=1, steps=40), draft(seed=2, steps=45), draft(seed=3, steps=2))
    faulty.until(id, "ann", lambda view: view.pictures[0].step > 3)
    calls = faulty.count_calls()
    writes.on = True
    until(lambda: faulty.worker.health().fault)
    writes.on = False
    assert drawn(faulty, id) == ["done"] * 3
    assert calls.count <= 45
    assert len(pictures(faulty.home)) == 3


def test_a_database_that_another_program_locks_holds_jobs_up_and_no_more(studio: Any) -> None:
    paused = studio.pause()
    id = studio.ask("ann", draft(seed=1), draft(seed=2))
    with closing(sqlite3.connect(studio.home.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        paused.set()
        until(lambda: studio.worker.health().fault)
        assert "locked by another program" in studio.worker.view(id, "ann").message
    assert drawn(studio, id) == ["done"] * 2


def test_a_failure_that_cannot_be_noted_is_noted_later(
    faulty: Any, writes: FaultyWrites, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = Ledger.fail

    def failing(self: Ledger, task: Any, why: str) -> None:
        writes.on = True
        fail(self, task, why)

    monkeypatch.setattr(Ledger, "fail", failing)
    id = faulty.ask("ann", draft(seed=1), draft(seed=2, width=33))
    until(lambda: faulty.worker.health().fault)
    assert not faulty.worker.view(id, "ann").state.over
    writes.on = False
    assert drawn(faulty, id) == ["done", "failed"]


@pytest.mark.parametrize("day", [False, True])
def test_a_file_in_the_place_of_the_outputs_holds_jobs_up(studio: Any, day: bool) -> None:
    from datetime import date

    place = studio.home.outputs / date.today().isoformat() if day else studio.home.outputs
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file")
    id = studio.ask("ann", draft(seed=1), draft(seed=2))
    until(lambda: studio.worker.health().fault)
    assert "a file where a folder should be" in studio.worker.view(id, "ann").message
    place.unlink()
    assert drawn(studio, id) == ["done"] * 2


def test_a_job_that_waits_to_be_saved_can_be_stopped(studio: Any) -> None:
    studio.home.outputs.write_text("a file")
    id = studio.ask("ann", draft(seed=1))
    until(lambda: studio.worker.health().fault)
    assert studio.worker.cancel(id, "ann")
    until(lambda: not studio.worker.health().fault)
    studio.home.outputs.unlink()
    assert studio.over(studio.ask("ann", draft(seed=2)), "ann").state is JobState.DONE
    assert len(pictures(studio.home)) == 1


def test_a_server_that_is_closed_during_a_fault_draws_the_rest_at_the_next_start(
    faulty: Any, writes: FaultyWrites, open_studio: Opened
) -> None:
    paused = faulty.pause()
    id = faulty.ask("ann", draft(seed=1), draft(seed=2))
    writes.on = True
    paused.set()
    until(lambda: faulty.worker.health().fault)
    faulty.worker.close()
    writes.on = False
    assert drawn(open_studio(), id) == ["done"] * 2
    assert len(pictures(faulty.home)) == 2


def forget(home: Home, id: str, *places: int) -> None:
    """As a server leaves a job that is killed after these pictures' files are written and before that is noted."""
    with closing(sqlite3.connect(home.database)) as database, database:
        for place in places:
            database.execute(
                "UPDATE pictures SET state = 'running', file = NULL, record = NULL, at_work = 1 "
                "WHERE job = ? AND place = ?",
                (id, place),
            )
        database.execute("UPDATE jobs SET state = 'running', ended = NULL WHERE id = ?", (id,))


def test_files_that_a_killed_server_wrote_and_did_not_note_are_the_jobs_pictures(
    studio: Any, open_studio: Opened
) -> None:
    id = studio.ask("ann", *(draft(f"a fox {seed}", "fox", seed=seed) for seed in (1, 2, 3)))
    before = studio.over(id, "ann").pictures
    studio.worker.close()
    forget(studio.home, id, 0, 2)
    assert before[2].file is not None
    before[2].file.unlink()  # this one was being written
    after = open_studio().over(id, "ann").pictures
    assert [str(picture.state) for picture in after] == ["done"] * 3
    assert [picture.file for picture in after[:2]] == [picture.file for picture in before[:2]]
    assert after[0].record == before[0].record
    assert len(pictures(studio.home)) == 3


def test_a_file_of_the_same_seed_that_says_another_request_or_is_somebodys_is_left_alone(
    studio: Any, open_studio: Opened
) -> None:
    theirs = studio.ask("bob", draft("a fox", seed=1))
    others = studio.ask("bob", draft("a wolf", seed=1))
    id = studio.ask("ann", draft("a fox", seed=1))
    for owner, job in (("bob", theirs), ("bob", others), ("ann", id)):
        studio.over(job, owner)
    [mine] = studio.over(id, "ann").pictures
    studio.worker.close()
    forget(studio.home, id, 0)
    forget(studio.home, others, 0)  # its file is nobody's now, and no picture of ann's either
    assert mine.file is not None
    mine.file.unlink()
    again = open_studio()
    [drawn_again] = again.over(id, "ann").pictures
    files = {picture.file for job in (theirs, others) for picture in again.over(job, "bob").pictures}
    assert drawn_again.file not in files
    assert len(files) == 2
    assert len(pictures(studio.home)) == 3


# -- side work ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["cache", "cache/previews"])
def test_previews_that_cannot_be_written_harm_no_picture(studio: Any, where: str) -> None:
    import shutil

    place = studio.home.path / where
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file")
    id = studio.ask("ann", draft("a fox", "fox", seed=1, steps=30))
    assert drawn(studio, id) == ["done"]
    assert not studio.worker.health().fault


def test_a_log_that_cannot_be_written_harms_no_picture(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise full_disk()

        flush = write

    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(Session, "step", _raising(Session.step, [ZeroDivisionError("a fault of ours")]))
    id = studio.ask("ann", draft(seed=1), draft(seed=2))
    assert len(drawn(studio, id)) == 2
    assert studio.over(studio.ask("ann", draft(seed=3)), "ann").state is JobState.DONE


# -- the worker --------------------------------------------------------------------------------------------


class Panic(BaseException):
    """As a library in Rust raises it."""


def _raising(real: Callable[..., Any], errors: list[BaseException]) -> Callable[..., Any]:
    """The function, whose first calls raise these."""

    def call(*args: Any, **more: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return real(*args, **more)

    return call


@pytest.mark.parametrize("place", ["_choose_side", "_feed", "_round", "_stop_cancelled"])
@pytest.mark.parametrize("error", [Panic("a panic"), SystemExit(1), KeyError("x")])
def test_a_worker_that_ends_begins_again(
    studio: Any, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    monkeypatch.setattr(Rounds, place, _raising(getattr(Rounds, place), [error]))
    id = studio.ask("ann", draft(seed=1), draft(seed=2))
    assert drawn(studio, id) == ["done"] * 2
    assert studio.worker.running
    assert studio.worker.health().restarts == 1
    until(lambda: not studio.worker.health().fault)


def test_what_a_library_raises_in_a_round_costs_the_guilty_picture_alone(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Session.step

    def faulty(self: Session) -> Any:
        events = step(self)
        if any(job.request.seed == 666 for job in self._flying):
            raise Panic("a panic")
        return events

    monkeypatch.setattr(Session, "step", faulty)
    id = studio.ask("ann", draft(seed=1), draft(seed=666), draft(seed=2))
    assert drawn(studio, id) == ["done", "failed", "done"]
    assert "Panic: a panic" in studio.worker.view(id, "ann").error


def test_a_call_that_panics_is_answered(studio: Any) -> None:
    def panics(pipe: object) -> None:
        raise Panic("a panic")

    with pytest.raises(RuntimeError, match="Panic: a panic"):
        studio.worker.call(panics, model=studio.model).result(60)
    assert studio.over(studio.ask("ann", draft(seed=1)), "ann").state is JobState.DONE


def test_a_failure_handler_that_fails_ends_nothing(studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "end_pictures", lambda *_: 1 // 0)
    studio.ask("ann", draft(seed=1, width=33))
    assert studio.over(studio.ask("bob", draft(seed=2)), "bob").state is JobState.DONE


def test_an_allocator_that_fails_costs_one_picture_at_most(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.worker.load(studio.model).result(60)
    unet = studio.worker._rounds.resident.pipe.model.unet
    monkeypatch.setattr(unet, "forward", _raising(unet.forward, [torch.OutOfMemoryError("full")] * 3))
    id = studio.ask("ann", draft(seed=1), draft(seed=2))
    assert set(drawn(studio, id)) <= {"done", "failed"}
    monkeypatch.undo()
    assert studio.over(studio.ask("ann", draft(seed=3)), "ann").state is JobState.DONE


def test_a_saver_whose_thread_panics_fails_that_picture_alone(
    studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "save_picture", _raising(saver.save_picture, [Panic("a panic")]))
    id = studio.ask("ann", draft(seed=1), draft(seed=2))
    assert sorted(drawn(studio, id)) == ["done", "failed"]


# -- rows that cannot be read ------------------------------------------------------------------------------

UNREADABLE = ["{", "[1]", "[" * 5000, "9" * 5000, "", b"\xff\xfe", 5]


@pytest.mark.parametrize("bad", UNREADABLE, ids=lambda bad: repr(bad)[:12])
def test_whatever_a_cell_holds_the_row_is_read_and_says_so(tmp_path: Path, bad: object) -> None:
    with closing(Store(tmp_path / "studio.sqlite")) as store:
        store.add("a", "ann", [NewPicture("", {"seed": n}) for n in range(2)], **OPTIONS)
        store._database.execute("UPDATE pictures SET draft = ?, record = ? WHERE place = 0", (bad, bad))
        store._database.execute("UPDATE jobs SET settings = ?", (bad,))
        broken, sound = store.pictures_of("a")
        assert (broken.draft, broken.record, sound.fault) == ({}, {}, "")
        assert "job a, picture 0: draft" in broken.fault
        job = store.job("a")
        assert job is not None
        assert "job a: settings" in job.fault
        assert len(list(store.drafts())) == 1


def test_a_state_that_there_is_not_counts_as_failed(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "studio.sqlite")) as store:
        store.add("a", "ann", [NewPicture("", {"seed": 1})], **OPTIONS)
        store._database.execute("UPDATE pictures SET state = 'odd'")
        store._database.execute("UPDATE jobs SET state = 'odd', created = 'long ago', title = ?", (b"x",))
        [picture], [job] = store.pictures_of("a"), store.jobs_of("ann", 9)
        assert (picture.state, job.state, job.created) == (JobState.FAILED, JobState.FAILED, 0)
        assert picture.fault == picture.error
        assert picture.fault.startswith("job a, picture 0: state 'odd' in the database cannot be read")
        assert job.fault.startswith("job a: title")
        assert store.tallies(["a"])["a"].by_state == {JobState.FAILED: 1}
        assert store.outcome("a")[0] == {JobState.FAILED}


@pytest.mark.parametrize("bad", ["{", '{"prompt": 5}', '{"seed": "x"}', None], ids=str)
def test_a_row_that_cannot_be_read_fails_alone_and_is_named(
    open_studio: Opened, studio_home: Home, sdxl_folder: Path, bad: object
) -> None:
    studio_home.made(studio_home.path)
    good = {"prompt": "a fox", "seed": 1, "steps": 1, "width": 32, "height": 32}
    options = OPTIONS | {"model": sdxl_folder.name}
    with closing(Store(studio_home.database)) as store:
        store.add("picture", "ann", [NewPicture("", good), NewPicture("", good)], **options)
        store.add("done", "ann", [NewPicture("", good)], **options)
        store.finish_picture("done", 0, "outputs/a.png", {})
        store.end("done", JobState.DONE)
        store.add("settings", "ann", [NewPicture("", good)], **options)
        database = store._database
        database.execute("PRAGMA ignore_check_constraints = ON")
        if bad is not None:
            database.execute("UPDATE pictures SET draft = ? WHERE job = 'picture' AND place = 0", (bad,))
            database.execute("UPDATE jobs SET settings = ? WHERE id = 'settings'", (bad,))
        database.execute("UPDATE pictures SET record = ? WHERE job = 'done'", (bad,))
    studio = open_studio()
    broken = studio.over("picture", "ann")
    assert [str(picture.state) for picture in broken.pictures] == [
        "done" if bad is None else "failed",
        "done",
    ]
    assert bad is None or "job picture, picture 0" in broken.error
    assert {head.id for head in studio.worker.heads("ann")} == {"picture", "done", "settings"}
    assert len(studio.worker.pictures("ann")) >= 2
    assert studio.worker.view("done", "ann").pictures[0].state is JobState.DONE
    assert studio.over("settings", "ann").state.over
    list(studio.worker._store.drafts())
    assert studio.over(studio.ask("ann", draft(seed=3)), "ann").state is JobState.DONE


def test_ten_thousand_rows_that_cannot_be_read_are_listed_soon(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "studio.sqlite")) as store:
        good = {"prompt": "a fox", "seed": 1, "adapters": [{"adapter": "fox", "weight": 0.5}]}
        store.add("a", "ann", [NewPicture("", good)] * 10_000, **OPTIONS)
        store._database.execute("UPDATE pictures SET draft = '{' WHERE place % 2")
        began = time.process_time()
        rows = list(store.waiting_of("a"))
        assert len(list(store.drafts())) == 5_000
        assert sum(bool(row.fault) for row in rows) == 5_000
        assert time.process_time() - began < 4  # twice; generous, since the machine may be busy


def test_a_database_of_an_old_version_with_a_bad_record_is_taken_further(tmp_path: Path) -> None:
    file = tmp_path / "studio.sqlite"
    Store(file).close()
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("DROP INDEX pictures_counted")
        database.execute("ALTER TABLE pictures DROP COLUMN steps")
        database.execute("ALTER TABLE pictures DROP COLUMN unet_rows")
        database.execute(
            "INSERT INTO jobs (id, owner, kind, title, model, settings, state, created) "
            "VALUES ('a', 'ann', '', '', '', '{}', 'done', 0)"
        )
        database.execute(
            "INSERT INTO pictures (job, place, label, draft, state, file, record) VALUES "
            "('a', 0, '', ?, 'done', 'x', '{')",
            (json.dumps({"seed": 1}),),
        )
        database.execute("PRAGMA user_version = 2")
    with closing(Store(file)) as store:
        [row] = store.pictures_of("a")
        assert row.steps == 0


def workers() -> int:
    return sum(thread.name == "worker" and thread.is_alive() for thread in threading.enumerate())


def test_threads_end_with_the_studio(studio: Any) -> None:
    studio.home.outputs.write_text("a file")
    studio.ask("ann", draft(seed=1))
    until(lambda: studio.worker.health().fault)
    before = workers()
    studio.worker.close()
    assert not studio.worker.running
    assert workers() == before - 1  # other studios of this process may go on
