"""B-LoRA training for the web. Each run has a process of its own, one at a time, while rendering goes on.

Training needs a process of its own because it needs the model without adapters, and because a process can be stopped at
any moment.
"""

from __future__ import annotations

import itertools
import multiprocessing
import re
import shutil
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from composers.shown import shown
from pipelines import StudioError
from pipelines.errors import RequestError
from pipelines.faults import own_error
from pipelines.home import Home
from pipelines.home.files import check_name, write_whole
from pipelines.training.run import state_file
from pipelines.turns import Turns
from studio.drafts.input_images import read_input
from studio.jobs.discretion import without_places
from studio.jobs.gate import ModelKey, Trust, model_key
from studio.jobs.job import JobState
from studio.jobs.owner import folder_of
from studio.rendering.machine import machine_faults
from studio.rendering.opening import Opening
from studio.rendering.saver import as_exception

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
STOPPING = 10.0
"""Seconds that the process of a training has to end, once it should."""
MOST_QUEUED = 5
"""Most trainings of one owner that may wait."""


@dataclass(frozen=True)
class Lesson:
    """What is to be trained.

    picture: the one that is learned. prompt: names it, as in "A [v]". name: of the adapter that is made.
    steps, rank, size (pixels): None takes the recipe's value (see `pipelines.blora.default_recipes`).
    """

    picture: Path
    prompt: str
    name: str
    steps: int | None = None
    rank: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class TrainingView:
    """One training as its owner sees it. file: the adapter; None until it is done. sample: a picture that shows what
    the adapter has learned so far."""

    id: int
    name: str
    prompt: str
    model: str
    state: JobState
    position: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None
    sample: Path | None = None
    file: Path | None = None
    error: str = ""


@dataclass(frozen=True)
class _Report:
    """What the process reports: a step, the end, or what went wrong."""

    step: int = 0
    steps: int = 0
    loss: float | None = None
    sample: Path | None = None
    done: bool = False
    error: str = ""


@dataclass
class _Task:
    owner: str
    lesson: Lesson
    key: ModelKey
    out: Path
    view: TrainingView
    stop: bool = False
    first: tuple[int, float] | None = None
    """The first step that was reported, and when. The pace is counted from there: loading the model does not count."""


class Trainings:
    """The trainings of all owners. Safe for several threads. `close` ends the process and deletes sample pictures."""

    def __init__(self, home: Home, *, opening: Opening | None = None, trust: Trust | None = None) -> None:
        self._home = home
        self._opening = opening or Opening()
        self._trust = trust or Trust()
        self._folder = home.cache / "training"
        self._ids = itertools.count(1)
        self._tasks: dict[int, _Task] = {}
        self._turns = Turns()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, owner: str, lesson: Lesson, *, model: str | None = None) -> int:
        """Asks for a training; returns its id at once. Raises StudioError, and then nothing is queued."""
        from pipelines.blora.blora_training import mapped_blocks, require_peft
        from pipelines.blora.layouts import model_outline

        with self._changed:
            self._refuse_many(owner)
        require_peft()
        if not NAME.fullmatch(lesson.name):
            raise RequestError(
                f"name {shown(lesson.name)} must be letters, digits, dots, dashes and underscores, 64 at most"
            )
        try:
            check_name(Path(lesson.name), windows=True)  # files move between computers
        except OSError as error:
            raise RequestError(f"name {shown(lesson.name)}: {error.strerror}; take another one") from error
        if not lesson.prompt.strip():
            raise RequestError('the prompt is empty; name the picture, as in "A [v]"')
        key = model_key(model, None, self._home, self._trust)
        mapped_blocks(key.shown, model_outline(key.source, self._home)[1])
        read_input("picture", lesson.picture)
        out = self._home.made(self._home.path / "loras") / f"{lesson.name}.safetensors"
        with self._changed:
            self._refuse_many(owner)
            self._refuse_taken(lesson.name, out)
            id = next(self._ids)
            view = TrainingView(id, lesson.name, lesson.prompt, key.shown, JobState.QUEUED)
            kept = self._home.made(self._folder) / f"{id}-picture.png"
            with machine_faults():
                shutil.copyfile(lesson.picture, kept)  # an upload may be deleted before its turn comes
            lesson = replace(lesson, picture=kept)
            self._tasks[id] = _Task(owner, lesson, key, out, view)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="training", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return id

    def cancel(self, id: int, owner: str) -> bool:
        """Stops a training; nothing of it is kept. False: there is nothing to stop.

        When this returns, the process and what it has written are gone, unless that takes very long.
        """
        with self._changed:
            task = self._tasks.get(id)
            if task is None or task.owner != owner or task.view.state.over:
                return False
            task.stop = True
            if task.view.state is JobState.QUEUED:
                task.view = replace(task.view, state=JobState.CANCELLED)
                with suppress(OSError):
                    task.lesson.picture.unlink(missing_ok=True)
            self._changed.notify_all()
            self._changed.wait_for(lambda: task.view.state.over, STOPPING)
        return True

    def view(self, id: int, owner: str) -> TrainingView | None:
        """One training; None where the owner has no such training."""
        return next((view for view in self.views(owner) if view.id == id), None)

    def views(self, owner: str) -> list[TrainingView]:
        """An owner's trainings, the newest first."""
        with self._changed:
            places = {task.view.id: place for place, task in enumerate(self._in_order(), 1)}
            found = []
            for id, task in self._tasks.items():
                if task.owner == owner:
                    view = replace(task.view, position=places.get(id, 0))
                    found.append(view if self._trust.paths else self._discreet(view))
        return found[::-1]

    def _discreet(self, view: TrainingView) -> TrainingView:
        """The view as its owner may read it: its error without paths of this computer, unless jobs may name such
        paths."""
        model, error = without_places(view.model, self._home), without_places(view.error, self._home)
        return replace(view, model=model, error=error)

    def close(self) -> None:
        """Stops the training that runs, and forgets those that wait."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _refuse_many(self, owner: str) -> None:
        queued = sum(task.owner == owner for task in self._queued())
        if queued >= MOST_QUEUED:
            raise RequestError(
                f"{queued} of your trainings wait already, and no more may; wait until one begins, or stop one"
            )

    def _refuse_taken(self, name: str, out: Path) -> None:
        """Raises RequestError for a name that is taken. The message is always the same, so that nobody learns what
        others have asked for."""
        names = {entry.path.stem.casefold() for entry in self._home.loras()}
        names |= {task.lesson.name.casefold() for task in self._tasks.values() if not task.view.state.over}
        if name.casefold() in names or out.exists():
            raise RequestError(f"the name {name!r} cannot be had; choose another name")

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._queued())
                if self._closing:
                    return
                task = self._in_order()[0]
                self._turns.serve(task.owner, 0, 1.0)
                task.view = replace(task.view, state=JobState.RUNNING)
            try:
                self._train(task)
            except BaseException as error:  # the next training begins all the same
                why = str(own_error(as_exception(error), "the training could not be run"))
                self._settle(task, _Report(error=why))

    def _queued(self) -> list[_Task]:
        return [task for task in self._tasks.values() if task.view.state is JobState.QUEUED]

    def _in_order(self) -> list[_Task]:
        """The queued trainings in the order in which they will begin. Owners take turns; the trainings of one owner
        keep their order."""
        queued = self._queued()
        self._turns.among((task.owner, 0) for task in queued)
        nth: Counter[str] = Counter()
        places = []
        for task in queued:
            _, ahead, tick = self._turns.key(task.owner, 0)
            places.append((ahead + nth[task.owner], tick, task.view.id))
            nth[task.owner] += 1
        return [self._tasks[id] for *_, id in sorted(places)]

    def _train(self, task: _Task) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        samples = self._folder / folder_of(task.owner) / f"{task.view.id}"
        arguments = (theirs, self._home, replace(self._opening, source=task.key.source), task.lesson)
        process = context.Process(target=_work, args=(*arguments, task.out, samples), daemon=True)
        process.start()
        theirs.close()
        last = _Report()
        try:
            while not (task.stop or self._closing or last.done or last.error):
                if ours.poll(0.2):
                    last = ours.recv()
                    self._note(task, last)
        except EOFError:
            last = _Report(error="the training process ended by itself; is there enough memory?")
        finally:
            process.terminate()
            process.join(STOPPING / 2)
            process.kill()
            process.join()
            ours.close()
        self._settle(task, last)

    def _note(self, task: _Task, report: _Report) -> None:
        with self._changed:
            now = time.monotonic()
            left = None
            if task.first is None:
                task.first = (report.step, now)
            elif report.step > task.first[0]:
                pace = (now - task.first[1]) / (report.step - task.first[0])
                left = pace * (report.steps - report.step)
            if not (report.done or report.error):
                task.view = replace(
                    task.view,
                    step=report.step,
                    steps=report.steps,
                    loss=report.loss,
                    seconds_left=left,
                    sample=report.sample or task.view.sample,
                )

    def _settle(self, task: _Task, last: _Report) -> None:
        with self._changed:
            if last.done:
                view = replace(task.view, state=JobState.DONE, file=task.out)
            elif last.error:
                view = replace(task.view, state=JobState.FAILED, error=last.error)
            else:
                view = replace(task.view, state=JobState.CANCELLED)
            task.view = replace(view, seconds_left=None)
            scraps = [task.lesson.picture, *([] if last.done else [state_file(task.out)])]
            for scrap in scraps:
                with suppress(OSError):
                    scrap.unlink(missing_ok=True)
            self._changed.notify_all()


# -- in the process --------------------------------------------------------------------------------------


def _work(
    reports: Connection, home: Home, opening: Opening, lesson: Lesson, out: Path, samples: Path
) -> None:
    try:
        _learn(reports, home, opening, lesson, out, samples)
    except StudioError as error:
        reports.send(_Report(error=str(error)))
    except Exception as error:  # a fault of ours or of the device; its owner must see it
        traceback.print_exc()
        reports.send(_Report(error=f"training failed: {error or type(error).__name__}"))
    else:
        reports.send(_Report(done=True))


def _learn(
    reports: Connection, home: Home, opening: Opening, lesson: Lesson, out: Path, samples: Path
) -> None:
    from pipelines.blora.blora_training import train_blora
    from pipelines.blora.default_recipes import default_recipe
    from pipelines.training.run import TrainingProgress
    from studio.rendering.opening import open_pipeline

    pipe = open_pipeline(opening, home)
    recipe = default_recipe(pipe.model.unet)
    recipe = recipe.with_values(steps=lesson.steps, rank=lesson.rank, size=lesson.size)
    picture = read_input("picture", lesson.picture)

    def note(progress: TrainingProgress) -> None:
        sample = None
        if progress.sample is not None:
            sample = samples.with_name(f"{samples.name}-{progress.step}.png")
            _save(progress.sample, sample)
        reports.send(_Report(progress.step, progress.steps, progress.loss, sample))

    train_blora(pipe, picture, lesson.prompt, out, recipe=recipe, progress=note)
    preview = picture.copy()
    preview.thumbnail((512, 512), Image.Resampling.LANCZOS)
    _save(preview, out.with_suffix(".preview.png"))


def _save(image: Image.Image, file: Path) -> None:
    write_whole(file, lambda path: image.save(path, format="PNG"), force=True)
