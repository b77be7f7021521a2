"""The command line's run: pictures are told as they finish, each fails alone, and Ctrl+C keeps what is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import Finished, Request, StudioPipeline
from pipelines.errors import RequestError
from studio.pictures.metadata import Setup
from studio.rendering import saver
from studio.rendering.once import Drive, Outcome, Picture, Saving
from studio.rendering.runner import Runner
from studio.terminal.exits import INTERRUPTED, OK, SOME_FAILED
from studio.terminal.progress import Teller

BAD = 666
"""The seed of the picture that something is wrong with."""


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(sdxl_folder)


class Told:
    """What a run has told: the files' names, in order."""

    def __init__(self, pipe: StudioPipeline, folder: Path) -> None:
        self._pipe, self._folder = pipe, folder
        self.files: list[str] = []

    def drive(self, *jobs: tuple[int, int], width: int = 32) -> Outcome:
        """jobs: seed and steps. width: of the last one."""
        asked = [
            Picture(
                Request(
                    "a fox", seed=seed, steps=steps, width=width if place == len(jobs) else 32, height=32
                ),
                f"line {place}",
                self._folder / f"{seed}.png",
            )
            for place, (seed, steps) in enumerate(jobs, 1)
        ]
        drive = Drive(
            self._pipe,
            asked,
            Saving({}, Setup()),
            teller=Teller(quiet=True),
            on_file=lambda file: self.files.append(file.name),
        )
        return drive.run(slow=False)


@pytest.fixture
def told(pipe: StudioPipeline, tmp_path: Path) -> Told:
    return Told(pipe, tmp_path)


def test_files_are_told_in_the_order_they_finish_and_kept_by_their_places(told: Told) -> None:
    outcome = told.drive((1, 6), (2, 2), (3, 4))
    assert told.files == ["2.png", "3.png", "1.png"]
    assert [outcome.finished[place].record.seed for place in range(3)] == [1, 2, 3]
    assert all(picture.file.exists() for picture in outcome.finished.values())
    assert outcome.code == OK


def test_a_picture_that_cannot_be_saved_fails_alone(
    told: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = saver.save_picture

    def faulty(image: Any, file: Path, **options: Any) -> Path:
        if options["record"].seed == BAD:
            raise KeyError("x")
        return save(image, file, **options)

    monkeypatch.setattr(saver, "save_picture", faulty)
    outcome = told.drive((1, 2), (BAD, 2), (2, 2))
    assert told.files == ["1.png", "2.png"]
    assert outcome.failed[1].startswith("line 2: the picture could not be saved: KeyError")
    assert outcome.failed[1] in capsys.readouterr().err
    assert outcome.code == SOME_FAILED


def test_a_request_that_cannot_be_rendered_is_refused_before_any_work(told: Told, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="line 2: width=33 "):
        told.drive((1, 2), (2, 2), width=33)
    assert not list(tmp_path.glob("*.png"))


def test_ctrl_c_keeps_what_is_finished_and_told_nobody_yet(
    told: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Runner.step
    finished = 0

    def stopped(self: Runner[int]) -> Any:
        nonlocal finished
        if finished:
            raise KeyboardInterrupt
        found = step(self)
        finished += sum(isinstance(event, Finished) for _, event in found)
        return found

    monkeypatch.setattr(Runner, "step", stopped)
    outcome = told.drive((1, 2), (2, 9))
    assert told.files == ["1.png"]
    assert outcome.code == INTERRUPTED
    assert "interrupted; 1 picture of 2 finished and kept" in capsys.readouterr().err
