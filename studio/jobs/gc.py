"""`lora-studio gc`: what no job needs any more. Pictures are kept unless it is said that they should go."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import SetupError
from pipelines.home import Home
from studio.jobs.inputs import inputs_folder
from studio.jobs.lock import HomeLock
from studio.jobs.saving import live_folder
from studio.jobs.store import Store
from studio.jobs.views import located
from studio.terminal.progress import Teller

DAY = 86_400.0


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """Deletes, and says what on stdout; 0. Raises SetupError while a server works in the home."""
    if args.pictures and args.older_than is None:
        raise SetupError("--pictures needs --older-than DAYS, so that not all of them go by mistake")
    if args.older_than is not None and args.older_than < 0:
        raise SetupError(f"--older-than {args.older_than} must be 0 or more days")
    if not home.database.exists():
        teller.say(f"no jobs in {home.path}, so there is nothing to delete")
        return 0
    freed = 0
    with HomeLock(home):
        store = Store(home.database)
        try:
            if args.older_than is not None:
                freed += _forget(store, home, time.time() - args.older_than * DAY, args)
            for file in _needless(store, home):
                freed += _delete(file, args.dry_run)
        finally:
            store.close()
    teller.say(f"{freed / 2**20:.1f} MB {'would be' if args.dry_run else 'were'} freed")
    return 0


def _forget(store: Store, home: Home, before: float, args: Namespace) -> int:
    """Jobs that ended before, and their pictures where asked; the bytes of those."""
    freed = 0
    for job in store.ended_before(before):
        print(f"job {job.id}  {job.title}")
        if args.pictures:
            files = [located(row.file, home) for row in store.pictures_of(job.id) if row.file is not None]
            freed += sum(_delete(file, args.dry_run) for file in files)
        if not args.dry_run:
            store.delete(job.id)
    return freed


def _needless(store: Store, home: Home) -> Iterator[Path]:
    """Previews, pictures that were only looked at, and initial images that no job names."""
    for folder in (home.cache / "previews", live_folder(home)):
        yield from (file for file in folder.rglob("*") if file.is_file())
    named = {str(draft.get("init_image")) for draft in store.drafts()}
    inputs = inputs_folder(home)
    yield from (file for file in inputs.glob("*") if file.is_file() and str(file) not in named)


def _delete(file: Path, dry_run: bool) -> int:
    if not file.exists():
        return 0
    size = file.stat().st_size
    print(file)
    if not dry_run:
        file.unlink(missing_ok=True)
    return size
