"""What is kept in SQLite, and what an interruption makes of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import SetupError
from studio.jobs.job import JobState
from studio.jobs.store import MIGRATIONS, MOST_ATTEMPTS, NewPicture, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "studio.sqlite")
    yield opened
    opened.close()


def add(store: Store, id: str = "a", pictures: int = 2, owner: str = "ann") -> str:
    new = [NewPicture(f"label {n}", {"prompt": f"a 100%_fox {n}", "seed": n}) for n in range(pictures)]
    return store.add(id, owner, new, kind="compose", title="", model="m", vae=None, settings={"x": [1]}).id


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


def test_the_third_interrupted_attempt_fails(store: Store) -> None:
    id = add(store, pictures=1)
    for attempt in range(MOST_ATTEMPTS):
        assert states(store, id) == [JobState.QUEUED], attempt
        store.begin(id)
        store.start_picture(id, 0)
        store.recover(interrupted=True)
    [row] = store.pictures_of(id)
    assert row.state is JobState.FAILED
    assert "interrupted 3 times" in row.error


def test_an_interruption_while_the_model_is_loaded_counts_too(store: Store) -> None:
    id = add(store)
    for _ in range(MOST_ATTEMPTS):
        store.begin(id)
        store.recover(interrupted=True)
    assert set(states(store, id)) == {JobState.FAILED}


def test_a_job_that_gets_on_is_never_given_up(store: Store) -> None:
    id = add(store, pictures=6)
    for index in range(5):
        store.begin(id)
        store.start_picture(id, index)
        store.finish_picture(id, index, f"{index}.png", {})
        store.start_picture(id, index + 1)
        store.recover(interrupted=True)
    assert states(store, id)[-1] is JobState.QUEUED


def test_closing_a_server_is_no_interruption(store: Store) -> None:
    id = add(store, pictures=1)
    for _ in range(2 * MOST_ATTEMPTS):
        store.begin(id)
        store.start_picture(id, 0)
        store.recover(interrupted=False)
    assert states(store, id) == [JobState.QUEUED]


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
