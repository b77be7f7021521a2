"""The thread that owns the device: it picks the model whose turn it is, hands pictures over, and steps.

A model is drained before another is loaded; while jobs wait for another one, the one at work takes no new pictures
after TURN seconds.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from PIL import Image

from pipelines import Event, Failed, Finished, Started, Stepped, StudioError
from pipelines.errors import ModelError
from pipelines.home import Home
from pipelines.request import Facts
from studio.jobs.calls import Call, Calls
from studio.jobs.gate import ModelKey, Trust
from studio.jobs.job import Job, JobState, ModelState
from studio.jobs.ledger import Ledger
from studio.jobs.previews import Previews
from studio.jobs.queue import Task
from studio.jobs.resident import Resident
from studio.jobs.saving import Made, Saver
from studio.jobs.shelves import Shelves
from studio.metadata import Setup
from studio.opening import Opening
from studio.recipe import placed

TURN = 30.0
"""Seconds that a model goes on taking pictures while jobs wait for another one."""
PACE_MEMORY = 0.8
"""How much of a job's pace comes from before the last round."""


class _Closing(Exception):
    """The studio closes."""


class Rounds:
    """One round after the other, while there is something to do.

    home: the folders as they are now. opening: device, precision and limits for all models; its `source` is not
    looked at. trust: what jobs may name. state: of the model that is loaded, or being loaded. resident: the one that
    is loaded, with its session. closing: no further round begins.
    """

    def __init__(
        self,
        home: Callable[[], Home],
        ledger: Ledger,
        calls: Calls,
        saver: Saver,
        previews: Previews,
        shelves: Shelves,
        *,
        opening: Opening,
        trust: Trust,
    ) -> None:
        self.state = ModelState()
        self.resident: Resident | None = None
        self.closing = False
        self._home = home
        self._ledger, self._calls, self._saver, self._previews = ledger, calls, saver, previews
        self._queue, self._changed = ledger.queue, ledger.changed
        self._shelves = shelves
        self._opening, self._trust = opening, trust
        self._cancelled: list[Task] = []
        self._facts: tuple[ModelKey, Facts] | None = None
        self._others_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    # -- called by other threads -------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Returns when the UNet call under way is over."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
        if self.running:
            self._thread.join()

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Takes pictures out before the next UNet call."""
        with self._changed:
            self._cancelled += tasks

    def facts(self, key: ModelKey) -> Facts | None:
        """What is known of a model, where it is the one that is loaded."""
        facts = self._facts
        return facts[1] if facts is not None and facts[0] == key else None

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.closing or self._busy)
                if self.closing:
                    break
            try:
                self._stop_cancelled()
                self._choose_model()
                self._run_calls()
                self._feed()
                self._round()
            except Exception as error:  # a fault of ours costs what is in flight, not the studio
                self._break(error)
        if self.resident is not None:
            self.resident.close()

    @property
    def _busy(self) -> bool:
        at_work = self.resident is not None and not self.resident.idle
        return at_work or bool(self._cancelled or self._calls) or self._queue.next() is not None

    def _stop_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            for task in cancelled:
                if self.resident is not None and self.resident.cancel(task):
                    self._ledger.end([task], JobState.CANCELLED)

    def _choose_model(self) -> None:
        """Loads the model whose turn it is, once the one at work is drained."""
        resident = self.resident
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
        if self.resident is not None:
            self.resident.close()
        self.resident = self._facts = self._others_since = None
        with self._changed:
            first = self._queue.next(key)
            if first is not None:
                self._ledger.begin(first)
        self._show(ModelState(source=key.source, loading=f"loading {key.shown} …", since=time.time()))
        opening = replace(self._opening, source=key.source, vae=key.vae)
        try:
            resident = Resident(
                key,
                self._shelves.names(key),
                self._home(),
                opening,
                self._trust,
                self._loading,
                self._downloading,
            )
        except _Closing:  # what waits for the model goes on at the next start
            return
        except StudioError as error:
            self._not_loaded(key, placed(error, key.shown))
        except (RuntimeError, OSError, ValueError, MemoryError) as error:  # torch's and diffusers' own
            self._not_loaded(key, ModelError(f"{key.shown} cannot be loaded: {error}"))
        else:
            self.resident = resident
            self._publish()

    def _loading(self, text: str) -> None:
        self._show(replace(self.state, loading=text, share=None))

    def _downloading(self, done: int, total: int) -> None:
        """Raises _Closing to end a download that the studio would have to wait for."""
        if self.closing:
            raise _Closing
        size = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
        text = f"downloading {self.state.source}: {done / total:.0%} of {size}"
        if text != self.state.loading:
            self._show(replace(self.state, loading=text, share=done / total))

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
        while self.resident is not None and (call := self._next_call(self.resident.key)) is not None:
            call.run(self.resident.pipe)
            self._publish()

    def _next_call(self, key: ModelKey) -> Call | None:
        with self._changed:
            return self._calls.take(key)

    def _feed(self) -> None:
        """Hands over as many pictures as there are rows for, and one of everybody who has none there yet."""
        resident = self.resident
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
                resident.give(task, self._shelves.of(work))
            except StudioError as error:
                self._ledger.failed(task, str(error))
        if len(resident.facts.adapters) != adapters:
            self._publish()

    def _round(self) -> None:
        resident = self.resident
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
                self._ledger.store.start_picture(task.work.job.id, task.index)
            case Finished():
                assert isinstance(event.image, Image.Image)
                assert task.request is not None
                setup = Setup(task.work.key.vae, self._opening.low_memory)
                record = replace(event.record, notes=(*event.record.notes, *_notes(task.work.job)))
                self._saver.take(Made(task, event.image, task.request, record, resident.files, setup))
            case Failed():
                self._ledger.failed(task, str(event.error))

    def _break(self, error: Exception) -> None:
        """What was in flight fails with what is known; the session starts over."""
        traceback.print_exc(file=sys.stderr)
        if self.resident is None:
            time.sleep(1)  # so that a fault that comes again and again does not fill the log
            return
        for task in self.resident.start_over():
            self._ledger.failed(task, f"the studio has a fault: {type(error).__name__}: {error}")

    def _show(self, state: ModelState) -> None:
        self.state = state
        self._ledger.tell()

    def _publish(self) -> None:
        assert self.resident is not None
        self._facts = (self.resident.key, self.resident.facts)
        self._show(self.resident.state())


def _notes(job: Job) -> tuple[str, ...]:
    """What a picture's record says of how its job was asked for."""
    before = job.settings.get("before")
    if not isinstance(before, Mapping):
        return ()
    said = ", ".join(f"{name} {weight:g}" for name, weight in before.items())
    return (f"the mix was normalised; before: {said}",)
