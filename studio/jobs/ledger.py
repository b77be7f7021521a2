"""What becomes of jobs and their pictures. Every change is written to the store; then those who wait are notified."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import StudioError
from pipelines.home import Home
from studio.drafts.entries import read_draft
from studio.jobs.gate import ModelKey
from studio.jobs.health import Faults
from studio.jobs.job import Job, JobState
from studio.jobs.previews import Previews
from studio.jobs.queue import Queue, Task, Work
from studio.jobs.saving import left_by
from studio.jobs.store import Store
from studio.jobs.views import stored
from studio.rendering.machine import has_room, machine_fault
from studio.rendering.saver import Made, Saved, not_saved

_LOG = logging.getLogger(__name__)


@dataclass
class Unsaved:
    """A picture that is made and not saved yet. file: says where to write it. others: how many pictures had been saved
    when saving it failed; None before that."""

    made: Made
    file: Callable[[], Path]
    others: int | None = None


class Ledger:
    """Keeps the queue in memory and the store on the disk in step.

    While the machine has a fault, changes are owed: they are made in their order once it is over, and pictures that
    could not be saved are kept in memory. `Rounds` waits for that.

    changed: guards the queue; notified after every change that users can see. version: rises with each of these.
    faults: what is wrong with the machine. unsaved: the pictures that are made and not on the disk.
    """

    def __init__(self, home: Home, store: Store, previews: Previews) -> None:
        self.store = store
        self.queue = Queue()
        self.changed = threading.Condition(threading.RLock())
        self.version = 0
        self.faults = Faults()
        self.unsaved: dict[Task, Unsaved] = {}
        self._home = home
        self._previews = previews
        self._owed: deque[Callable[[], None]] = deque()
        self._ending: set[Task] = set()
        self._saved = 0

    # -- faults of the machine ---------------------------------------------------------------------------

    @property
    def owes(self) -> bool:
        """Whether anything waits for the end of a fault of the machine."""
        with self.changed:
            return bool(self._owed or any(one.others is not None for one in self.unsaved.values()))

    def pay(self) -> None:
        """Makes the changes that are owed, in their order. Raises MachineFault while the fault lasts."""
        self.store.probe()
        while True:
            with self.changed:
                if not self._owed:
                    return
                try:
                    self._owed[0]()
                except Exception as error:
                    if (fault := machine_fault(error)) is not None:
                        raise fault from error
                    log_error(error)
                self._owed.popleft()

    def held(self) -> dict[Task, Unsaved]:
        """The pictures whose saving has failed. Those that were stopped meanwhile are forgotten."""
        with self.changed:
            self.unsaved = {task: one for task, one in self.unsaved.items() if task.alive}
            return {task: one for task, one in self.unsaved.items() if one.others is not None}

    def in_hand(self) -> set[Task]:
        """The pictures that are being saved or ended."""
        with self.changed:
            return {*self.unsaved, *self._ending}

    def _change(self, change: Callable[[], None]) -> None:
        """Makes a change now, or, if the machine has a fault, as soon as that is over. Raises what is no such fault."""
        with self.changed:
            if not self._owed:
                try:
                    change()
                    return
                except Exception as error:
                    fault = machine_fault(error)
                    if fault is None:
                        raise
                    self.faults.note(fault)
            self._owed.append(change)
            self.tell()

    # -- changes -----------------------------------------------------------------------------------------

    def begin(self, work: Work) -> None:
        if not work.running:
            self.store.begin(work.job.id)
            work.running = True

    def hand_over(self, task: Task) -> None:
        """To be called before work on a picture begins. It is noted on the disk, so that after a crash the right
        pictures are suspected."""
        self.begin(task.work)
        self.store.hand_over(task.work.job.id, task.index)

    def start(self, task: Task) -> None:
        """A picture is in the making."""
        task.state = JobState.RUNNING
        self._change(lambda: self.store.start_picture(task.work.job.id, task.index))

    def take_back(self, task: Task) -> None:
        """A picture that was handed over waits again."""
        task.state = JobState.QUEUED
        try:
            self._change(lambda: self.store.take_back(task.work.job.id, task.index))
        except Exception as error:  # at worst, it is needlessly drawn alone after a crash
            log_error(error)

    def note(self, saved: Saved[Task]) -> None:
        """Notes what has become of a picture, on the saver's thread. A file that cannot be noted is deleted.

        A picture that the machine's fault kept from being saved is kept, and saved later. But it fails alone where
        another picture was saved between two tries, and where it is to be shown only.
        """
        task, error, noting = saved.picture, saved.error, False
        if saved.file is not None and saved.record is not None:
            try:
                self.finish(task, saved.file, saved.record.to_dict())
            except Exception as why:
                with suppress(OSError):
                    saved.file.unlink(missing_ok=True)
                error, noting = not_saved(why), True
        with self.changed:
            if error is None:
                self._saved += 1
                self.unsaved.pop(task, None)
                return
            fault = machine_fault(error)
            kept = self.unsaved.get(task)
            if fault is not None and kept is not None and (noting or not self._own(task, kept)):
                kept.others = self._saved
                self.faults.note(fault)
                self.tell()
                return
            self.unsaved.pop(task, None)
        self.fail(task, str(error))

    def _own(self, task: Task, kept: Unsaved) -> bool:
        """Whether it is the picture's own fault that it cannot be saved, since others can."""
        if task.work.priority:
            return True
        return kept.others is not None and self._saved > kept.others and has_room(self._home.outputs)

    def finish(self, task: Task, file: Path, record: Mapping[str, Any]) -> None:
        """A picture is done. If it was stopped meanwhile, its file is deleted."""
        with self.changed:
            place = stored(file, self._home)
            if not self.store.finish_picture(task.work.job.id, task.index, place, record):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            self._leave(task)
            try:
                self._change(lambda: self._settle(task.work))
            except Exception as error:  # the picture is done all the same
                log_error(error)
            self.tell()

    def adopt(self, task: Task, model_hash: str) -> bool:
        """Notes a picture whose file an earlier server wrote before it died. False where there is none to be noted:
        then the picture is drawn again.

        model_hash: of the weights of the picture's model.
        """
        try:
            found = left_by(task, self._home, model_hash, self._is_noted)
            if found is not None:
                self.finish(task, *found)
        except Exception as error:
            log_error(error)
            return False
        return found is not None

    def _is_noted(self, file: Path) -> bool:
        return bool(self.store.owners_of(stored(file, self._home)))

    def stop(self, work: Work) -> list[Task]:
        """Cancels a job, on the disk when this returns; returns its pictures that were not done. Raises MachineFault,
        and then nothing has changed."""
        self.store.stop(work.job.id)
        tasks = list(work.tasks.values())
        work.forget_waiting()
        for task in tasks:
            self._leave(task)
        self._change(lambda: self._settle(work))
        return tasks

    def fail(self, task: Task, why: str) -> None:
        with self.changed:
            self.end([task], JobState.FAILED, why)
            self.tell()

    def end(self, tasks: Sequence[Task], state: JobState, error: str = "") -> None:
        """Ends pictures of one job without a result. Nothing is raised: where that cannot be noted for a reason of our
        own, it is logged, and they are drawn again at the next start."""
        if not tasks:
            return
        with self.changed:
            self._ending.update(tasks)
            try:
                self._change(lambda: self._end(tasks, state, error))
            except Exception as fault:
                log_error(fault)
                self._ending.difference_update(tasks)
                for task in tasks:
                    self._leave(task)
                if not tasks[0].work.tasks:
                    self.queue.remove(tasks[0].work.job.id)

    def _end(self, tasks: Sequence[Task], state: JobState, error: str) -> None:
        self.store.end_pictures(tasks[0].work.job.id, [task.index for task in tasks], state, error)
        self._ending.difference_update(tasks)
        for task in tasks:
            self._leave(task)
        self._settle(tasks[0].work)

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
        unreadable: dict[str, list[int]] = {}
        for row in self.store.waiting_of(job.id):
            why = job.fault or row.fault
            try:
                draft = read_draft(row.draft, f"job {job.id}, picture {row.index}")
            except StudioError as error:
                why = why or str(error)
            if why:
                unreadable.setdefault(why, []).append(row.index)
            else:
                work.add([Task(work, row.index, row.label, draft, suspect=row.suspect, deaths=row.deaths)])
        self.store.end_all(job.id, unreadable, JobState.FAILED)
        self._settle(work)

    def tell(self) -> None:
        with self.changed:
            self.version += 1
            self.changed.notify_all()


def log_error(error: BaseException) -> None:
    """Puts an unforeseen error into the log. Nothing is raised, also where the log cannot be written."""
    with suppress(Exception):
        _LOG.error("%s", "".join(traceback.format_exception(error)))
