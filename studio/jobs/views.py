"""Jobs as their owners see them: what is stored, together with what is in the making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from pipelines.home import Home
from studio.jobs.health import Health
from studio.jobs.job import GalleryPicture, Job, JobHead, JobState, JobView, PictureRow, PictureView, Tally
from studio.jobs.queue import Task, Work
from studio.terminal.progress import duration


def job_head(
    job: Job, stored: Tally, work: Work | None, position: int, loading: str, health: Health
) -> JobHead:
    """The job without its pictures. stored: its pictures in numbers. work: its unfinished part; None where it is over.
    loading: how loading its model goes, "" when ready. health: of machine and worker."""
    tally, seconds = _with_steps(stored, work), work.seconds_left if work is not None else None
    return JobHead(
        id=job.id,
        kind=job.kind,
        title=job.title,
        model=job.model,
        state=job.state,
        position=position,
        message=_message(job, tally, position, loading, seconds, health),
        error=job.error,
        created=job.created,
        ended=job.ended,
        seconds_left=seconds,
        tally=tally,
    )


def job_view(head: JobHead, job: Job, pictures: Sequence[PictureView]) -> JobView:
    shared = {field.name: getattr(head, field.name) for field in fields(head)}
    return JobView(**shared, pictures=tuple(pictures), settings=job.settings, vae=job.vae)


def _with_steps(tally: Tally, work: Work | None) -> Tally:
    """The tally with the steps of pictures that are not done."""
    begun = [task for task in work.tasks.values() if task.count] if work is not None else []
    return replace(
        tally,
        step=tally.step + sum(task.step for task in begun),
        count=tally.count + sum(task.count for task in begun),
        known=tally.known + len(begun),
    )


def gallery_picture(row: PictureRow, home: Home) -> GalleryPicture:
    return GalleryPicture(
        job=row.job,
        index=row.index,
        label=row.label,
        file=located(row.file or "", home),
        prompt=str(row.draft.get("prompt", "")),
        draft=row.draft,
        record=row.record or {},
        ended=row.ended or 0.0,
    )


def stored(file: Path, home: Home) -> str:
    """A file as the store names it: relative to the home's folder where it lies inside, so that the home can be
    moved."""
    return file.relative_to(home.path).as_posix() if file.is_relative_to(home.path) else str(file)


def located(file: str, home: Home) -> Path:
    """The path of a file that the store names: the inverse of `stored`."""
    return home.path / file


def picture_view(row: PictureRow, task: Task | None, home: Home) -> PictureView:
    steps = (0, 0) if task is None else (task.step, task.count)
    if row.state is JobState.DONE:
        steps = (row.steps, row.steps)
    return PictureView(
        index=row.index,
        label=row.label,
        prompt=str(row.draft.get("prompt", "")),
        state=row.state,
        seed=seed if isinstance(seed := row.draft.get("seed"), int) else 0,
        step=steps[0],
        count=steps[1],
        file=None if row.file is None else located(row.file, home),
        preview=None if task is None else task.preview,
        record=row.record,
        error=row.error,
    )


def _message(
    job: Job, tally: Tally, position: int, loading: str, seconds: float | None, health: Health
) -> str:
    of = f"{tally.done} of {tally.total} picture{'' if tally.total == 1 else 's'}"
    if health.fault and not job.state.over:
        return f"{of} done, waiting {health.sentence}"
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
            return f"{of} done, {tally.by_state.get(JobState.FAILED, 0)} failed"
    return f"{of} done"
