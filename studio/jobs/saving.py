"""Where the web's pictures lie: those that are kept in the day's folder, those that are only looked at in another."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from pipelines.home import Home
from studio.jobs.queue import LIVE, Task
from studio.pictures.files import Sheet, plan_files
from studio.rendering.saver import Made


def live_folder(home: Home) -> Path:
    """Where pictures lie that are looked at and not kept."""
    return home.cache / "live"


def file_of(task: Task, made: Made, home: Home) -> Path:
    """Where a picture is to be written. Numbers go on from the highest that is on the disk, so one at a time."""
    job, record = task.work.job, made.record
    if job.kind == LIVE:
        return live_folder(home) / f"{job.id}-{task.index}.png"
    sheet = Sheet(record.seed, made.request.prompt, made.request.composer.name, record.model)
    [file] = plan_files(None, home.outputs / date.today().isoformat(), [sheet], force=False)
    return file
