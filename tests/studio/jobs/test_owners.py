"""Whose job it is: its owner sees all of it, and nobody else sees, stops or deletes anything of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.home import Home
from studio.jobs import JobState, Worker
from studio.jobs.owner import PROGRAMS, folder_of, owner_of

from .conftest import draft


@dataclass
class Anns:
    """Ann's job of three pictures, of which the first is done and the second in the making."""

    worker: Worker
    id: str
    file: Path


@pytest.fixture
def anns(studio_home: Home, sdxl_folder: Path) -> Iterator[Anns]:
    """A worker that was not started, so that everything stays as it is."""
    worker = Worker(studio_home)
    drafts = [draft(f"ann's fox {n}", seed=n) for n in range(3)]
    id = worker.submit("ann", drafts, model=sdxl_folder.name, title="ann's title")
    file = studio_home.outputs / folder_of("ann") / "fox.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(file)
    ledger, work = worker._ledger, worker._queue.works[id]
    ledger.begin(work)
    worker._store.finish_picture(id, 0, str(file.relative_to(studio_home.path)), {"seed": 0})
    work.tasks.pop(0)
    work.tasks[1].state, work.tasks[1].step, work.tasks[1].count = JobState.RUNNING, 1, 3
    yield Anns(worker, id, file)
    worker.close()


Asked = Callable[[Anns, str], Any]
LOOKS: dict[str, tuple[Asked, Any]] = {
    "view": (lambda anns, who: anns.worker.view(anns.id, who), None),
    "head": (lambda anns, who: anns.worker.head(anns.id, who), None),
    "heads": (lambda anns, who: anns.worker.heads(who), []),
    "owns": (lambda anns, who: anns.worker.owns(anns.id, who), False),
    "unfinished": (lambda anns, who: anns.worker.unfinished(who), []),
    "at_work": (lambda anns, who: anns.worker.at_work(anns.id, who), None),
    "pictures": (lambda anns, who: anns.worker.pictures(who), []),
    "is_of": (lambda anns, who: anns.worker.is_of(anns.file, who), False),
}
"""A method of the worker -> a call of it, and what it answers to a stranger."""
DEEDS: dict[str, tuple[Asked, Any]] = {
    "cancel": (lambda anns, who: anns.worker.cancel(anns.id, who), False),
    "delete": (lambda anns, who: anns.worker.delete(anns.id, who), False),
    "delete_picture": (lambda anns, who: anns.worker.delete_picture(anns.id, 0, who), False),
}
STRANGERS = ["bob", "", "ANN", "ann ", "a%", "login:ann", PROGRAMS]


def test_every_method_that_takes_an_owner_is_under_test() -> None:
    taking = {
        name
        for name, method in inspect.getmembers(Worker, inspect.isfunction)
        if not name.startswith("_") and "owner" in inspect.signature(method).parameters
    }
    assert taking == {*LOOKS, *DEEDS, "submit"}


@pytest.mark.parametrize("method", [*LOOKS, *DEEDS])
def test_a_stranger_gets_the_answer_for_what_is_not_there(anns: Anns, method: str) -> None:
    call, nothing = (LOOKS | DEEDS)[method]
    nowhere = Anns(anns.worker, "0" * 16, anns.file.with_name("none.png"))
    before = anns.worker.view(anns.id, "ann")
    for stranger in STRANGERS:
        assert call(anns, stranger) == call(nowhere, stranger) == nothing
    assert anns.worker.view(anns.id, "ann") == before
    assert anns.worker.unfinished("ann") == [anns.id]
    assert anns.file.exists()


@pytest.mark.parametrize("method", LOOKS)
def test_the_owner_gets_another_answer(anns: Anns, method: str) -> None:
    call, nothing = LOOKS[method]
    assert call(anns, "ann") != nothing


def test_the_owner_sees_all_of_the_job(anns: Anns) -> None:
    view = anns.worker.view(anns.id, "ann")
    assert view is not None
    assert view.pictures[0].state is JobState.DONE
    assert (view.title, view.settings, view.pictures[0].file) == ("ann's title", {}, anns.file)
    [picture] = anns.worker.pictures("ann")
    assert (picture.prompt, picture.file, picture.index) == ("ann's fox 0", anns.file, 0)
    at_work = anns.worker.at_work(anns.id, "ann")
    assert at_work is not None
    assert (at_work.step, at_work.count) == (1, 3)


def test_each_list_is_of_one_owner_also_from_another_ones_job_on(anns: Anns, sdxl_folder: Path) -> None:
    worker = anns.worker
    bobs = worker.submit("bob", [draft("bob's hat")], model=sdxl_folder.name)
    older = worker.submit("ann", [draft("later")], model=sdxl_folder.name)
    assert [head.id for head in worker.heads("ann")] == [older, anns.id]
    assert [head.id for head in worker.heads("bob")] == [bobs]
    assert [head.id for head in worker.heads("ann", before=bobs)] == [anns.id]
    assert worker.heads("bob", before=anns.id) == []
    assert worker.unfinished("ann") == [anns.id, older]
    assert [picture.prompt for picture in worker.pictures("bob", search="fox")] == []


def test_the_owner_stops_what_is_not_over_and_keeps_what_is_done(anns: Anns) -> None:
    assert anns.worker.cancel(anns.id, "ann")
    view = anns.worker.view(anns.id, "ann")
    assert view is not None
    assert [str(picture.state) for picture in view.pictures] == ["done", "cancelled", "cancelled"]
    assert anns.file.exists()
    assert not anns.worker.cancel(anns.id, "ann"), "there is nothing left to stop"


def test_the_owner_deletes_a_finished_picture_with_its_file_and_no_other(anns: Anns) -> None:
    for index in (-1, 1, 2, 3):
        assert not anns.worker.delete_picture(anns.id, index, "ann"), "it is not over, or not there"
    assert anns.file.exists()
    assert anns.worker.delete_picture(anns.id, 0, "ann")
    assert not anns.file.exists()
    view = anns.worker.view(anns.id, "ann")
    assert view is not None
    assert [picture.index for picture in view.pictures] == [1, 2]
    assert not anns.worker.is_of(anns.file, "ann")


def test_a_job_goes_with_its_last_picture(anns: Anns) -> None:
    assert anns.worker.cancel(anns.id, "ann")
    for index in (0, 1):
        assert anns.worker.delete_picture(anns.id, index, "ann")
        assert anns.worker.owns(anns.id, "ann")
    assert anns.worker.delete_picture(anns.id, 2, "ann")
    assert not anns.worker.owns(anns.id, "ann")


def test_the_owner_deletes_a_job_with_its_files(anns: Anns) -> None:
    assert anns.worker.delete(anns.id, "ann")
    assert not anns.file.exists()
    assert anns.worker.heads("ann") == []
    assert not anns.worker.delete(anns.id, "ann")


def test_somebody_else_is_busy_only_with_jobs_of_others(anns: Anns) -> None:
    assert anns.worker.busy(but="bob")
    assert not anns.worker.busy(but="ann")
    assert anns.worker.cancel(anns.id, "ann")
    assert not anns.worker.busy(but="bob")


def test_a_browser_that_calls_itself_like_a_login_is_another_owner() -> None:
    whos = [
        ("ann", None),
        (None, "ann"),
        (None, "login:ann"),
        ("browser:ann", None),
        (None, None),
        ("programs", None),
    ]
    owners = [owner_of(login, browser) for login, browser in whos]
    assert len(set(owners)) == len(owners)
    assert owner_of("ann", "any browser") == owner_of("ann", "another")
    assert len({folder_of(owner) for owner in owners}) == len(owners)
    assert all(folder_of(owner).isalnum() for owner in [*owners, "../..", "", "\ud800"])
