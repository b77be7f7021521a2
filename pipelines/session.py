"""The session: pictures are asked for, step side by side, and leave when they are done.

    submit -> [waiting] -> admit: text, noise -> [in flight] -> one round: one UNet call a latent shape -> decode
                 |           ^                                 (a second one for rows on remembered features)
                 +- texts ---+ encoded ahead, in batches, each distinct one once

A round advances the pictures in flight by one UNet evaluation each. Where one owner's pictures, or one shape's, have
had more seconds of the device than others, they rest until the others have caught up (`device_time`). Between rounds,
pictures join, leave, are cancelled and are set aside. On CUDA, texts are encoded, pictures are decoded and the next
round is prepared while the device is still at work on this one.

Where work that several pictures share fails, it is done again for each by itself. So only the picture at fault fails.
`StudioPipeline` and `studio.rendering.runner` drive this class, and fronts go through these two. Who joins is decided
in `admission`. What comes before the first step is in `preparation`, and what comes after the last is in `finishing`.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Hashable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pipelines.admission import Admission, reserved_for_features
from pipelines.decoding import OutputType, preview
from pipelines.denoise import Row, evaluate, fold, rows_of
from pipelines.device_time import DeviceTime
from pipelines.errors import AdapterFileError, StudioError
from pipelines.events import Cancelled, Event, Started, Stepped
from pipelines.families.unet import Shape
from pipelines.faults import log_shared, own_error
from pipelines.features import Features, most_kept, passes_of
from pipelines.finishing import Finishing
from pipelines.flight import Aside, Flight, Ticket, set_aside, take_up
from pipelines.inpainting import check_mask
from pipelines.model import Model
from pipelines.notes import charge
from pipelines.pace import Pace
from pipelines.preparation import Preparation
from pipelines.request import Request
from pipelines.trajectory import Trajectory
from pipelines.turns import Turns

AHEAD = 4
"""Waiting pictures whose adapters are brought to the device before their turn."""


class Session:
    """Renders what is submitted to one model, in shared UNet calls. For one thread at a time.

    output_type: the form of finished pictures, as in `StudioPipeline.__call__`.
    """

    def __init__(self, model: Model, *, output_type: OutputType = "pil") -> None:
        self.model = model
        self.output_type = output_type
        self._ids = itertools.count(1)
        self._waiting: list[Flight] = []
        self._flying: list[Flight] = []
        self._turns = Turns()
        self._time = DeviceTime()
        self._feature_room = 0
        self._events: list[Event] = []
        self._pace = Pace()
        self._preparation = Preparation(model)
        self._finishing = Finishing(model, output_type, self._pace)

    def submit(self, request: Request, owner: Hashable = "", priority: int = 0) -> Ticket:
        """Ask for a picture. A higher priority goes first, and owners take turns (`pipelines.turns`).

        The request is resolved and planned here, once. The ticket says what came of that. Raises StudioError for a
        request that this model cannot render.
        """
        resolved = request.resolved(self.model.facts)
        assert resolved.width is not None
        assert resolved.height is not None
        self.model.needs.refuse(resolved.width, resolved.height, encoding=resolved.init_image is not None)
        check_mask(resolved)
        shape = self.model.latent_shape(resolved.width, resolved.height)
        plans = resolved.plans()
        passes = passes_of(plans, remembering=resolved.cut is not None)
        flight = Flight(next(self._ids), owner, priority, resolved, plans, passes, shape, Features())
        if resolved.cut is not None:
            flight.cost.feature_bytes = most_kept(passes) * self.model.feature_bytes(shape, resolved.cut)
        self._waiting.append(flight)
        return flight.ticket

    def cancel(self, id: int) -> bool:
        """Take a picture out, so that it makes no further UNet call. False where it is not here, or no longer here."""
        found = self._finishing.take_out(id)
        for flights in (self._waiting, self._flying):
            for flight in [flight for flight in flights if flight.id == id]:
                flights.remove(flight)
                found = flight
        if found is None:
            return False
        found.let_go()
        self._events.append(Cancelled(id))
        return True

    def suspend(self) -> dict[int, Aside]:
        """Take all pictures off the device that have begun and are not being decoded. The others stay.

        Returns id -> what `resume` takes, in this session or in another one of the same model. A picture that cannot be
        set aside fails.
        """
        found = {}
        for flight in [*self._flying, *(flight for flight in self._waiting if flight.parked)]:
            try:
                hashes = {name: self.model.adapter(name).report.sha256 for name in flight.adapters}
                found[flight.id] = set_aside(flight, hashes)
            except Exception as error:
                self._fail(flight, own_error(error, "the picture could not be set aside"))
        self._flying = []
        self._waiting = [flight for flight in self._waiting if not flight.parked]
        return found

    def resume(self, aside: Aside) -> Ticket:
        """Go on with a picture that was set aside, from the step it had reached, when it is its turn. It gets a new id.

        Its adapters must be loaded. Raises AdapterFileError where one of them is not, or is another file by now.
        """
        for name, digest in aside.adapters.items():
            known = self.model.store.known.get(name)
            if known is None or known.report.sha256 != digest:
                raise AdapterFileError(
                    f"LoRA {name!r} was changed or unloaded while a picture with it was set aside; "
                    "ask for the picture again"
                )
        flight = aside.flight
        flight.id, flight.began = next(self._ids), time.perf_counter() - aside.seconds
        self._waiting.append(flight)
        return flight.ticket

    def close(self) -> None:
        """Let go of all that the pictures hold. The session must not be used any more."""
        for flight in [*self._waiting, *self._flying, *self._finishing.flights]:
            flight.let_go()

    @property
    def idle(self) -> bool:
        """Whether no picture is waiting or in the making, and no event is left to tell."""
        return not (self._waiting or self._flying or self._finishing.busy or self._events)

    def drain(self) -> Iterator[Event]:
        """Run rounds until nothing is left, and yield their events."""
        while not self.idle:
            yield from self.step()

    # -- a round -----------------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Run one round, and return its events.

        Pictures join. Those in flight that are due make one UNet evaluation each. Those that are done start to be
        decoded, and the texts of those that come next are encoded. What fails is told as `Failed`, not raised.
        """
        self._admit()
        for flights in self._time.due(self._flying):
            self._round(flights)
        done = [flight for flight in self._flying if flight.trajectory is not None and flight.trajectory.done]
        self._flying = [flight for flight in self._flying if flight not in done]
        self._events += self._finishing.start(done)
        self._preparation.encode_ahead(self._next(self._preparation.look_ahead))
        self._events += self._finishing.gather(wait=not (self._flying or self._waiting))
        events, self._events = self._events, []
        return events

    def _round(self, flights: Sequence[Flight]) -> None:
        """One UNet evaluation for each, in shared calls. Where that fails, each makes its own, so that only the picture
        at fault fails."""
        try:
            trajectories = [flight.trajectory for flight in flights if flight.trajectory is not None]
            predictions = self._evaluate(flights, rows_of(trajectories), flights[0].shape)
        except Exception as error:
            if len(flights) == 1:
                self._fail_in_flight(flights[0], own_error(error, "a step failed"))
                return
            log_shared(error, "a step failed")
            for flight in flights:
                self._round([flight])
            return
        parts = torch.split(predictions, [len(trajectory.lanes) for trajectory in trajectories])
        for flight, trajectory, own in zip(flights, trajectories, parts, strict=True):
            try:
                step = trajectory.step
                trajectory.advance(fold(trajectory.plan, own, flight.request.guidance_rescale))
                if trajectory.done or trajectory.step > step:
                    self._events.append(self._stepped(flight, trajectory, step + 1))
            except Exception as error:
                self._fail_in_flight(flight, own_error(error, "a step failed"))

    def _evaluate(self, flights: Sequence[Flight], rows: Sequence[Row], shape: Shape) -> Tensor:
        """The rows' predictions, [rows, channels, h, w] float32. Rows that run in full share one call, and so do those
        that run shallow at one cut."""
        found: list[Tensor | None] = [None] * len(rows)
        for cut in (None, *dict.fromkeys(row.cut for row in rows if row.shallow)):
            places = [place for place, row in enumerate(rows) if (row.cut if row.shallow else None) == cut]
            if not places:
                continue
            some = [rows[place] for place in places]
            shares = [
                (flight, sum(row.trajectory is flight.trajectory for row in some)) for flight in flights
            ]
            with self._pace.lap(self.model.device, partial(self._time.spent, shares)):
                predictions, calls = self.model.evaluate(partial(evaluate, self.model), some, shape)
            for place, prediction in zip(places, predictions, strict=True):
                found[place] = prediction
            first = 0
            for flight, own in shares:
                last = first + own
                charge(flight.cost, first, last, calls, shallow=cut is not None)
                if self.model.engine.stats.why and last > first:
                    flight.cost.reasons.add(self.model.engine.stats.why)
                first = last
        return torch.stack([prediction for prediction in found if prediction is not None])

    def _stepped(self, flight: Flight, trajectory: Trajectory, step: int) -> Stepped:
        latents = trajectory.latents
        show = partial(preview, self.model, latents)
        return Stepped(flight.id, step, flight.request.executed_steps, latents, show)

    # -- who joins ---------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take in the pictures that are next and find room. New ones begin; those that were set aside go on."""
        self._turns.among((flight.owner, flight.priority) for flight in self._waiting)
        if self._waiting and not reserved_for_features(self._flying):
            self._feature_room = self.model.feature_room()
        admission = Admission(
            self._waiting,
            self._flying,
            rows_at_once=self.model.rows_at_once,
            feature_room=self._feature_room,
            turn=self._turn,
            fits=self.model.store.fits,
        )
        joined: list[Flight] = []
        while (flight := admission.next()) is not None:
            self._waiting.remove(flight)
            self._turns.serve(flight.owner, flight.priority, flight.work)
            if self._hold_adapters(flight):
                admission.joined(flight)
                joined.append(flight)
        self._preparation.fetch_adapters(self._next(AHEAD))
        self._begin([flight for flight in joined if not flight.parked])
        self._go_on([flight for flight in joined if flight.parked])

    def _next(self, count: int) -> list[Flight]:
        """The waiting pictures that are next, at most `count`, the first one first."""
        return heapq.nsmallest(count, self._waiting, key=self._turn)

    def _turn(self, flight: Flight) -> tuple[int, float, int, int]:
        """The sort key of a waiting picture: by priority, then by owners in turn, then first come, first served."""
        return (*self._turns.key(flight.owner, flight.priority), flight.id)

    def _hold_adapters(self, flight: Flight) -> bool:
        """Bring the picture's adapters to the device for its whole run. False, and it fails, where that fails."""
        try:
            flight.hold = self.model.store.hold(flight.adapters)
        except Exception as error:
            self._fail(flight, own_error(error, "its adapters could not be brought to the device"))
            return False
        flight.cost.paged += flight.hold.paged
        return True

    def _begin(self, flights: Sequence[Flight]) -> None:
        """Begin the pictures together. Where that fails, each begins by itself, so that only the one at fault fails."""
        if not flights:
            return
        try:
            self._preparation.open(flights)
        except Exception as error:
            if len(flights) == 1:
                self._fail(flights[0], own_error(error, "the picture could not be begun"))
                return
            log_shared(error, "beginning failed")
            for flight in flights:
                self._begin([flight])
            return
        for flight in flights:
            self._started(flight)

    def _go_on(self, flights: Sequence[Flight]) -> None:
        """Bring pictures that were set aside back into flight."""
        for flight in flights:
            try:
                take_up(flight, self.model.device)
            except Exception as error:
                self._fail(flight, own_error(error, "the picture could not be taken up again"))
            else:
                self._started(flight)

    def _started(self, flight: Flight) -> None:
        self._flying.append(flight)
        self._events.append(Started(flight.id, flight.request))

    def _fail_in_flight(self, flight: Flight, error: StudioError) -> None:
        self._flying.remove(flight)
        self._fail(flight, error)

    def _fail(self, flight: Flight, error: StudioError) -> None:
        self._events.append(flight.failed(error))
