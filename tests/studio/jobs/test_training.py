"""Training beside rendering: asked for, watched, stopped; bad wishes are refused before anything begins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.adapters import inspect_file
from pipelines.errors import RequestError, StudioError
from pipelines.home import Home
from studio.jobs import JobState
from studio.jobs.training import MOST_QUEUED, Lesson, Trainings, TrainingView, _Task

PATIENCE = 120.0


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "upload.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def trainings(studio_home: Home) -> Iterator[Trainings]:
    room = Trainings(studio_home)
    yield room
    room.close()


def until(room: Trainings, id: int, true: Callable[[TrainingView], bool]) -> TrainingView:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        view = room.view(id, "ann")
        assert view is not None
        if true(view):
            return view
        time.sleep(0.05)
    raise AssertionError("it never came true")


def test_a_training_leaves_an_adapter_with_its_picture_as_preview(
    trainings: Trainings, studio_home: Home, picture: Path, sdxl_folder: Path
) -> None:
    lesson = Lesson(picture, "A [v]", "mine", steps=2, rank=2, size=32)
    id = trainings.start("ann", lesson, model=sdxl_folder.name)
    second = trainings.start(
        "ann", Lesson(picture, "A [w]", "other", steps=100_000, size=32), model=sdxl_folder.name
    )
    picture.unlink()  # an upload may go as soon as it was handed over
    assert trainings.view(second, "ann") in trainings.views("ann")
    view = until(trainings, id, lambda view: view.state.over)
    assert (view.state, view.error, view.step, view.steps) == (JobState.DONE, "", 2, 2)
    assert view.file == studio_home.path / "loras" / "mine.safetensors"
    assert not inspect_file(view.file).refused
    assert view.file.with_suffix(".preview.png").is_file()

    until(trainings, second, lambda view: view.step > 1)
    assert not trainings.cancel(second, "ben")
    assert trainings.view(second, "ben") is None
    assert trainings.cancel(second, "ann")
    stopped = trainings.view(second, "ann")
    assert stopped is not None
    assert stopped.state is JobState.CANCELLED  # it is over when the stop is answered
    assert [file.name for file in view.file.parent.iterdir() if "other" in file.name] == []


def test_a_training_that_fails_says_why(trainings: Trainings, picture: Path, sdxl_folder: Path) -> None:
    id = trainings.start("ann", Lesson(picture, "A [v]", "odd", steps=2, size=33), model=sdxl_folder.name)
    view = until(trainings, id, lambda view: view.state.over)
    assert view.state is JobState.FAILED
    assert "size=33 must be a multiple of" in view.error


def test_bad_wishes_are_refused_at_once(
    trainings: Trainings, studio_home: Home, picture: Path, sdxl_folder: Path, sd_folder: Path
) -> None:
    def refused(lesson: Lesson, model: str = sdxl_folder.name) -> str:
        with pytest.raises(StudioError) as caught:
            trainings.start("ann", lesson, model=model)
        return str(caught.value)

    assert "letters, digits" in refused(Lesson(picture, "A [v]", "../mine"))
    for name in ("con", "NUL.v2", "mine."):
        assert "Windows" in refused(Lesson(picture, "A [v]", name))
    assert "prompt is empty" in refused(Lesson(picture, " ", "mine"))
    broken = picture.with_name("broken.png")
    broken.write_bytes(b"no picture")
    assert "cannot be read as a picture" in refused(Lesson(broken, "A [v]", "mine"))
    taken = next(iter(studio_home.loras())).path.stem
    assert "choose another name" in refused(Lesson(picture, "A [v]", taken.upper()))
    assert "no map of its content blocks" in refused(Lesson(picture, "A [v]", "mine"), str(sd_folder))
    assert trainings.views("ann") == []


@pytest.fixture
def held(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[list[str], threading.Semaphore]]:
    """The names of those that began; each ends when the semaphore is released."""
    began: list[str] = []
    go = threading.Semaphore(0)

    def train(task: _Task) -> None:
        began.append(task.lesson.name)
        go.acquire()
        with trainings._changed:
            task.view = replace(task.view, state=JobState.DONE)

    monkeypatch.setattr(trainings, "_train", train)
    yield began, go
    go.release(1000)


def test_owners_take_turns_and_each_may_have_few_waiting(
    trainings: Trainings, held: tuple[list[str], threading.Semaphore], picture: Path, sdxl_folder: Path
) -> None:
    began, go = held

    def ask(owner: str, name: str) -> int:
        return trainings.start(owner, Lesson(picture, "A [v]", name), model=sdxl_folder.name)

    def wait_for(count: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(began) < count and time.monotonic() < end:
            time.sleep(0.01)

    ask("ann", "a0")
    wait_for(1)
    for number in range(1, MOST_QUEUED + 1):
        last = ask("ann", f"a{number}")
    with pytest.raises(RequestError, match=f"{MOST_QUEUED} of your trainings wait already, and no more may"):
        ask("ann", "more")
    ask("ben", "b0")
    ask("ben", "b1")
    assert [view.position for view in trainings.views("ben")] == [3, 1]
    assert [view.position for view in trainings.views("ann")] == [7, 6, 5, 4, 2, 0]
    assert trainings.cancel(last, "ann")
    ask("ann", "more")
    for count in range(2, 9):
        go.release()
        wait_for(count)
    assert began == ["a0", "b0", "a1", "b1", "a2", "a3", "a4", "more"]


def test_nobody_learns_what_others_are_about_to_train(
    trainings: Trainings,
    held: tuple[list[str], threading.Semaphore],
    studio_home: Home,
    picture: Path,
    sdxl_folder: Path,
) -> None:
    """A name that another owner waits for is refused in the words of one that is in the library."""
    trainings.start("ann", Lesson(picture, "A [v]", "secret"), model=sdxl_folder.name)
    said = []
    for name in ("secret", next(iter(studio_home.loras())).path.stem):
        with pytest.raises(RequestError) as caught:
            trainings.start("ben", Lesson(picture, "A [v]", name), model=sdxl_folder.name)
        said.append(str(caught.value).replace(name, "…"))
    assert said == ["the name '…' cannot be had; choose another name"] * 2


def test_the_process_ends_with_the_studio(studio_home: Home, picture: Path, sdxl_folder: Path) -> None:
    room = Trainings(studio_home)
    id = room.start("ann", Lesson(picture, "A [v]", "mine", steps=100_000, size=32), model=sdxl_folder.name)
    until(room, id, lambda view: view.state is JobState.RUNNING)
    room.close()
    view = room.view(id, "ann")
    assert view is not None
    assert view.state is JobState.CANCELLED
    assert not (studio_home.path / "loras" / "mine.safetensors").exists()
    with pytest.raises(RequestError, match="empty"):
        room.start("ann", Lesson(picture, "", "mine"), model=sdxl_folder.name)
