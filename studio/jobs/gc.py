"""Deletes what no job needs any more. Finished pictures are kept unless their deletion is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from pipelines.home import Home
from studio.drafts.entries import PICTURES
from studio.jobs.inputs import inputs_folder
from studio.jobs.lock import HomeLock
from studio.jobs.saving import live_folder
from studio.jobs.store import Store
from studio.jobs.views import located

DAY = 86_400.0


def collect(
    home: Home, tell: Callable[[object], None], *, older_than: int | None, pictures: bool, dry_run: bool
) -> int:
    """Deletes what is not needed; returns the bytes freed. tell: called with each job and file that is deleted.

    older_than: days; forget jobs that ended longer ago. pictures: delete their pictures too. dry_run: delete nothing.
    Raises SetupError while a server runs in the home.
    """
    freed = 0
    with HomeLock(home), closing(Store(home.database)) as store:
        ended = [] if older_than is None else store.ended_before(time.time() - older_than * DAY)
        for job in ended:
            tell(f"job {job.id}  {job.title}")
            if pictures:
                freed += sum(_delete(file, tell, dry_run) for file in _pictures_of(job.id, store, home))
            if not dry_run:
                store.delete(job.id)
        for file in _needless(store, home):
            freed += _delete(file, tell, dry_run)
    return freed


def _pictures_of(job: str, store: Store, home: Home) -> list[Path]:
    return [located(row.file, home) for row in store.pictures_of(job) if row.file is not None]


def _needless(store: Store, home: Home) -> Iterator[Path]:
    """Previews, pictures of live jobs, and initial images and masks that no job uses."""
    for folder in (home.cache / "previews", live_folder(home)):
        yield from (file for file in folder.rglob("*") if file.is_file())
    named = {str(draft.get(name)) for draft in store.drafts() for name in PICTURES}
    inputs = inputs_folder(home)
    yield from (file for file in inputs.glob("*") if file.is_file() and str(file) not in named)


def _delete(file: Path, tell: Callable[[object], None], dry_run: bool) -> int:
    if not file.exists():
        return 0
    size = file.stat().st_size
    tell(file)
    if not dry_run:
        file.unlink(missing_ok=True)
    return size
