"""What is kept in SQLite, and what an interruption makes of it."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import RequestError, SetupError
from studio.jobs import store as of_store
from studio.jobs.job import Job, JobState, Tally
from studio.jobs.store import MIGRATIONS, MOST_DEATHS, MOST_LOADS, MOST_REASONS, NewPicture, Store
from studio.library.search import LONGEST_SEARCH, MOST_WORDS

FIXTURES = Path(__file__).parents[2] / "fixtures"
OPTIONS: Any = {"kind": "compose", "title": "", "model": "m", "vae": None, "settings": {"x": [1]}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "studio.sqlite")
    yield opened
    opened.close()


def add(store: Store, id: str = "a", pictures: int = 2, owner: str = "ann") -> str:
    new = [NewPicture(f"label {n}", {"prompt": f"a 100%_fox {n}", "seed": n}) for n in range(pictures)]
    return store.add(id, owner, new, **OPTIONS).id


def states(store: Store, id: str) -> list[JobState]:
    return [row.state for row in store.pictures_of(id)]


def test_what_was_running_is_queued_again_and_what_was_finished_is_kept(store: Store) -> None:
    id = add(store)
    store.begin(id)
    store.start_picture(id, 0)
    store.finish_picture(id, 0, "outputs/a.png", {"seed": 0})
    store.start_picture(id, 1)
    store.recover(interrupted=True)
    [job] = store.unfinished()
    assert (job.state, job.settings) == (JobState.QUEUED, {"x": [1]})
    assert states(store, id) == [JobState.DONE, JobState.QUEUED]
    assert store.pictures_of(id)[1].draft["seed"] == 1


def test_the_moments_of_a_job_are_kept(store: Store) -> None:
    """It began when it first began, however often it is begun again."""

    def now() -> Job:
        job = store.job(id)
        assert job is not None
        assert job.fault == ""
        return job

    id = add(store)
    assert (now().attempts, now().began, now().ended) == (0, None, None)
    store.begin(id)
    began = now().began
    assert began is not None
    assert now().created <= began
    store.recover(interrupted=False)
    store.begin(id)
    assert (now().attempts, now().began, now().ended) == (2, began, None)
    store.end(id, JobState.DONE)
    ended = now().ended
    assert ended is not None
    assert began <= ended
    assert store.ended_before(ended) == []
    assert [job.id for job in store.ended_before(ended + 1)] == [id]


def in_the_making(store: Store, id: str, *indices: int) -> None:
    """The studio dies while these pictures are at work."""
    store.begin(id)
    for index in indices:
        store.hand_over(id, index)
    store.start_picture(id, indices[0])
    store.recover(interrupted=True)


def test_a_picture_that_was_alone_in_the_making_at_three_deaths_is_given_up(store: Store) -> None:
    id = add(store)
    for death in range(MOST_DEATHS):
        assert states(store, id) == [JobState.QUEUED] * 2, death
        in_the_making(store, id, 0)
    given_up, innocent = store.pictures_of(id)
    assert given_up.state is JobState.FAILED
    assert "died 3 times while it made this picture and no other" in given_up.error
    assert (innocent.state, innocent.suspect, innocent.deaths) == (JobState.QUEUED, False, 0)


def test_a_death_with_several_in_the_making_is_laid_to_none_but_makes_them_suspects(store: Store) -> None:
    id = add(store, pictures=4)
    for _ in range(5 * MOST_DEATHS):
        in_the_making(store, id, 0, 1, 2)
    rows = store.pictures_of(id)
    assert {row.state for row in rows} == {JobState.QUEUED}
    assert [row.suspect for row in rows] == [True, True, True, False]
    assert {row.deaths for row in rows} == {0}


def test_a_picture_counts_from_the_moment_it_is_handed_over(store: Store) -> None:
    """What kills in its first call has not begun as its owner sees it."""
    id = add(store, pictures=1)
    store.hand_over(id, 0)
    store.recover(interrupted=True)
    [row] = store.pictures_of(id)
    assert (row.suspect, row.deaths) == (True, 1)


def test_a_picture_that_was_set_aside_or_finished_is_no_suspect(store: Store) -> None:
    id = add(store, pictures=3)
    for index in range(3):
        store.hand_over(id, index)
    store.take_back(id, 0)
    assert store.finish_picture(id, 1, "a.png", {})
    store.recover(interrupted=True)
    assert [row.suspect for row in store.pictures_of(id)] == [False, False, True]
    assert [row.deaths for row in store.pictures_of(id)] == [0, 0, 1]


def test_closing_a_server_is_no_death(store: Store) -> None:
    id = add(store, pictures=1)
    for _ in range(2 * MOST_DEATHS):
        store.begin(id)
        store.hand_over(id, 0)
        store.start_picture(id, 0)
        store.recover(interrupted=False)
        store.recover(interrupted=True)  # the next server starts
    [row] = store.pictures_of(id)
    assert (row.state, row.suspect, row.deaths) == (JobState.QUEUED, False, 0)


def test_deaths_with_nothing_in_the_making_are_laid_to_nobody(store: Store) -> None:
    id = add(store)
    for _ in range(10):
        store.begin(id)
        store.recover(interrupted=True)
    assert states(store, id) == [JobState.QUEUED] * 2


def test_a_model_that_is_being_loaded_at_five_deaths_fails_what_waits_for_it(store: Store) -> None:
    id = add(store)
    other = store.add("b", "bob", [NewPicture("", {"seed": 1})], **(OPTIONS | {"model": "n"})).id
    for death in range(MOST_LOADS):
        assert states(store, id) == [JobState.QUEUED] * 2, death
        store.begin_loading("m", None)
        store.recover(interrupted=True)
    assert states(store, id) == [JobState.FAILED] * 2
    assert "is there enough memory" in store.pictures_of(id)[0].error
    assert states(store, other) == [JobState.QUEUED]
    again = add(store, "c")
    store.begin_loading("m", None)
    store.recover(interrupted=True)
    assert states(store, again) == [JobState.QUEUED] * 2  # whoever asks anew is not refused


def test_a_model_that_was_loaded_once_starts_anew(store: Store) -> None:
    id = add(store)
    for _ in range(3 * MOST_LOADS):
        store.begin_loading("m", None)
        store.recover(interrupted=True)
        store.begin_loading("m", None)
        store.end_loading("m", None, loaded=True)
    assert states(store, id) == [JobState.QUEUED] * 2


def test_what_was_stopped_stays_stopped(store: Store) -> None:
    id = add(store, pictures=3)
    store.begin(id)
    store.finish_picture(id, 0, "a.png", {})
    store.start_picture(id, 1)
    store.stop(id)
    assert not store.finish_picture(id, 1, "b.png", {})
    store.start_picture(id, 2)
    store.end_pictures(id, [2], JobState.FAILED, "too late")
    store.recover(interrupted=True)
    assert store.unfinished() == []
    assert states(store, id) == [JobState.DONE, JobState.CANCELLED, JobState.CANCELLED]
    job = store.job(id)
    assert job is not None
    assert job.state is JobState.CANCELLED


def test_a_write_that_fails_leaves_the_database_usable(store: Store) -> None:
    id = add(store)
    with pytest.raises(sqlite3.IntegrityError):
        add(store)
    store.begin(id)
    assert [job.state for job in store.unfinished()] == [JobState.RUNNING]


def test_a_database_of_the_first_version_is_read_and_taken_further(tmp_path: Path) -> None:
    """As `tests/fixtures/write_studio_v1.py` left it: a server of that version was killed."""
    file = tmp_path / "studio.sqlite"
    shutil.copy(FIXTURES / "studio-v1.sqlite", file)
    store = Store(file)
    try:
        assert [job.id for job in store.jobs_of("ann", 9)] == ["failed", "done"]
        assert [row.file for row in store.pictures_of("done")] == ["outputs/done-0.png", "outputs/done-1.png"]
        assert store.pictures_of("done")[1].record == {"seed": 1, "executed_steps": 3}
        assert store.pictures_of("failed")[0].error == "adapter 'x' is gone"
        store.recover(interrupted=True)
        store.delete_kind("live")
        assert [job.id for job in store.unfinished()] == ["running", "queued"]
        rows = store.pictures_of("running")
        assert [str(row.state) for row in rows] == ["done", "queued", "queued", "queued"]
        assert [row.suspect for row in rows] == [False, True, True, False]
        assert {row.deaths for row in rows} == {0}
        assert rows[3].draft == {"prompt": "a fox 3", "seed": 3, "steps": 3, "width": 32, "height": 32}
        job = store.job("running")
        assert job is not None
        assert (job.vae, job.title, job.settings) == ("other", "title of running", {"x": 1})
        assert states(store, "stopped") == [JobState.CANCELLED]
        done = store.tallies(["done"])["done"]
        assert (done.done, done.step) == (
            2,
            sum(row.record["executed_steps"] for row in store.pictures_of("done")),
        )  # type: ignore[index]
    finally:
        store.close()


def test_the_gallery_is_searched_literally_and_by_owner(store: Store) -> None:
    for id, owner in (("a", "ann"), ("b", "bob")):
        add(store, id, owner=owner)
        store.finish_picture(id, 0, "a.png", {})

    def found(owner: str, search: str) -> list[str]:
        return [row.job for row in store.gallery(owner, 10, 0, search, without=("live",))]

    assert found("ann", "FOX 100%_") == ["a"]
    assert found("ann", "0%f") == []
    assert found("bob", "label") == ["b"]
    assert found("eve", "") == []


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("a " * (MOST_WORDS + 1), f"the search has {MOST_WORDS + 1} words, more than {MOST_WORDS}"),
        (
            "a" * (LONGEST_SEARCH + 1),
            f"the search has {LONGEST_SEARCH + 1} characters, more than {LONGEST_SEARCH}",
        ),
    ],
)
def test_a_search_is_bounded(store: Store, search: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        store.gallery("ann", 10, 0, search, without=("live",))
    assert store.gallery("ann", 10, 2**80, "a " * MOST_WORDS, without=("live",)) == []


def test_a_search_that_takes_long_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        add(store, f"job{number}", 20)
    monkeypatch.setattr(of_store, "LONGEST_SEARCHING", -1.0)
    monkeypatch.setattr(of_store, "LOOK_AT_THE_CLOCK", 10)
    with pytest.raises(RequestError, match="search for fewer words"):
        store.gallery("ann", 10, 0, "a fox", without=("live",))


def test_a_slow_search_holds_up_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        add(store, f"job{number}", 20)
    searching, go = threading.Event(), threading.Event()

    class Clock:
        """Stands still as soon as the search is under way."""

        time = staticmethod(of_store.time.time)
        looks = 0

        @classmethod
        def monotonic(cls) -> float:
            cls.looks += 1
            if cls.looks > 1:
                searching.set()
                go.wait(30)
            return 0.0

    monkeypatch.setattr(of_store, "time", Clock)
    monkeypatch.setattr(of_store, "LOOK_AT_THE_CLOCK", 10)
    search = threading.Thread(target=store.gallery, args=("ann", 10, 0, "a fox", ("live",)))
    search.start()
    try:
        assert searching.wait(30)
        store.begin("job0")
        assert store.jobs_of("ann", 1)[0].id == "job19"
        assert store.tallies(["job0"])["job0"].total == 20
        assert search.is_alive()
    finally:
        go.set()
        search.join(30)


def test_pictures_are_counted_without_being_read(store: Store) -> None:
    id = add(store, pictures=4)
    store.begin(id)
    record = {"executed_steps": 3, "unet_rows": 6, "shallow_rows": 1}
    for index in (0, 1):
        store.finish_picture(id, index, f"{index}.png", record)
    store.end_pictures(id, [2], JobState.FAILED, "no room")
    counts = {JobState.DONE: 2, JobState.FAILED: 1, JobState.QUEUED: 1}
    assert store.tallies([id, "nothing"]) == {id: Tally(counts, 6, 6, 2, 14), "nothing": Tally()}
    plan = " ".join(
        row[3]
        for row in store._rows(
            "EXPLAIN QUERY PLAN SELECT job, state, count(*), sum(steps), sum(unet_rows) FROM pictures "
            "WHERE job IN ('a', 'b') GROUP BY job, state"
        )
    )
    assert "COVERING INDEX pictures_counted" in plan


def test_a_slice_of_a_jobs_pictures_is_read(store: Store) -> None:
    id = add(store, pictures=9)
    store.finish_picture(id, 4, "4.png", {"executed_steps": 3})
    assert [row.index for row in store.slice_of(id, 3, 4, records=True)] == [3, 4, 5, 6]
    assert [row.record for row in store.slice_of(id, 4, 1, records=True)] == [{"executed_steps": 3}]
    assert [(row.record, row.steps) for row in store.slice_of(id, 4, 1, records=False)] == [(None, 3)]
    assert store.last_begun(id) == 4
    assert store.files_of(id) == ["4.png"]
    assert [row.index for row in store.waiting_of(id)] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_of_thousands_of_reasons_few_are_told(store: Store) -> None:
    id = add(store, pictures=MOST_REASONS + 10)
    for index in range(MOST_REASONS + 10):
        store.end_pictures(id, [index], JobState.FAILED, f"reason {index}")
    assert store.outcome(id) == ({JobState.FAILED}, [f"reason {index}" for index in range(MOST_REASONS)])


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "studio.sqlite"
    with sqlite3.connect(file) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(SetupError, match="newer LoRA Studio"):
        Store(file)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "studio.sqlite"
    file.write_text("no database at all, " * 100)
    with pytest.raises(SetupError, match="move it away"):
        Store(file)
