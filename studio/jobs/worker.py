"""The worker: one thread that owns the device, and the calls by which everybody else talks to it.

    submit -> gate -> SQLite -> [queue] -> session of the model in turn -> picture on the disk -> its row

Pictures of all owners share the session's UNet calls. A model is drained before another is loaded; while jobs wait
for another one, the one at work takes no new pictures after TURN seconds.
"""

from __future__ import annotations

import random
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from pipelines import Event, Failed, Finished, Started, Stepped, StudioError, StudioPipeline
from pipelines.errors import ModelError
from pipelines.home import Home
from pipelines.home.settings import Roots
from pipelines.request import SEEDS, Facts
from studio.jobs.calls import Call, Calls
from studio.jobs.gate import ModelKey, Trust, check, find_model, model_key
from studio.jobs.inputs import with_kept_input
from studio.jobs.job import GalleryPicture, Job, JobState, JobView, ModelEntry, ModelState
from studio.jobs.ledger import Ledger
from studio.jobs.models import list_models
from studio.jobs.previews import Previews
from studio.jobs.queue import LIVE, Task, Work
from studio.jobs.resident import Resident
from studio.jobs.saving import Made, Saver, live_folder
from studio.jobs.store import NewPicture, Store
from studio.jobs.views import gallery_picture, job_view, located, stored
from studio.library.scan import Library
from studio.metadata import Setup
from studio.opening import Opening
from studio.recipe import Draft, placed, plain_draft
from studio.shelf import Shelf

TURN = 30.0
"""Seconds that a model goes on taking pictures while jobs wait for another one."""
PACE_MEMORY = 0.8
"""How much of a job's pace comes from before the last round."""

T = TypeVar("T")


class Worker:
    """Renders the jobs of everybody who asks. Safe for several threads; one for each home (see `HomeLock`).

    opening: device, precision and limits for all models; its `source` is not looked at.
    trust: what jobs may name.
    """

    def __init__(self, home: Home, *, opening: Opening | None = None, trust: Trust | None = None) -> None:
        self.home = home
        self.trust = trust or Trust()
        self.library = Library(lambda: self.home)
        self._opening = opening or Opening()
        home.made(home.path)
        self._store = Store(home.database)
        self._previews = Previews(home)
        self._ledger = Ledger(home, self._store, self._previews)
        self._queue, self._changed = self._ledger.queue, self._ledger.changed
        self._saver = Saver(home, self._ledger.saved, self._ledger.failed)
        self._gate = threading.Lock()
        self._closing = False
        self._calls = Calls()
        self._cancelled: list[Task] = []
        self._names: dict[ModelKey, dict[Path, str]] = {}
        self._resident: Resident | None = None
        self._facts: tuple[ModelKey, Facts] | None = None
        self._state = ModelState()
        self._others_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Takes up what was left, and begins."""
        self._store.recover(interrupted=True)
        self._store.delete_kind(LIVE)
        shutil.rmtree(live_folder(self.home), ignore_errors=True)
        for job in self._store.unfinished():
            self._ledger.take_up(job)
        self._thread.start()

    def close(self) -> None:
        """Stops before the next UNet call. What is finished is kept; the rest goes on at the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._saver.close()
        self._calls.refuse("the studio was closed")
        self._store.recover(interrupted=False)
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
        """Asks for pictures, one a draft; returns the job's id at once.

        model: None is the model of config.toml, else the built-in one. labels: of the pictures, in order.
        kind: LIVE pictures come first and are not kept. Raises StudioError, and then nothing is queued.
        """
        key = model_key(model, vae, self.home, self.trust)
        seeded = [_seeded(draft) for draft in drafts]
        shelf = self._shelf(key)
        facts = self._facts
        with self._gate:
            check(seeded, key, self.home, shelf, facts[1] if facts and facts[0] == key else None)
        kept = [with_kept_input(draft, self.home) for draft in seeded]
        named = [*labels, *[""] * len(kept)]
        with self._changed:
            job = self._store.add(
                secrets.token_hex(8),
                owner,
                [NewPicture(label, plain_draft(draft)) for label, draft in zip(named, kept, strict=False)],
                kind=kind,
                title=title or str(kept[0].values.get("prompt", ""))[:80],
                model=key.source,
                vae=key.vae,
                settings=settings or {},
            )
            work = Work(job, key, shelf=shelf)
            work.add(Task(work, place, named[place], draft) for place, draft in enumerate(kept))
            self._queue.add(work)
            self._ledger.tell()
        return job.id

    def cancel(self, id: str, owner: str) -> bool:
        """Stops a job before its next UNet call; finished pictures stay. False where there is nothing to stop."""
        with self._changed:
            work = self._queue.works.get(id)
            if work is None or work.job.owner != owner:
                return False
            waiting = list(work.waiting)
            work.waiting.clear()
            self._ledger.end(waiting, JobState.CANCELLED)
            self._cancelled += work.tasks.values()
            self._ledger.tell()
            return True

    def delete(self, id: str, owner: str) -> bool:
        """Forgets a job, and deletes its pictures. False where the owner has no such job."""
        if self._owned(id, owner) is None:
            return False
        self.cancel(id, owner)
        with self._changed:
            self._changed.wait_for(lambda: id not in self._queue.works or self._closing, timeout=60)
            for row in self._store.pictures_of(id):
                self._delete_file(row.file)
            self._store.delete(id)
            self._ledger.tell()
        return True

    def delete_picture(self, job: str, index: int, owner: str) -> bool:
        """Deletes one finished picture. False where the owner has no such picture."""
        if self._owned(job, owner) is None:
            return False
        with self._changed:
            rows = {row.index: row for row in self._store.pictures_of(job)}
            if index not in rows or not rows[index].state.over:
                return False
            self._delete_file(rows[index].file)
            self._store.delete_picture(job, index)
            if len(rows) == 1:
                self._store.delete(job)
            self._ledger.tell()
        return True

    def call(
        self, work: Callable[[StudioPipeline], T], *, model: str | None = None, vae: str | None = None
    ) -> Future[T]:
        """Runs `work` with a model, on the worker's thread, between two rounds; rendering waits for it.

        For what needs the device and is no picture: training, frequency profiles, timing. Adapters that it loads
        it must unload. Raises StudioError for a model that cannot be.
        """
        key = model_key(model, vae, self.home, self.trust)
        with self._changed:
            future = self._calls.add(key, work)
            self._ledger.tell()
        return future

    def load(self, model: str | None = None) -> Future[None]:
        """Loads a model ahead of the first job. Raises StudioError for one that cannot be."""
        return self.call(lambda pipe: None, model=model)

    # -- looking -----------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Rises with every change that somebody could see."""
        return self._ledger.version

    def wait(self, version: int, timeout: float) -> int:
        """Returns as soon as the version is another one, or after so many seconds; the version then."""
        with self._changed:
            self._changed.wait_for(lambda: self._ledger.version != version, timeout)
            return self._ledger.version

    def view(self, id: str, owner: str) -> JobView | None:
        """One job; None where the owner has no such job. Whoever looks gets previews for some seconds."""
        with self._changed:
            job = self._owned(id, owner)
            if job is None:
                return None
            self._previews.watch(id)
            return self._view(job)

    def views(self, owner: str, *, limit: int = 50, before: str | None = None) -> list[JobView]:
        """An owner's jobs, the newest first; `before`: only those older than that one."""
        with self._changed:
            return [self._view(job) for job in self._store.jobs_of(owner, limit, before)]

    def pictures(
        self, owner: str, *, limit: int = 100, offset: int = 0, search: str = ""
    ) -> list[GalleryPicture]:
        """An owner's finished pictures, the newest first; `search`: words that must stand in what was asked for."""
        rows = self._store.gallery(owner, limit, offset, search, without=(LIVE,))
        return [gallery_picture(row, self.home) for row in rows]

    def may_see(self, file: Path, owner: str) -> bool:
        """Whether a file is not somebody else's picture."""
        path = file.resolve()
        if not path.is_relative_to(self.home.outputs.resolve()):
            return True
        return owner in self._store.owners_of(stored(file, self.home))

    def busy(self, but: str) -> bool:
        """Whether anybody has a job that is not over, one owner left aside."""
        with self._changed:
            return bool(self._calls) or any(work.job.owner != but for work in self._queue.works.values())

    def models(self) -> list[ModelEntry]:
        """The models that can be chosen by name."""
        return list_models(self.home)

    def model_state(self) -> ModelState:
        """The model that is loaded, or being loaded."""
        return self._state

    def add_folders(self, roots: Roots) -> None:
        """Looks into further folders from now on; they are written into config.toml. Raises SetupError."""
        found = self.home.add_folders(roots)
        self.home = replace(found, settings=replace(found.settings, model=self.home.settings.model))

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._busy)
                if self._closing:
                    break
            try:
                self._stop_cancelled()
                self._choose_model()
                self._run_calls()
                self._feed()
                self._round()
            except Exception as error:  # a fault of ours costs what is in flight, not the studio
                self._break(error)
        if self._resident is not None:
            self._resident.close()

    @property
    def _busy(self) -> bool:
        at_work = self._resident is not None and not self._resident.idle
        return at_work or bool(self._cancelled or self._calls) or self._queue.next() is not None

    def _stop_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            for task in cancelled:
                if self._resident is not None and self._resident.cancel(task):
                    self._ledger.end([task], JobState.CANCELLED)

    def _choose_model(self) -> None:
        """Loads the model whose turn it is, once the one at work is drained."""
        resident = self._resident
        with self._changed:
            if resident is None:
                first = self._queue.next()
                target = first.key if first is not None else self._calls.first_key()
            else:
                target = self._queue.other_than(resident.key) or self._calls.other_than(resident.key)
        if target is None:
            self._others_since = None
        elif resident is None or (resident.idle and not self._takes_more(resident)):
            self._switch(target)
        elif self._others_since is None:
            self._others_since = time.monotonic()

    def _takes_more(self, resident: Resident) -> bool:
        """Whether the model at work goes on with further pictures: it has some, and its turn is not over."""
        since = self._others_since
        if since is not None and time.monotonic() - since > TURN:
            return False
        with self._changed:
            return self._queue.next(resident.key) is not None or self._calls.next(resident.key) is not None

    def _switch(self, key: ModelKey) -> None:
        if self._resident is not None:
            self._resident.close()
        self._resident = self._facts = self._others_since = None
        with self._changed:
            first = self._queue.next(key)
            if first is not None:
                self._ledger.begin(first)
        self._show(ModelState(source=key.source, loading=f"loading {key.shown} …"))
        opening = replace(self._opening, source=key.source, vae=key.vae)
        try:
            resident = Resident(key, self._names_of(key), self.home, opening, self.trust, self._loading)
        except StudioError as error:
            self._not_loaded(key, placed(error, key.shown))
        except (RuntimeError, OSError, ValueError, MemoryError) as error:  # torch's and diffusers' own
            self._not_loaded(key, ModelError(f"{key.shown} cannot be loaded: {error}"))
        else:
            self._resident = resident
            self._publish()

    def _loading(self, text: str) -> None:
        self._show(replace(self._state, loading=text))

    def _not_loaded(self, key: ModelKey, error: StudioError) -> None:
        """Whatever waits for this model fails with the reason."""
        self._show(ModelState(source=key.source, error=str(error)))
        with self._changed:
            for work in [work for work in self._queue.works.values() if work.key == key]:
                waiting = list(work.waiting)
                work.waiting.clear()
                self._ledger.end(waiting, JobState.FAILED, str(error))
            self._calls.fail(key, error)

    def _run_calls(self) -> None:
        while self._resident is not None and (call := self._next_call(self._resident.key)) is not None:
            call.run(self._resident.pipe)
            self._publish()

    def _next_call(self, key: ModelKey) -> Call | None:
        with self._changed:
            return self._calls.take(key)

    def _feed(self) -> None:
        """Hands over as many pictures as there are rows for, and one of everybody who has none there yet."""
        resident = self._resident
        if resident is None:
            return
        adapters = len(resident.facts.adapters)
        while self._takes_more(resident):
            with self._changed:
                unseen = self._queue.owners_waiting(resident.key) - resident.owners_waiting
                work = self._queue.next(resident.key, None if resident.hungry else unseen)
                if work is None:
                    break
                task = self._queue.take(work)
                self._ledger.begin(work)
            try:
                resident.give(task, self._shelf_of(work))
            except StudioError as error:
                self._ledger.failed(task, str(error))
        if len(resident.facts.adapters) != adapters:
            self._publish()

    def _round(self) -> None:
        resident = self._resident
        if resident is None or resident.idle:
            return
        began = time.monotonic()
        told = resident.step()
        seconds = time.monotonic() - began
        steps: dict[str, int] = {}
        for task, event in told:
            self._take(task, event, resident)
            if isinstance(event, Stepped):
                steps[task.work.job.id] = steps.get(task.work.job.id, 0) + 1
        for id, count in steps.items():
            work = self._queue.works.get(id)
            if work is not None:
                pace = seconds / count
                work.pace = pace if work.pace is None else PACE_MEMORY * work.pace + (1 - PACE_MEMORY) * pace
        self._previews.draw([(task, event) for task, event in told if isinstance(event, Stepped)])
        self._ledger.tell()

    def _take(self, task: Task, event: Event, resident: Resident) -> None:
        match event:
            case Started():
                task.state = JobState.RUNNING
                self._store.start_picture(task.work.job.id, task.index)
            case Finished():
                assert isinstance(event.image, Image.Image)
                assert task.request is not None
                setup = Setup(task.work.key.vae, self._opening.low_memory)
                self._saver.take(Made(task, event.image, task.request, event.record, resident.files, setup))
            case Failed():
                self._ledger.failed(task, str(event.error))

    def _break(self, error: Exception) -> None:
        """What was in flight fails with what is known; the session starts over."""
        traceback.print_exc(file=sys.stderr)
        if self._resident is None:
            time.sleep(1)  # so that a fault that comes again and again does not fill the log
            return
        for task in self._resident.start_over():
            self._ledger.failed(task, f"the studio has a fault: {type(error).__name__}: {error}")

    # -- small things ------------------------------------------------------------------------------------

    def _show(self, state: ModelState) -> None:
        self._state = state
        self._ledger.tell()

    def _publish(self) -> None:
        assert self._resident is not None
        self._facts = (self._resident.key, self._resident.facts)
        self._show(self._resident.state())

    def _names_of(self, key: ModelKey) -> dict[Path, str]:
        with self._changed:
            return self._names.setdefault(key, {})

    def _shelf(self, key: ModelKey) -> Shelf:
        entry = find_model(key.source, self.home, self.trust)
        label = None if entry is None else entry.name
        return Shelf(self.home, label, names=self._names_of(key), paths=self.trust.paths)

    def _shelf_of(self, work: Work) -> Shelf:
        if work.shelf is None:
            with self._gate:
                work.shelf = self._shelf(work.key)
        return work.shelf

    def _owned(self, id: str, owner: str) -> Job | None:
        job = self._store.job(id)
        return job if job is not None and job.owner == owner else None

    def _view(self, job: Job) -> JobView:
        work = self._queue.works.get(job.id)
        loading = self._state.loading if work is not None and self._state.source == work.key.source else ""
        return job_view(
            job, self._store.pictures_of(job.id), work, self._queue.position(job.id), loading, self.home
        )

    def _delete_file(self, file: str | None) -> None:
        if file is not None:
            located(file, self.home).unlink(missing_ok=True)


def _seeded(draft: Draft) -> Draft:
    """With a seed, so that the picture is the same one after a restart."""
    if draft.values.get("seed") is not None:
        return draft
    return draft.with_value("seed", random.randrange(SEEDS))
