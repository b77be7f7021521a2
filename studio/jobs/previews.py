"""Previews: small files that show pictures in the making, for jobs that somebody looks at. They take at most a fifth of
the time."""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from pipelines import Stepped
from pipelines.faults import forget_tensors
from pipelines.home import Home
from pipelines.home.files import write_whole
from studio.jobs.queue import Task

WATCHED = 5.0
"""Seconds for which previews are drawn after one look."""
REST = 4.0
"""The pause after a preview, as a multiple of the time that it took."""
LARGEST = 512
"""Pixels of a preview's longer side, at most."""
KEPT = 60.0
"""Seconds for which a file stays after a later one replaced it: a page may just be fetching it."""


class Previews:
    """Draws previews. Nothing here raises, since a preview is not worth a picture. Their files are named by job,
    picture and step, so that a browser never shows an old one. They are deleted soon after the picture is done."""

    def __init__(self, home: Home) -> None:
        self.folder = home.cache / "previews"
        shutil.rmtree(self.folder, ignore_errors=True)
        self._watched: dict[str, float] = {}
        self._next = 0.0
        self._drawn: dict[tuple[str, int], float] = {}
        self._lock = threading.Lock()
        self._old: deque[tuple[float, Path]] = deque()

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def watch(self, job: str) -> None:
        """Notes that somebody looks at this job."""
        self._watched[job] = time.monotonic()

    def draw(self, steps: Sequence[tuple[Task, Stepped]]) -> None:
        """Draws previews of the watched jobs' pictures, the ones without a fresh preview first, while time allows."""
        now = time.monotonic()
        wanted = [
            (task, event)
            for task, event in steps
            if event.step < event.count and now - self._watched.get(task.work.job.id, -WATCHED) < WATCHED
        ]
        for task, event in sorted(wanted, key=lambda pair: self._drawn.get(_key(pair[0]), 0.0)):
            began = time.monotonic()
            if began < self._next:
                return
            self._draw(task, event)
            ended = time.monotonic()
            self._drawn[_key(task)] = ended
            self._next = ended + REST * (ended - began)

    def _draw(self, task: Task, event: Stepped) -> None:
        file = self.folder / f"{task.work.job.id}-{task.index}-{event.step}.webp"
        try:
            image = event.preview()
            image.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR)
            write_whole(file, lambda path: image.save(path, format="WEBP", quality=80), force=True)
        except Exception as error:  # a lasting fault shows again when the picture itself is decoded and saved
            forget_tensors(error)
            return
        self._retire(task.preview)
        task.preview = file

    def drop(self, task: Task) -> None:
        """Forgets a picture that is done."""
        self._drawn.pop(_key(task), None)
        self._retire(task.preview)
        task.preview = None

    def _retire(self, file: Path | None) -> None:
        """Marks a replaced file for deletion some seconds later, and deletes those whose time has come."""
        now = time.monotonic()
        with self._lock:  # pictures are drawn on one thread and finished on another
            if file is not None:
                self._old.append((now + KEPT, file))
            while self._old and self._old[0][0] <= now:
                with suppress(Exception):
                    self._old.popleft()[1].unlink(missing_ok=True)


def _key(task: Task) -> tuple[str, int]:
    return (task.work.job.id, task.index)
