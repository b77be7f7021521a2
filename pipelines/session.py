"""The one scheduler: pictures are asked for, step side by side, and leave when they are done.

    submit -> [waiting] -> admit: text, noise -> [in flight] -> one round: one UNet call a latent shape -> decode
                 |           ^                                 (a second one for rows on remembered features)
                 +- texts ---+ encoded ahead, in batches, each distinct one once

On CUDA texts are encoded, pictures decoded and the next round prepared while the device is still at work on the round.
A round advances every picture in flight by one UNet evaluation; where the calls of one owner's pictures, or of one
shape, take much longer than others', these rest until the others have had as many seconds of the device.
Between rounds pictures join, leave, are cancelled and are set aside.

What is done for several pictures at once and fails, is done again for each by itself: only the guilty one fails.
`StudioPipeline`, the web worker, the batch script and Ray actors are thin users of this class.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from composers.plan import Prompt
from pipelines.decoding import Decoder, Decoding, OutputType
from pipelines.denoise import Row, evaluate, fold, rows_of
from pipelines.device_time import DeviceTime
from pipelines.errors import AdapterFileError, RenderError, RequestError, StudioError
from pipelines.events import Cancelled, Event, Failed, Finished, Started, Stepped
from pipelines.families.unet import Shape
from pipelines.faults import own_error
from pipelines.features import Features, most_kept, passes_of
from pipelines.flight import Aside, Flight, set_aside, take_up
from pipelines.model import Model
from pipelines.notes import charge, not_finite, notes_on
from pipelines.pace import Pace
from pipelines.record import make_record
from pipelines.request import Request
from pipelines.schedulers import make_scheduler
from pipelines.text.encoder import Embedding
from pipelines.texts import Asks, Texts
from pipelines.trajectory import Trajectory, open_trajectory
from pipelines.turns import Turns

LOOK_AHEAD = {"cpu": 4, "cuda": 32}
"""Pictures whose texts are encoded before their turn. Where encoding takes seconds, few: a round waits for it."""
MOST_DECODINGS = 4
"""Decodes under way before the rounds wait for the oldest."""
AHEAD = 4
"""Waiting pictures whose adapters are brought to the device before their turn."""
PATIENCE = 16
"""Rounds that a picture waits for room in its shape's calls before it makes calls of its own."""


class Session:
    """Renders what is submitted to one model, in shared UNet calls. Not safe for several threads at once."""

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
        self._texts = Texts(model)
        self._decoder = Decoder(model, output_type)
        self._decodings: deque[tuple[dict[int, Flight], Decoding]] = deque()
        self._processor = VaeImageProcessor(vae_scale_factor=model.checkpoint.vae_scale_factor)

    def submit(self, request: Request, owner: Hashable = "", priority: int = 0) -> int:
        """Ask for a picture; a higher priority goes first, owners take turns. Returns its id.

        Raises a StudioError for a request that this model cannot render.
        """
        resolved = request.resolved(self.model.facts)
        assert resolved.width is not None
        assert resolved.height is not None
        self.model.needs.refuse(resolved.width, resolved.height, encoding=resolved.init_image is not None)
        shape = self.model.latent_shape(resolved.width, resolved.height)
        plans = resolved.plans()
        passes = passes_of(plans, remembering=resolved.cut is not None)
        job = Flight(next(self._ids), owner, priority, resolved, plans, passes, shape, Features())
        if resolved.cut is not None:
            job.cost.feature_bytes = most_kept(passes) * self.model.feature_bytes(shape, resolved.cut)
        self._waiting.append(job)
        return job.id

    def cancel(self, id: int) -> bool:
        """Take a picture out; it makes no further UNet call. False where it is not here (any more)."""
        for decoding, _ in self._decodings:
            for place, job in decoding.items():
                if job.id == id:
                    del decoding[place]
                    self._cancelled(job)
                    return True
        for jobs in (self._waiting, self._flying):
            for job in jobs:
                if job.id == id:
                    jobs.remove(job)
                    self._cancelled(job)
                    return True
        return False

    def _cancelled(self, job: Flight) -> None:
        job.let_go()
        self._events.append(Cancelled(job.id))

    def suspend(self) -> dict[int, Aside]:
        """Take all pictures in flight off the device; id -> what `resume` takes, in this session or in another of the
        same model. Those that are not begun or are being decoded stay."""
        found = {}
        for job in [*self._flying, *(job for job in self._waiting if job.parked)]:
            try:
                hashes = {name: self.model.adapter(name).report.sha256 for name in job.adapters}
                found[job.id] = set_aside(job, hashes)
            except Exception as error:
                self._lost(job, own_error(error, "the picture could not be set aside"))
        self._flying = []
        self._waiting = [job for job in self._waiting if not job.parked]
        return found

    def resume(self, aside: Aside) -> int:
        """Go on with a picture that was set aside, where it was, as soon as it is its turn; its id from now on.

        Its adapters are loaded. Raises AdapterFileError where one of them is another file by now.
        """
        for name, digest in aside.adapters.items():
            known = self.model.store.known.get(name)
            if known is None or known.report.sha256 != digest:
                raise AdapterFileError(
                    f"LoRA {name!r} was changed while a picture with it was set aside; ask for the picture again"
                )
        job = aside.flight
        job.id, job.began = next(self._ids), time.perf_counter() - aside.seconds
        self._waiting.append(job)
        return job.id

    def close(self) -> None:
        """Lets go of all that is here; the session is not used any more."""
        for job in [
            *self._waiting,
            *self._flying,
            *(job for jobs, _ in self._decodings for job in jobs.values()),
        ]:
            job.let_go()

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._flying or self._decodings or self._events)

    def step(self) -> list[Event]:
        """One round: admit, one UNet evaluation for every picture in flight, decode those that are done, encode the
        texts of those that come next."""
        self._admit()
        for jobs in self._time.due(self._flying):
            self._round(jobs)
        done = [job for job in self._flying if job.trajectory is not None and job.trajectory.done]
        self._flying = [job for job in self._flying if job not in done]
        self._decode(done)
        self._look_ahead()
        self._gather()
        events, self._events = self._events, []
        return events

    def drain(self) -> Iterator[Event]:
        """Rounds until nothing is left, as events."""
        while not self.idle:
            yield from self.step()

    # -- admission ---------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Fill each latent shape's row limit and the device's room for adapters: by priority, then owners in turn,
        then first come first served.

        What features a picture will remember is reserved here for its whole run. A picture whose features do not fit
        beside those in flight waits; one whose features never fit keeps them on the host.

        A picture of more rows than a call may hold makes calls of its own, one such picture an owner; where there are
        several owners, so does one of more than half as many. One that is next and finds no room lets nobody overtake
        it for some rounds; then, where there are several owners, it makes its own calls if its owner has nothing in
        flight, else the others go on.
        """
        self._turns.among((job.owner, job.priority) for job in self._waiting)
        several = len({job.owner for job in [*self._waiting, *self._flying]}) > 1
        for job in self._flying:
            job.apart = job.apart or (several and 2 * job.rows > self.model.rows_at_once(job.shape))
        limits = {shape: self.model.rows_at_once(shape) for shape in {job.shape for job in self._waiting}}
        together = [job for job in self._flying if not job.apart]
        room = {
            shape: limit - sum(job.rows for job in together if job.shape == shape)
            for shape, limit in limits.items()
        }
        flying_shapes = {job.shape for job in together}
        flying_owners = {job.owner for job in self._flying}
        apart = {job.owner for job in self._flying if job.apart}
        reserved = sum(job.cost.feature_bytes for job in self._flying if not job.features.on_host)
        if not reserved and self._waiting:
            self._feature_room = self.model.feature_room()
        chosen: list[Flight] = []
        closed: set[Shape] = set()
        passed: set[int] = set()
        while candidates := [
            job for job in self._waiting if job.shape not in closed and job.id not in passed
        ]:
            job = min(candidates, key=self._turn)
            whale = (1 + several) * job.rows > limits[job.shape]
            job.apart = whale and job.owner not in apart
            if whale and not job.apart:
                passed.add(job.id)
                continue
            if not whale and job.rows > room[job.shape] and job.shape in flying_shapes:
                job.passed += 1
                if job.passed <= PATIENCE or not several:
                    closed.add(job.shape)
                    continue
                if job.owner in flying_owners:
                    passed.add(job.id)
                    continue
                job.apart = True
            if (self._flying or chosen) and not self.model.store.fits(job.adapters):
                closed.add(job.shape)
                continue
            job.features.on_host = job.cost.feature_bytes > self._feature_room
            if not job.features.on_host:
                if reserved + job.cost.feature_bytes > self._feature_room:
                    closed.add(job.shape)
                    continue
                reserved += job.cost.feature_bytes
            self._waiting.remove(job)
            self._turns.serve(job.owner, job.priority, job.work)
            try:
                job.hold = self.model.store.hold(job.adapters)
            except Exception as error:
                self._lost(job, own_error(error, "its adapters could not be brought to the device"))
                continue
            job.cost.paged += job.hold.paged
            flying_owners.add(job.owner)
            if job.apart:
                apart.add(job.owner)
            else:
                room[job.shape] -= job.rows
                flying_shapes.add(job.shape)
            chosen.append(job)
        self._prefetch()
        self._prepare([job for job in chosen if not job.parked])
        self._return([job for job in chosen if job.parked])

    def _prefetch(self) -> None:
        soon = heapq.nsmallest(AHEAD, self._waiting, key=self._turn)
        with suppress(Exception):  # whoever needs them is told when it is admitted
            self.model.store.prefetch(name for job in soon for name in job.adapters)

    def _prepare(self, jobs: Sequence[Flight]) -> None:
        """Encode the text of all, one call a text encoder; where that fails, one by one, so that the bad one
        fails alone."""
        if not jobs:
            return
        try:
            self._open(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._lost(jobs[0], own_error(error, "the picture could not be begun"))
                return
            for job in jobs:
                self._prepare([job])

    def _open(self, jobs: Sequence[Flight]) -> None:
        texts = self._texts.encode([self._asks(job) for job in jobs])
        opened = [self._trajectory(job, own.embeddings) for job, own in zip(jobs, texts, strict=True)]
        for job, own in zip(jobs, texts, strict=True):
            job.cost.shared = not own.alone
        for job, trajectory in zip(jobs, opened, strict=True):
            job.trajectory, job.began = trajectory, time.perf_counter()
            self._begin(job)

    def _return(self, jobs: Sequence[Flight]) -> None:
        """Those that were set aside are in flight again."""
        for job in jobs:
            try:
                take_up(job, self.model.device)
            except Exception as error:
                self._lost(job, own_error(error, "the picture could not be taken up again"))
            else:
                self._begin(job)

    def _begin(self, job: Flight) -> None:
        self._flying.append(job)
        self._events.append(Started(job.id, job.request))

    def _turn(self, job: Flight) -> tuple[int, float, int, int]:
        """Who comes first: by priority, then owners in turn, then first come first served."""
        return (*self._turns.key(job.owner, job.priority), job.id)

    def _asks(self, job: Flight) -> Asks:
        """What the picture wants encoded. Raises RequestError where an adapter has been unloaded since it was asked
        for, and PromptError."""
        for use in job.request.uses:
            if use.adapter not in self.model.store.known:
                raise RequestError(
                    f"adapter {use.adapter!r} was unloaded while a picture with it waited; load it again"
                )
        if job.asks is None:
            job.asks = self._texts.asks(job.request, job.plans)
        return job.asks

    def _look_ahead(self) -> None:
        """Encode the texts of the next pictures in one call, while the device is at work on the round: as soon as one
        of the nearer half lacks its own."""
        window = LOOK_AHEAD.get(self.model.device.type, 4)
        coming = heapq.nsmallest(window, self._waiting, key=self._turn)
        fits = self.model.store.fits  # encoding needs the adapters on the device, beside those in flight
        coming = [job for job in coming if not (job.unspeakable or job.parked) and fits(job.adapters)]
        try:
            asks = [self._asks(job) for job in coming]
            if not all(self._texts.has(own) for own in asks[: window // 2]):
                self._texts.encode(asks)
        except Exception:
            for job in coming:
                try:
                    self._texts.encode([self._asks(job)])
                except Exception:
                    job.unspeakable = True  # it fails when it is admitted

    def _trajectory(self, job: Flight, texts: Mapping[Prompt, Embedding]) -> Trajectory:
        request, encoded = job.request, None
        if request.init_image is not None:
            image = request.init_image.convert("RGB")
            pixels = self._processor.preprocess(image, height=request.height, width=request.width)
            encoded = partial(self.model.encode_image, pixels)
        return open_trajectory(
            request,
            plans=job.plans,
            passes=job.passes,
            texts=texts,
            sizes=self._sizes(request),
            scheduler=make_scheduler(request.scheduler, self.model.checkpoint.scheduler),
            shape=job.shape,
            device=self.model.device,
            features=job.features,
            encoded=encoded,
        )

    def _sizes(self, request: Request) -> tuple[int, ...]:
        if not self.model.checkpoint.family.size_conditioned:
            return ()
        assert request.original_size is not None
        assert request.target_size is not None
        return (*request.original_size, *request.crop, *request.target_size)

    # -- a round -----------------------------------------------------------------------------------------

    def _round(self, jobs: Sequence[Flight]) -> None:
        """One UNet evaluation of each; where the shared one fails, one by one, so that the bad one fails alone."""
        try:
            trajectories = [job.trajectory for job in jobs if job.trajectory is not None]
            predictions = self._evaluate(jobs, rows_of(trajectories), jobs[0].shape)
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], own_error(error, "a step failed"))
                return
            for job in jobs:
                self._round([job])
            return
        first = 0
        for job, trajectory in zip(jobs, trajectories, strict=True):
            last = first + len(trajectory.lanes)
            own = predictions[first:last]
            first = last
            try:
                step = trajectory.step
                trajectory.advance(fold(trajectory.plan, own, job.request.guidance_rescale))
                if trajectory.done or trajectory.step > step:
                    self._events.append(self._stepped(job, trajectory, step + 1))
            except Exception as error:
                self._fail(job, own_error(error, "a step failed"))

    def _evaluate(self, jobs: Sequence[Flight], rows: Sequence[Row], shape: Shape) -> Tensor:
        """[rows, channels, h, w]: the rows in full in one call, those that run shallow in one a cut."""
        found: list[Tensor | None] = [None] * len(rows)
        for cut in (None, *dict.fromkeys(row.cut for row in rows if row.shallow)):
            places = [place for place, row in enumerate(rows) if (row.cut if row.shallow else None) == cut]
            if not places:
                continue
            some = [rows[place] for place in places]
            shares = [(job, sum(row.trajectory is job.trajectory for row in some)) for job in jobs]
            with self._pace.lap(self.model.device, partial(self._time.spent, shares)):
                predictions, calls = self.model.evaluate(partial(evaluate, self.model), some, shape)
            for place, prediction in zip(places, predictions, strict=True):
                found[place] = prediction
            first = 0
            for job, own in shares:
                last = first + own
                charge(job.cost, first, last, calls, shallow=cut is not None)
                if self.model.engine.stats.why and last > first:
                    job.cost.reasons.add(self.model.engine.stats.why)
                first = last
        return torch.stack([prediction for prediction in found if prediction is not None])

    def _stepped(self, job: Flight, trajectory: Trajectory, step: int) -> Stepped:
        latents = trajectory.latents
        return Stepped(job.id, step, job.request.executed_steps, latents, partial(self._preview, latents))

    def _preview(self, latents: Tensor) -> Image.Image:
        image = Decoder(self.model).start(latents).pictures()[0]
        if image is None:
            raise RenderError("the picture is not finite at this step; lower its adapters' strengths")
        assert isinstance(image, Image.Image)
        return image

    def _fail(self, job: Flight, error: StudioError) -> None:
        self._flying.remove(job)
        self._lost(job, error)

    def _lost(self, job: Flight, error: StudioError) -> None:
        job.let_go()
        self._events.append(Failed(job.id, error))

    # -- the end -----------------------------------------------------------------------------------------

    def _decode(self, jobs: Sequence[Flight]) -> None:
        """Start decoding together what has one shape."""
        for shape in dict.fromkeys(job.shape for job in jobs):
            self._start_decoding([job for job in jobs if job.shape == shape])

    def _start_decoding(self, jobs: Sequence[Flight]) -> None:
        """Where the shared one cannot be started, one by one."""
        try:
            latents = torch.cat([job.trajectory.latents for job in jobs if job.trajectory is not None])
            self._decodings.append((dict(enumerate(jobs)), self._decoder.start(latents)))
        except Exception as error:
            self._decode_apart(jobs, error)

    def _decode_apart(self, jobs: Sequence[Flight], error: Exception) -> None:
        """A decode of these has failed: of one alone it is told, several are decoded again, each by itself."""
        if len(jobs) == 1:
            self._lost(jobs[0], own_error(error, "the picture could not be decoded"))
            return
        for job in jobs:
            self._start_decoding([job])

    def _gather(self) -> None:
        """Take in what is decoded; where there is nothing else to do, or too much under way, wait for it."""
        resting = not (self._flying or self._waiting)
        while self._decodings and (
            resting or self._decodings[0][1].ready or len(self._decodings) > MOST_DECODINGS
        ):
            jobs, decoding = self._decodings.popleft()
            try:
                images = decoding.pictures()
            except Exception as error:
                self._decode_apart(list(jobs.values()), error)
                continue
            self._pace.settle()  # the device has done all their calls
            for place, job in jobs.items():
                self._finish(job, images[place], decoding)

    def _finish(self, job: Flight, image: object, decoding: Decoding) -> None:
        try:
            event = self._finished(job, image, decoding)
        except Exception as error:
            event = Failed(job.id, own_error(error, "the picture's record could not be made"))
        job.let_go()
        self._events.append(event)

    def _finished(self, job: Flight, image: object, decoding: Decoding) -> Event:
        if image is None:
            return Failed(job.id, not_finite(self.model, job.request))
        seconds = time.perf_counter() - job.began
        record = make_record(
            job.request, self.model, job.cost, seconds, notes_on(self.model, job, tiled=decoding.tiled)
        )
        return Finished(job.id, image, record)
