"""Jobs as their owners see them: what is stored, with what is in the making laid over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.home import Home
from studio.jobs.job import GalleryPicture, Job, JobState, JobView, PictureRow, PictureView
from studio.jobs.queue import Task, Work
from studio.terminal.progress import duration


def job_view(
    job: Job, rows: Sequence[PictureRow], work: Work | None, position: int, loading: str, home: Home
) -> JobView:
    """work: what of it is not over, None where nothing is. loading: what its model is doing, "" when ready."""
    tasks = work.tasks if work is not None else {}
    pictures = tuple(_picture_view(row, tasks.get(row.index), home) for row in rows)
    seconds = work.seconds_left if work is not None else None
    records = [picture.record for picture in pictures if picture.record is not None]
    return JobView(
        id=job.id,
        kind=job.kind,
        title=job.title,
        model=job.model,
        state=job.state,
        position=position,
        message=_message(job, pictures, position, loading, seconds),
        error=job.error,
        created=job.created,
        ended=job.ended,
        pictures=pictures,
        seconds_left=seconds,
        unet_rows=sum(record["unet_rows"] + record["shallow_rows"] for record in records),
        settings=job.settings,
        vae=job.vae,
    )


def gallery_picture(row: PictureRow, home: Home) -> GalleryPicture:
    assert row.file is not None
    assert row.record is not None
    return GalleryPicture(
        job=row.job,
        index=row.index,
        label=row.label,
        file=located(row.file, home),
        prompt=str(row.draft.get("prompt", "")),
        draft=row.draft,
        record=row.record,
        ended=row.ended or 0.0,
    )


def stored(file: Path, home: Home) -> str:
    """A file as the store names it: from the home's folder where it lies inside, so that a home can be moved."""
    return str(file.relative_to(home.path)) if file.is_relative_to(home.path) else str(file)


def located(file: str, home: Home) -> Path:
    """The other way."""
    return home.path / file


def _picture_view(row: PictureRow, task: Task | None, home: Home) -> PictureView:
    steps = (0, 0) if task is None else (task.step, task.count)
    if row.state is JobState.DONE and row.record is not None:
        steps = (row.record["executed_steps"], row.record["executed_steps"])
    return PictureView(
        index=row.index,
        label=row.label,
        prompt=str(row.draft.get("prompt", "")),
        state=row.state,
        seed=int(row.draft["seed"]),
        step=steps[0],
        count=steps[1],
        file=None if row.file is None else located(row.file, home),
        preview=None if task is None else task.preview,
        record=row.record,
        error=row.error,
    )


def _message(
    job: Job, pictures: Sequence[PictureView], position: int, loading: str, seconds: float | None
) -> str:
    done = sum(picture.state is JobState.DONE for picture in pictures)
    of = f"{done} of {len(pictures)} picture{'' if len(pictures) == 1 else 's'}"
    match job.state:
        case JobState.QUEUED:
            return f"waiting, number {position} in the queue" if position else "waiting"
        case JobState.RUNNING:
            if loading:
                return loading
            left = "" if seconds is None else f", about {duration(seconds)} left"
            return f"{of} done{left}"
        case JobState.CANCELLED:
            return f"stopped; {of} finished and kept"
        case JobState.FAILED:
            failed = sum(picture.state is JobState.FAILED for picture in pictures)
            return f"{of} done, {failed} failed"
    return f"{of} done"
