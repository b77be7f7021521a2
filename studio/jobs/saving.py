"""Finished pictures go to the disk in a thread of their own, beside the steps: the file first, then its row."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from PIL import Image

from pipelines import Record, Request
from pipelines.faults import own_error
from pipelines.home import Home
from studio.jobs.queue import LIVE, Task
from studio.pictures.files import Sheet, plan_files
from studio.pictures.metadata import Setup, save_picture

MOST_PENDING = 16
"""Finished pictures that may wait for the disk before rendering waits for them."""


@dataclass(frozen=True)
class Made:
    """A finished picture and what is written with it. adapters: name -> file."""

    task: Task
    image: Image.Image
    request: Request
    record: Record
    adapters: dict[str, Path]
    setup: Setup


class Saver:
    """done: is told the picture and its file, failed: the picture and why; both on the saver's thread."""

    def __init__(
        self, home: Home, done: Callable[[Made, Path], None], failed: Callable[[Task, str], None]
    ) -> None:
        self._home = home
        self._done = done
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._pending: deque[Future[None]] = deque()

    def take(self, made: Made) -> None:
        """Hands a picture over; waits where the disk cannot keep up."""
        self._pending.append(self._thread.submit(self._save, made))
        while self._pending and (self._pending[0].done() or len(self._pending) > MOST_PENDING):
            wait([self._pending.popleft()])

    def settle(self) -> None:
        """Returns when all that was handed over is on the disk."""
        wait(self._pending)

    def close(self) -> None:
        """Returns when all is on the disk."""
        self._thread.shutdown(wait=True)

    def _save(self, made: Made) -> None:
        """Whatever goes wrong is of this picture alone; nothing is raised."""
        file = None
        try:
            file = save_picture(
                made.image,
                self._file(made),
                request=made.request,
                record=made.record,
                adapters=made.adapters,
                setup=made.setup,
            )
            self._done(made, file)
        except Exception as error:
            if file is not None:  # it lies there, but nobody can be told of it
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            self._failed(made.task, _why(error))

    def _file(self, made: Made) -> Path:
        job = made.task.work.job
        if job.kind == LIVE:
            return live_folder(self._home) / f"{job.id}-{made.task.index}.png"
        sheet = Sheet(made.record.seed, made.request.prompt, made.request.composer.name, made.record.model)
        [file] = plan_files(None, self._home.outputs / date.today().isoformat(), [sheet], force=False)
        return file


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        return (
            f"the picture could not be saved ({said}); make room on the disk, and let the studio write there"
        )
    return str(own_error(error, "the picture could not be saved"))


def live_folder(home: Home) -> Path:
    """Where pictures lie that are looked at and not kept."""
    return home.cache / "live"
