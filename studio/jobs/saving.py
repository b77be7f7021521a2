"""Where the web's pictures are written: into the day's folder, or, if they are not kept, into a folder of the cache.

A server can be killed after a picture's file is written and before that is noted. `left_by` finds such a file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from pipelines.home import Home
from studio.jobs.queue import LIVE, Task
from studio.pictures.files import Sheet, plan_files
from studio.pictures.identity import record_if_made_by
from studio.rendering.saver import Made

MOST_LOOKED_AT = 32
"""Most files of a picture's seed that are looked at."""


def live_folder(home: Home) -> Path:
    """The folder of pictures that are shown but not kept."""
    return home.cache / "live"


def file_of(task: Task, made: Made, home: Home) -> Path:
    """The file to write a picture to. Its number follows the highest one on the disk: write it before the next call.
    Raises NotADirectoryError where something else is in the folder's place."""
    job, record = task.work.job, made.record
    if job.kind == LIVE:
        return live_folder(home) / f"{job.id}-{task.index}.png"
    sheet = Sheet(record.seed, made.request.prompt, made.request.composer.name, record.model)
    folder = home.outputs / date.today().isoformat()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    [file] = plan_files(None, folder, [sheet], force=False)
    return file


def left_by(
    task: Task, home: Home, model_hash: str, is_noted: Callable[[Path], bool]
) -> tuple[Path, Mapping[str, Any]] | None:
    """The file and record of a picture that was written and never noted; None where there is none.

    task: with its resolved request. is_noted: whether a file belongs to a picture of a job.
    """
    request = task.request
    if request is None or task.work.job.kind == LIVE:
        return None
    for file in _of_seed(request.seed, task.work.job.created, home):
        if not is_noted(file) and (record := record_if_made_by(file, request, model_hash)) is not None:
            return file, record
    return None


def _of_seed(seed: int | None, since: float, home: Home) -> Iterator[Path]:
    """The files of the days' folders that were written since then and say this seed in their names, newest first."""
    found: list[tuple[float, Path]] = []
    with suppress(OSError):
        first = date.fromtimestamp(since).isoformat()
        for folder in home.outputs.iterdir():
            if first <= folder.name <= date.today().isoformat() and folder.is_dir():
                found += [(file.stat().st_mtime, file) for file in folder.glob(f"*_{seed}.png")]
    newest = sorted(found, reverse=True)[:MOST_LOOKED_AT]
    return (file for written, file in newest if written >= since)
