"""Where the web's pictures are written: into the day's folder, or, if they are not kept, into a folder of the cache."""

from __future__ import annotations

import errno
import os
from datetime import date
from pathlib import Path

from pipelines.home import Home
from studio.jobs.queue import LIVE, Task
from studio.pictures.files import Sheet, plan_files
from studio.rendering.saver import Made


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
