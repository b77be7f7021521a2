"""The thread that owns the device. It picks the model whose turn it is, hands pictures over, and runs rounds.

A model's pictures are finished before another model is loaded. But while jobs wait for another model, the model at work
takes no new pictures once its turn is over. Half a turn later, pictures that are still in flight are set aside; they
go on where they were when it is their model's turn again.

Suspects take turns with the other pictures of their model, as if they were another model's: see `studio.jobs.queue`.
When a round breaks, all its pictures are drawn again from their seeds, one after the other. A picture that breaks a
round alone fails.

While the machine has a fault (see `studio.rendering.machine`), no round begins. What could not be written is tried
again every `RETRY` seconds; then the work goes on where it was. A fault of the worker's own ends nothing: it is logged,
and the work begins again after a pause.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from pipelines import Event, Failed, Finished, Started, Stepped, StudioError
from pipelines.errors import ModelError
from pipelines.faults import forget_tensors, own_error
from pipelines.flight import Aside
from pipelines.home import Home
from pipelines.memory import Needs
from pipelines.request import Facts
from studio.drafts.draft import placed
from studio.jobs.calls import Call, Calls
from studio.jobs.gate import ModelKey, Trust
from studio.jobs.job import Job, JobState, ModelState
from studio.jobs.ledger import Ledger, Unsaved, log_error
from studio.jobs.previews import Previews
from studio.jobs.queue import Side, Task
from studio.jobs.resident import Resident
from studio.jobs.saving import file_of
from studio.jobs.shelves import Shelves
from studio.pictures.metadata import Setup
from studio.rendering.machine import MachineFault, machine_fault
from studio.rendering.opening import Opening
from studio.rendering.saver import Made, Saver, as_exception

TURN = 30.0
"""Fewest seconds of a model's turn, while jobs wait for another model."""
LOADS = 4.0
"""A model's turn is at least this many times as long as loading it took."""
RETRY = 1.0
"""Seconds between two tries to go on while the machine has a fault, and after the worker's first own fault."""
LONGEST_PAUSE = 30.0
"""Most seconds until the worker begins again; the pause doubles with every fault of its own."""
PACE_MEMORY = 0.8
"""Weight of earlier rounds in a job's pace, 0 … 1; the last round has the rest."""


class _Closing(Exception):
    """Raised to end a download when the studio closes."""


class Rounds:
    """Runs one round after the other, while there is something to do.

    home: gives the folders as they are now. opening: device, precision and limits for all models; its `source` is
    ignored. trust: what jobs may name. state: of the model that is loaded, or being loaded. resident: the loaded model
    with its session. closing: whether no further round may begin.
    """

    def __init__(
        self,
        home: Callable[[], Home],
        ledger: Ledger,
        calls: Calls,
        saver: Saver[Task, None],
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
        self._facts: tuple[ModelKey, Facts, Needs] | None = None
        self._side: Side | None = None
        self._aside: dict[Side, deque[tuple[Task, Aside]]] = {}
        self._worked: dict[Side, float] = {}
        self._turn = TURN
        self._others_since: float | None = None
        self._pause = RETRY
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    # -- called by other threads -------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends the thread; returns when the UNet call under way is over."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
        if self.running:
            self._thread.join()

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Has pictures taken out before the next UNet call."""
        with self._changed:
            self._cancelled += tasks

    def facts(self, key: ModelKey) -> Facts | None:
        """What is known of a model if it is the loaded one; else None."""
        facts = self._facts
        return facts[1] if facts is not None and facts[0] == key else None

    def needs(self, key: ModelKey) -> Needs | None:
        """How much memory a model's pictures need, if it is the loaded one; else None."""
        facts = self._facts
        return facts[2] if facts is not None and facts[0] == key else None

    # -- the thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Works until the studio closes. Nothing that goes wrong ends the thread."""
        while not self.closing:
            try:
                self._work()
            except BaseException as error:  # whatever the device's libraries raise
                with suppress(BaseException):
                    self._recover(error)
                self._rest(self._pause)
        with suppress(Exception):
            if self.resident is not None:
                self.resident.close()

    def _work(self) -> None:
        """Runs rounds until the studio closes."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.closing or self._busy)
                if self.closing:
                    return
            try:
                self._stop_cancelled()
                self._run_calls()
                self._mend()
                self._choose_side()
                self._run_calls()
                self._feed()
                self._stop_cancelled()
                self._round()
            except Exception as error:
                fault = machine_fault(error)
                if fault is None:
                    raise
                self._ledger.faults.note(fault)
                self._ledger.tell()
                self._rest(RETRY)
            else:
                self._pause = RETRY
                if self._ledger.faults.lasts and not self._ledger.owes:
                    self._ledger.faults.over()
                    self._ledger.tell()

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.closing, seconds)

    def _recover(self, error: BaseException) -> None:
        """After a fault of the worker's own: what is in flight goes on, unless the fault would have ended the thread.
        Then it is drawn again, and no picture stays in nobody's hands."""
        log_error(error)
        forget_tensors(error)
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        why = f"the worker stopped ({type(error).__name__}: {error}) and begins again in {pause:.0f} s; see the log"
        self._ledger.faults.note(RuntimeError(why))
        self._ledger.faults.restarted()
        if not isinstance(error, Exception):
            self._collect()
        self._ledger.tell()

    def _collect(self) -> None:
        """Lets every picture wait again that is neither waiting, nor set aside, nor being saved."""
        if self.resident is not None:
            try:
                self.resident.start_over()
            except Exception as error:  # the model is loaded again
                log_error(error)
                self.resident = self._facts = None
        with self._changed:
            held = self._ledger.in_hand()
            held |= {task for resting in self._aside.values() for task, _ in resting}
            for work in self._queue.works.values():
                held |= {*work.waiting, *work.suspects}
            for task in [task for task in self._queue.tasks() if task not in held]:
                task.work.put_back(task, suspect=True)
                self._ledger.take_back(task)

    def _mend(self) -> None:
        """Writes what the machine's fault kept from being written. Raises MachineFault while it lasts."""
        ledger = self._ledger
        if not (ledger.owes or ledger.faults.lasts):
            return
        ledger.pay()
        for task, unsaved in ledger.held().items():
            self._saver.take(task, unsaved.made, unsaved.file)
        self._saver.settle()
        self._forget_saved()
        if ledger.held():
            raise MachineFault(ledger.faults.health.fault)

    def _forget_saved(self) -> None:
        """Drops the saver's results: the ledger noted them on the saver's thread."""
        for _ in self._saver.told():
            pass

    @property
    def _busy(self) -> bool:
        at_work = self.resident is not None and not self.resident.idle
        wrong = self._ledger.owes or self._ledger.faults.lasts
        return at_work or wrong or bool(self._cancelled or self._calls or self._sides())

    def _stop_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
        for task in cancelled:
            if self.resident is not None:
                self.resident.cancel(task)
        for side, resting in self._aside.items():
            self._aside[side] = deque((task, aside) for task, aside in resting if task.alive)

    def _sides(self) -> list[Side]:
        """The sides for which something waits, the one that was at work longest ago first. Calls for the loaded model
        do not count."""
        with self._changed:
            found = dict.fromkeys(self._queue.sides())
            found |= dict.fromkeys(side for side, resting in self._aside.items() if resting)
            found |= dict.fromkeys(
                Side(key) for key in self._calls.models() if self.resident is None or key != self.resident.key
            )
        return sorted(found, key=lambda side: self._worked.get(side, 0.0))

    def _choose_side(self) -> None:
        """Turns to the next side once the present one is finished, or sets its pictures aside once its time is over."""
        resident = self.resident
        here = None if resident is None else self._side
        others = [side for side in self._sides() if side != here]
        if not others:
            self._others_since = None
        elif resident is None or (resident.idle and not self._takes_more()):
            self._switch(others[0])
        elif self._others_since is None:
            self._others_since = time.monotonic()
        elif not resident.idle and time.monotonic() - self._others_since > 1.5 * self._turn:
            self._set_aside(resident)

    def _takes_more(self) -> bool:
        """Whether the side at work takes further pictures or calls: some wait for it, and its turn is not over."""
        since = self._others_since
        if since is not None and time.monotonic() - since > self._turn:
            return False
        with self._changed:
            calls = self.resident is not None and self._calls.next(self.resident.key) is not None
            return calls or self._side in self._sides()

    def _set_aside(self, resident: Resident) -> None:
        assert self._side is not None
        begun, waiting = resident.suspend()
        self._aside.setdefault(self._side, deque()).extend(begun)
        with self._changed:
            for task in waiting:
                if task.alive:
                    task.work.put_back(task, suspect=task.suspect)
            for task in [*(task for task, _ in begun), *waiting]:
                self._ledger.take_back(task)
        self._ledger.tell()

    def _switch(self, side: Side) -> None:
        if self._side is not None:
            self._worked[self._side] = time.monotonic()
        self._side, self._others_since = side, None
        key = side.key
        if self.resident is not None and self.resident.key == key:
            return
        if self.resident is not None:
            self.resident.close()
        self.resident = self._facts = None
        with self._changed:
            first = self._queue.next(key)
            if first is not None:
                self._ledger.begin(first)
        self._show(ModelState(source=key.source, loading=f"loading {key.shown} …", since=time.time()))
        began = time.monotonic()
        with suppress(Exception):  # the note matters only after a crash
            self._ledger.store.begin_loading(key.source, key.vae)
        try:
            resident = Resident(
                key,
                self._shelves.names(key),
                self._home(),
                replace(self._opening, source=key.source, vae=key.vae),
                self._trust,
                self._loading,
                self._downloading,
            )
        except _Closing:  # jobs that wait for the model go on at the next start
            self._end_loading(key, loaded=False)
        except Exception as error:  # torch's and diffusers' own too
            fault = machine_fault(error, writing=False)  # as where a download fills the disk
            if fault is not None:
                self._show(ModelState())
                self._end_loading(key, loaded=False)
                raise fault from error
            self._not_loaded(key, _no_model(error, key))
        else:
            self._end_loading(key, loaded=True)
            self._turn = max(TURN, LOADS * (time.monotonic() - began))
            self.resident = resident
            self._publish()

    def _end_loading(self, key: ModelKey, *, loaded: bool) -> None:
        with suppress(Exception):  # the note matters only after a crash
            self._ledger.store.end_loading(key.source, key.vae, loaded=loaded)

    def _loading(self, text: str) -> None:
        self._show(replace(self.state, loading=text, share=None))

    def _downloading(self, done: int, total: int) -> None:
        """Raises _Closing to end a download that the studio would have to wait for."""
        if self.closing:
            raise _Closing
        if self._side is not None and not self.state.share:
            self._end_loading(self._side.key, loaded=False)  # a kill now is not the model's fault
        size = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
        text = f"downloading {self.state.source}: {done / total:.0%} of {size}"
        if text != self.state.loading:
            self._show(replace(self.state, loading=text, share=done / total))

    def _not_loaded(self, key: ModelKey, error: StudioError) -> None:
        """Whatever waits for this model fails with the reason."""
        self._show(ModelState(source=key.source, error=str(error)))
        self._end_loading(key, loaded=True)
        with self._changed:
            for side in [side for side in self._aside if side.key == key]:
                for task, _ in self._aside.pop(side):
                    self._ledger.end([task], JobState.FAILED, str(error))
            for work in [work for work in self._queue.works.values() if work.key == key]:
                waiting = [*work.waiting, *work.suspects]
                work.forget_waiting()
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
        """Hands over the pictures that were set aside, then as many as there are rows for, and one of every owner who
        has none waiting in the session. A suspect is handed over only when the one before is done."""
        resident, side = self.resident, self._side
        if resident is None or side is None:
            return
        adapters = len(resident.facts.adapters)
        if side.alone and not resident.tasks:
            self._saver.settle()  # so that nothing else is in the making
        while self._takes_more() and not (side.alone and resident.tasks):
            resting = self._aside.get(side)
            if resting:
                self._hand_over(resident, *resting.popleft())
                continue
            with self._changed:
                task = self._queue.take_suspect(side.key) if side.alone else self._next_task(resident)
            if task is None:
                break
            self._hand_over(resident, task)
        if len(resident.facts.adapters) != adapters:
            self._publish()

    def _next_task(self, resident: Resident) -> Task | None:
        unseen = self._queue.owners_waiting(resident.key) - resident.owners_waiting
        work = self._queue.next(resident.key, None if resident.hungry else unseen)
        return None if work is None else self._queue.take(work)

    def _hand_over(self, resident: Resident, task: Task, aside: Aside | None = None) -> None:
        """Gives a picture to the session. Whatever goes wrong fails this picture alone, except a fault of the machine:
        then the picture waits again."""
        if not task.alive:
            return
        try:
            self._ledger.hand_over(task)
        except Exception as error:
            if machine_fault(error) is None:
                self._fail(task, own_error(error, "the picture could not be begun"))
                return
            assert self._side is not None
            with self._changed:
                if aside is not None:
                    self._aside.setdefault(self._side, deque()).appendleft((task, aside))
                else:
                    self._queue.costs(task, 0.0)
                    task.work.put_back(task, suspect=task.suspect)
            raise
        try:
            if aside is not None:
                resident.resume(task, aside)
                return
            cost = resident.give(task, self._shelves.of(task.work))
            with self._changed:
                self._queue.costs(task, cost)
            if task.suspect and self._ledger.adopt(task, resident.model_hash):
                resident.cancel(task)
        except BaseException as error:
            self._fail(task, own_error(as_exception(error), "the picture could not be begun"))

    def _fail(self, task: Task, error: StudioError) -> None:
        if self.resident is not None:
            self.resident.cancel(task)
        self._ledger.fail(task, str(error))

    def _round(self) -> None:
        resident = self.resident
        if resident is None or resident.idle:
            return
        began = time.monotonic()
        try:
            events = resident.step()
        except BaseException as error:
            self._break(resident, as_exception(error))
            return
        seconds = time.monotonic() - began
        steps: dict[str, int] = {}
        for task, event in events:
            if isinstance(event, Stepped):
                steps[task.work.job.id] = steps.get(task.work.job.id, 0) + 1
            try:
                self._take(task, event, resident)
            except BaseException as error:
                self._fail(task, own_error(as_exception(error), "the picture's progress could not be noted"))
        for id, count in steps.items():
            work = self._queue.works.get(id)
            if work is not None:
                pace = seconds / count
                work.pace = pace if work.pace is None else PACE_MEMORY * work.pace + (1 - PACE_MEMORY) * pace
        self._previews.draw([(task, event) for task, event in events if isinstance(event, Stepped)])
        self._ledger.tell()
        self._forget_saved()

    def _take(self, task: Task, event: Event, resident: Resident) -> None:
        match event:
            case Started():
                self._ledger.start(task)
            case Finished() if task.alive:
                setup = Setup(task.work.key.vae, self._opening.low_memory)
                record = replace(event.record, notes=(*event.record.notes, *_notes(task.work.job)))
                made = Made.of(replace(event, record=record), resident.files, setup)
                self._ledger.unsaved[task] = unsaved = Unsaved(
                    made, partial(file_of, task, made, self._home())
                )
                self._saver.take(task, made, unsaved.file)
            case Failed():
                self._ledger.fail(task, str(event.error))

    def _break(self, resident: Resident, error: Exception) -> None:
        """Replaces a session that broke. A picture that was alone in it fails; several become suspects and are drawn
        again."""
        log_error(error)
        forget_tensors(error)
        lost = resident.start_over()
        alone = len(lost) == 1
        lost = [task for task in lost if task.alive]
        if alone and lost:
            self._ledger.fail(lost[0], f"the studio has a fault: {type(error).__name__}: {error}")
            return
        with self._changed:
            for task in reversed(lost):
                task.work.put_back(task, suspect=True)
                self._ledger.take_back(task)
        self._ledger.tell()
        if not lost:
            time.sleep(1)

    def _show(self, state: ModelState) -> None:
        self.state = state
        self._ledger.tell()

    def _publish(self) -> None:
        assert self.resident is not None
        try:
            self._facts = (self.resident.key, self.resident.facts, self.resident.pipe.model.needs)
            self._show(self.resident.state())
        except Exception as error:  # the model works all the same
            log_error(error)


def _no_model(error: Exception, key: ModelKey) -> StudioError:
    if isinstance(error, StudioError):
        return placed(error, key.shown)
    return ModelError(f"{key.shown} cannot be loaded: {error or type(error).__name__}")


def _notes(job: Job) -> tuple[str, ...]:
    """Notes for the records of a job's pictures: the weights before the mix was normalised."""
    before = job.settings.get("before")
    if not isinstance(before, Mapping):
        return ()
    said = ", ".join(f"{name} {weight:g}" for name, weight in before.items())
    return (f"the mix was normalised; before: {said}",)
