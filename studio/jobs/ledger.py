"""What becomes of jobs and their pictures. Every change is written to the store; then those who wait are notified."""

from __future__ import annotations

import sqlite3
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines import Record, StudioError
from pipelines.home import Home
from studio.drafts.entries import read_draft
from studio.jobs.gate import ModelKey
from studio.jobs.job import Job, JobState
from studio.jobs.previews import Previews
from studio.jobs.queue import Queue, Task, Work
from studio.jobs.store import Store
from studio.jobs.views import stored
from studio.rendering.saver import Saved, not_saved


class Ledger:
    """Keeps the queue in memory and the store on the disk in step.

    changed: guards the queue; notified after every change that users can see. version: rises with each of these.
    """

    def __init__(self, home: Home, store: Store, previews: Previews) -> None:
        self.store = store
        self.queue = Queue()
        self.changed = threading.Condition(threading.RLock())
        self.version = 0
        self._home = home
        self._previews = previews

    def begin(self, work: Work) -> None:
        if not work.running:
            work.running = True
            self.store.begin(work.job.id)

    def hand_over(self, task: Task) -> None:
        """To be called before work on a picture begins. It is noted on the disk, so that after a crash the right
        pictures are suspected."""
        self.begin(task.work)
        self.store.hand_over(task.work.job.id, task.index)

    def take_back(self, task: Task) -> None:
        """A picture that was handed over waits again."""
        task.state = JobState.QUEUED
        with suppress(sqlite3.Error):  # at worst, it is needlessly drawn alone after a crash
            self.store.take_back(task.work.job.id, task.index)

    def note(self, saved: Saved[Task]) -> None:
        """Notes what has become of a picture, on the saver's thread. A file that cannot be noted is deleted."""
        error = saved.error
        if saved.file is not None and saved.record is not None:
            try:
                self.finish(saved.picture, saved.file, saved.record)
            except Exception as fault:
                with suppress(OSError):
                    saved.file.unlink(missing_ok=True)
                error = not_saved(fault)
        if error is not None:
            self.fail(saved.picture, str(error))

    def finish(self, task: Task, file: Path, record: Record) -> None:
        """A picture is done. If it was stopped meanwhile, its file is deleted."""
        with self.changed:
            place = stored(file, self._home)
            if not self.store.finish_picture(task.work.job.id, task.index, place, record.to_dict()):
                file.unlink(missing_ok=True)
            self._leave(task)
            self._settle(task.work)
            self.tell()

    def stop(self, work: Work) -> list[Task]:
        """Cancels a job, on the disk when this returns; returns its pictures that were not done."""
        self.store.stop(work.job.id)
        tasks = list(work.tasks.values())
        work.forget_waiting()
        for task in tasks:
            self._leave(task)
        self._settle(work)
        return tasks

    def fail(self, task: Task, why: str) -> None:
        with self.changed:
            self.end([task], JobState.FAILED, why)
            self.tell()

    def end(self, tasks: Sequence[Task], state: JobState, error: str = "") -> None:
        """Ends pictures of one job without a result. Where the disk cannot be written, they are drawn again at the next
        start."""
        if not tasks:
            return
        work = tasks[0].work
        try:
            self.store.end_pictures(work.job.id, [task.index for task in tasks], state, error)
            for task in tasks:
                self._leave(task)
            self._settle(work)
        except sqlite3.Error:
            traceback.print_exc(file=sys.stderr)
            for task in tasks:
                self._leave(task)
            if not work.tasks:
                self.queue.remove(work.job.id)

    def _leave(self, task: Task) -> None:
        if task.alive:
            task.work.tasks.pop(task.index)
        self._previews.drop(task)

    def _settle(self, work: Work) -> None:
        """Ends a job that has nothing left to do."""
        if work.tasks or work.job.id not in self.queue.works:
            return
        states, errors = self.store.outcome(work.job.id)
        state = next((s for s in (JobState.CANCELLED, JobState.FAILED) if s in states), JobState.DONE)
        self.store.end(work.job.id, state, "\n".join(errors))
        self.queue.remove(work.job.id)
        self.tell()

    def take_up(self, job: Job) -> None:
        """Queues a job that an earlier server left unfinished."""
        work = Work(job, ModelKey(job.model, job.vae))
        self.queue.add(work)
        for row in self.store.waiting_of(job.id):
            try:
                draft = read_draft(row.draft, "")
            except StudioError as error:
                self.store.end_pictures(job.id, [row.index], JobState.FAILED, str(error))
            else:
                work.add([Task(work, row.index, row.label, draft, suspect=row.suspect, deaths=row.deaths)])
        self._settle(work)

    def tell(self) -> None:
        with self.changed:
            self.version += 1
            self.changed.notify_all()
