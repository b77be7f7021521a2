"""The worker: the functions by which everybody talks to the one thread that owns the device.

    submit -> gate -> SQLite -> [queue] -> session of the model in turn -> picture on the disk -> its row

Pictures of all owners share the session's UNet calls.
"""

from __future__ import annotations

import random
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pipelines import StudioError, StudioPipeline
from pipelines.errors import RequestError, SetupError
from pipelines.home import Home
from pipelines.home.settings import Roots
from pipelines.request import SEEDS
from studio.drafts.draft import Draft, placed
from studio.drafts.entries import plain_draft
from studio.jobs.calls import Calls
from studio.jobs.discretion import without_places
from studio.jobs.gate import ModelKey, Trust, model_key
from studio.jobs.health import Health
from studio.jobs.inputs import with_kept_input
from studio.jobs.job import AtWork, GalleryPicture, Job, JobHead, JobState, JobView, ModelState
from studio.jobs.ledger import Ledger, log_error
from studio.jobs.previews import Previews
from studio.jobs.queue import LIVE, Task, Work
from studio.jobs.rounds import Rounds
from studio.jobs.saving import live_folder
from studio.jobs.shelves import Shelves
from studio.jobs.store import NewPicture, Store
from studio.jobs.views import gallery_picture, job_head, job_view, located, picture_view, stored
from studio.library.models import ModelEntry, list_models
from studio.library.scan import Library
from studio.rendering.machine import MachineFault, machine_faults
from studio.rendering.opening import Opening
from studio.rendering.saver import Saver

T = TypeVar("T")

MOST_LIVE = 4
"""Most live jobs of one owner at a time. When another one comes, the oldest is stopped."""
MOST_WAITING = 20_000
"""Most unfinished pictures of one owner."""
MOST_SEEN = 500
"""Most pictures that one look at a job returns."""


class Worker:
    """Renders the jobs of all owners. Safe for several threads; a home has one at a time (see `HomeLock`).

    opening: device, precision and limits for all models; its `source` is ignored. trust: what jobs may name.
    """

    def __init__(self, home: Home, *, opening: Opening | None = None, trust: Trust | None = None) -> None:
        self.home = home
        self.trust = trust or Trust()
        self.library = Library(lambda: self.home)
        home.made(home.path)
        self._store = Store(home.database)
        self._previews = Previews(home)
        self._ledger = Ledger(home, self._store, self._previews)
        self._queue, self._changed = self._ledger.queue, self._ledger.changed
        self._saver = Saver(self._ledger.note)
        self._calls = Calls()
        self._coming: Counter[str] = Counter()  # pictures of each owner that are being queued
        self._shelves = Shelves(lambda: self.home, self.trust)
        self._rounds = Rounds(
            lambda: self.home,
            self._ledger,
            self._calls,
            self._saver,
            self._previews,
            self._shelves,
            opening=opening or Opening(),
            trust=self.trust,
        )

    def start(self) -> None:
        """Takes up the jobs that an earlier server left, and begins to work. Raises MachineFault where the database
        cannot be written."""
        self._store.recover(interrupted=True)
        self._store.delete_kind(LIVE)
        shutil.rmtree(live_folder(self.home), ignore_errors=True)
        for job in self._store.unfinished():
            try:
                self._ledger.take_up(job)
            except MachineFault:
                raise
            except Exception as error:  # of this job alone; the others begin
                log_error(error)
        self._rounds.start()

    @property
    def running(self) -> bool:
        return self._rounds.running

    def close(self) -> None:
        """Stops before the next UNet call. Finished pictures are kept; the other ones are drawn after the next
        start."""
        self._rounds.stop()
        self._saver.close()
        self._calls.refuse("the studio was closed")
        with suppress(StudioError):  # else, the next start finds out what was in the making
            self._store.recover(interrupted=False)
        with suppress(Exception):
            self._store.close()
        self._previews.close()

    # -- asking ------------------------------------------------------------------------------------------

    def submit(
        self,
        owner: str,
        drafts: Sequence[Draft],
        *,
        model: str | None = None,
        vae: str | None = None,
        kind: str = "compose",
        title: str = "",
        labels: Sequence[str] = (),
        settings: Mapping[str, object] | None = None,
    ) -> str:
        """Asks for pictures, one for each draft; returns the job's id at once.

        model: None is the model of config.toml, else the built-in one. labels: of the pictures, in order.
        kind: LIVE pictures come first and are not kept. settings: kept with the job; "before", the weights of the mix
        before it was normalised, is also noted in the pictures' records. Raises StudioError, and then nothing is
        queued.
        """
        with self._room_for(len(drafts), owner):
            return self._queued(owner, drafts, model, vae, kind, title, labels, settings or {})

    @contextmanager
    def _room_for(self, count: int, owner: str) -> Iterator[None]:
        """While the block runs, `count` pictures count as the owner's unfinished ones. Raises RequestError where that
        makes too many."""
        with self._changed:
            waiting = self._queue.waiting_of(owner) + self._coming[owner]
            if waiting + count > MOST_WAITING:
                raise RequestError(
                    f"{waiting} of your pictures are not done yet, and {count} more would be more than "
                    f"{MOST_WAITING}; wait for some, stop a job, or ask for fewer"
                )
            self._coming[owner] += count
        try:
            yield
        finally:
            with self._changed:
                self._coming -= Counter({owner: count})

    def _queued(
        self,
        owner: str,
        drafts: Sequence[Draft],
        model: str | None,
        vae: str | None,
        kind: str,
        title: str,
        labels: Sequence[str],
        settings: Mapping[str, object],
    ) -> str:
        key = model_key(model, vae, self.home, self.trust)
        seeded = [_seeded(draft) for draft in drafts]
        shelf = self._shelves.checked(seeded, key, self._rounds.facts(key))
        self._refuse_too_large(seeded, key)
        with self._storing():
            kept = [with_kept_input(draft, self.home) for draft in seeded]
            named = [*labels, *[""] * len(kept)]
            job = self._store.add(
                secrets.token_hex(8),
                owner,
                [NewPicture(label, plain_draft(draft)) for label, draft in zip(named, kept, strict=False)],
                kind=kind,
                title=title or str(kept[0].values.get("prompt", ""))[:80],
                model=key.source,
                vae=key.vae,
                settings=settings,
            )
        work = Work(job, key, shelf=shelf)
        work.add(Task(work, place, named[place], draft) for place, draft in enumerate(kept))
        with self._changed:
            self._queue.add(work)
            if kind == LIVE:
                with suppress(StudioError):  # the new one is stored, so it is not refused
                    self._forget_old_live(owner)
            self._ledger.tell()
        return job.id

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """While the block runs, a job is put on the disk. Raises MachineFault where it cannot be; nothing is queued
        then, and the fault is told to everybody."""
        try:
            with machine_faults(writing=False):
                yield
        except MachineFault as fault:
            self._ledger.faults.note(fault)
            self._ledger.tell()
            raise MachineFault(f"nothing was queued: {fault}, then ask again") from fault

    def _refuse_too_large(self, drafts: Sequence[Draft], key: ModelKey) -> None:
        """Raises RequestError for a size that memory cannot hold. Nothing is refused where the model is not loaded."""
        needs = self._rounds.needs(key)
        sizes = {
            (width, height, "init_image" in draft.images): draft.where
            for draft in drafts
            if isinstance(width := draft.values.get("width"), int)
            and isinstance(height := draft.values.get("height"), int)
        }
        for (width, height, encoding), where in sizes.items():
            try:
                if needs is not None:
                    needs.refuse(width, height, encoding=encoding)
            except RequestError as error:
                raise placed(error, where) from error

    def _forget_old_live(self, owner: str) -> None:
        """Cancels all but the newest live jobs of an owner."""
        live = [work for work in self._queue.works.values() if work.priority and work.job.owner == owner]
        for work in sorted(live, key=lambda work: work.job.seq)[:-MOST_LIVE]:
            self.cancel(work.job.id, owner)

    def cancel(self, id: str, owner: str) -> bool:
        """Stops a job before its next UNet call; finished pictures stay. False: there is nothing to stop.

        When this returns, the stop is on the disk, so that no restart begins the job again.
        """
        with self._changed:
            work = self._queue.works.get(id)
            if work is None or work.job.owner != owner:
                return False
            self._rounds.cancel(self._ledger.stop(work))
            self._ledger.tell()
            return True

    def delete(self, id: str, owner: str) -> bool:
        """Forgets a job, and deletes its pictures. False: the owner has no such job."""
        if self._owned(id, owner) is None:
            return False
        self.cancel(id, owner)
        with self._changed:
            for file in self._store.files_of(id):
                self._delete_file(file)
            self._store.delete(id)
            self._ledger.tell()
        return True

    def delete_picture(self, job: str, index: int, owner: str) -> bool:
        """Deletes one finished picture. False: the owner has no such picture."""
        if self._owned(job, owner) is None:
            return False
        with self._changed:
            rows = self._store.slice_of(job, index, 1, records=False)
            if not rows or rows[0].index != index or not rows[0].state.over:
                return False
            self._delete_file(rows[0].file)
            self._store.delete_picture(job, index)
            if not self._store.tallies([job])[job].total:
                self._store.delete(job)
            self._ledger.tell()
        return True

    def call(
        self, work: Callable[[StudioPipeline], T], *, model: str | None = None, vae: str | None = None
    ) -> Future[T]:
        """Runs `work` with a model, on the worker's thread, between two rounds; rendering waits for it.

        This is for work on the device that is not a picture, such as frequency profiles. `work` must unload the
        adapters that it loads. Raises StudioError for a model that cannot be had.
        """
        key = model_key(model, vae, self.home, self.trust)
        with self._changed:
            future = self._calls.add(key, work)
            self._ledger.tell()
        return future

    def load(self, model: str | None = None) -> Future[None]:
        """Loads a model before any job needs it. Raises StudioError for a model that cannot be had."""
        return self.call(lambda pipe: None, model=model)

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """A number that rises with every change that users can see."""
        return self._ledger.version

    def wait(self, version: int, timeout: float) -> int:
        """Waits until the version is another one, or for `timeout` seconds; returns the version then."""
        with self._changed:
            self._changed.wait_for(lambda: self._ledger.version != version, timeout)
            return self._ledger.version

    def view(
        self,
        id: str,
        owner: str,
        *,
        first: int = 0,
        most: int = MOST_SEEN,
        latest: bool = False,
        records: bool = True,
    ) -> JobView | None:
        """One job; None where the owner has no such job. For some seconds after a look, previews are drawn.

        It has at most `most` pictures, from place `first` on; latest: instead, those up to the last one that was begun.
        records: False leaves out the pictures' records.
        """
        job = self._owned(id, owner)
        if job is None:
            return None
        self._previews.watch(id)
        if latest:
            first = max(self._store.last_begun(id) + 1 - most, 0)
        rows = self._store.slice_of(id, first, most, records=records)
        [head] = self._heads([job])
        with self._changed:
            work = self._queue.works.get(id)
            tasks = work.tasks if work is not None else {}
            seen = [picture_view(row, tasks.get(row.index), self.home) for row in rows]
        pictures = [replace(one, error=self.discreet(one.error)) if one.error else one for one in seen]
        return job_view(head, job, pictures)

    def head(self, id: str, owner: str) -> JobHead | None:
        """One job without its pictures; None where the owner has no such job."""
        job = self._owned(id, owner)
        return self._heads([job])[0] if job is not None else None

    def heads(self, owner: str, *, limit: int = 50, before: str | None = None) -> list[JobHead]:
        """An owner's jobs, the newest first, without their pictures; `before`: only those older than that one."""
        return self._heads(self._store.jobs_of(owner, limit, before))

    def owns(self, id: str, owner: str) -> bool:
        """Whether an owner has a job of that id."""
        return self._owned(id, owner) is not None

    def unfinished(self, owner: str, kind: str | None = None) -> list[str]:
        """An owner's jobs that are not over, the oldest first: of one kind, or of any."""
        with self._changed:
            found = [work.job for work in self._queue.works.values() if work.job.owner == owner]
        return [job.id for job in sorted(found, key=lambda job: job.seq) if kind in (None, job.kind)]

    def at_work(self, id: str, owner: str) -> AtWork | None:
        """The first picture of a job that is in the making. For some seconds after a look, previews are drawn."""
        with self._changed:
            work = self._queue.works.get(id)
            if work is None or work.job.owner != owner:
                return None
            self._previews.watch(id)
            now = (task for task in work.tasks.values() if task.state is JobState.RUNNING)
            return next((AtWork(task.step, task.count, task.preview) for task in now), None)

    def pictures(
        self, owner: str, *, limit: int = 100, offset: int = 0, search: str = ""
    ) -> list[GalleryPicture]:
        """An owner's finished pictures, the newest first. search: words that draft or label must contain. Raises
        RequestError for a search that is too long, or takes too long."""
        rows = self._store.gallery(owner, limit, offset, search, without=(LIVE,))
        return [gallery_picture(row, self.home) for row in rows if row.file is not None]

    def is_of(self, file: Path, owner: str) -> bool:
        """Whether a file among the outputs is an owner's finished picture."""
        return owner in self._store.owners_of(stored(file, self.home))

    def discreet(self, text: str) -> str:
        """A message as clients may read it: without paths of this computer, unless jobs may name such paths."""
        return text if self.trust.paths else without_places(text, self.home)

    def busy(self, but: str) -> bool:
        """Whether anybody but this owner has a job that is not over."""
        with self._changed:
            return bool(self._calls) or any(work.job.owner != but for work in self._queue.works.values())

    def models(self) -> list[ModelEntry]:
        """The models that can be chosen by name."""
        return [replace(entry, base=self.discreet(entry.base)) for entry in list_models(self.home)]

    def health(self) -> Health:
        """What is wrong with the machine or the worker at present, if anything is."""
        health = self._ledger.faults.health
        return replace(health, fault=self.discreet(health.fault))

    def model_state(self) -> ModelState:
        """The model that is loaded, or being loaded."""
        state = self._rounds.state
        return replace(state, error=self.discreet(state.error), loading=self.discreet(state.loading))

    def add_folders(self, roots: Roots) -> None:
        """Adds folders to search from now on, and writes them into config.toml. Raises SetupError."""
        found = self.home.add_folders(roots)
        self.home = replace(found, settings=replace(found.settings, model=self.home.settings.model))

    # -- small things ------------------------------------------------------------------------------------

    def _owned(self, id: str, owner: str) -> Job | None:
        job = self._store.job(id)
        return job if job is not None and job.owner == owner else None

    def _heads(self, jobs: Sequence[Job]) -> list[JobHead]:
        tallies = self._store.tallies([job.id for job in jobs])
        with self._changed:
            positions = self._queue.positions() if jobs else {}
            state, health = self._rounds.state, self._ledger.faults.health
            heads = []
            for job in jobs:
                work = self._queue.works.get(job.id)
                loading = state.loading if work is not None and state.source == work.key.source else ""
                place = positions.get(job.id, 0)
                heads.append(job_head(job, tallies[job.id], work, place, loading, health))
        if self.trust.paths:
            return heads
        return [
            replace(head, error=self.discreet(head.error), message=self.discreet(head.message))
            for head in heads
        ]

    def _delete_file(self, file: str | None) -> None:
        """Raises SetupError where it cannot be deleted."""
        if file is None:
            return
        path = located(file, self.home)
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:  # something else is in its folder's place
            return
        except OSError as error:
            raise SetupError(
                f"{path} cannot be deleted ({error.strerror or error}); let the studio write there"
            ) from error


def _seeded(draft: Draft) -> Draft:
    """The draft with a seed, so that the picture stays the same after a restart."""
    if draft.seed is not None:
        return draft
    return draft.with_value("seed", random.randrange(SEEDS))
