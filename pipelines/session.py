"""The one scheduler: pictures are asked for, step side by side, and leave when they are done.

    submit -> [waiting] -> admit: text, noise -> [in flight] -> one round: one UNet call a latent shape -> decode
                 |           ^                                 (a second one for rows on remembered features)
                 +- texts ---+ encoded ahead, in batches, each distinct one once

On CUDA texts are encoded, pictures decoded and the next round prepared while the device is still at work on the round.
A round advances every picture in flight by one UNet evaluation. Between rounds pictures join, leave and are cancelled.
`StudioPipeline`, the web worker, the batch script and Ray actors are thin users of this class.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from composers.plan import Plan, Prompt
from pipelines.decoding import Decoder, Decoding, OutputType
from pipelines.denoise import Row, evaluate, fold, rows_of
from pipelines.engine.store import Hold
from pipelines.errors import RenderError, RequestError, StudioError
from pipelines.events import Cancelled, Event, Failed, Finished, Started, Stepped
from pipelines.features import Features, Passes, most_kept, passes_of
from pipelines.model import Model
from pipelines.pace import Pace
from pipelines.record import Cost, make_record
from pipelines.request import Request
from pipelines.schedulers import make_scheduler
from pipelines.text.encoder import Embedding
from pipelines.texts import Asks, Texts
from pipelines.trajectory import Trajectory, open_trajectory

LOOK_AHEAD = {"cpu": 4, "cuda": 32}
"""Pictures whose texts are encoded before their turn. Where encoding takes seconds, few: a round waits for it."""
MOST_DECODINGS = 4
"""Decodes under way before the rounds wait for the oldest."""
Shape = tuple[int, int, int]
AHEAD = 4
"""Waiting pictures whose adapters are brought to the device before their turn."""


@dataclass
class _Job:
    id: int
    owner: Hashable
    priority: int
    request: Request
    plans: tuple[Plan, ...]
    passes: tuple[Passes, ...]
    shape: Shape
    features: Features
    trajectory: Trajectory | None = None
    cost: Cost = field(default_factory=Cost)
    began: float = 0.0
    asks: Asks | None = None
    unspeakable: bool = False
    hold: Hold | None = None  # of its adapters on the device; let go when the job is

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(use.adapter for use in self.request.uses)

    @property
    def rows(self) -> int:
        """The rows it needs in its next round."""
        return len((self.trajectory.plan if self.trajectory else self.plans[0]).lanes)


class Session:
    """Renders what is submitted to one model, in shared UNet calls. Not safe for several threads at once."""

    def __init__(self, model: Model, *, output_type: OutputType = "pil") -> None:
        self.model = model
        self.output_type = output_type
        self._ids = itertools.count(1)
        self._waiting: list[_Job] = []
        self._flying: list[_Job] = []
        self._served: dict[Hashable, int] = defaultdict(int)
        self._feature_room = 0
        self._events: list[Event] = []
        self._pace = Pace()
        self._texts = Texts(model)
        self._decoder = Decoder(model, output_type)
        self._decodings: deque[tuple[dict[int, _Job], Decoding]] = deque()
        self._processor = VaeImageProcessor(vae_scale_factor=model.checkpoint.vae_scale_factor)

    def submit(self, request: Request, owner: Hashable = "", priority: int = 0) -> int:
        """Ask for a picture; a higher priority goes first, owners take turns. Returns its id.

        Raises a StudioError for a request that this model cannot render.
        """
        resolved = request.resolved(self.model.facts)
        assert resolved.width is not None
        assert resolved.height is not None
        shape = self.model.latent_shape(resolved.width, resolved.height)
        plans = resolved.plans()
        passes = passes_of(plans, remembering=resolved.cut is not None)
        job = _Job(next(self._ids), owner, priority, resolved, plans, passes, shape, Features())
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
                    self._events.append(Cancelled(id))
                    return True
        for jobs in (self._waiting, self._flying):
            for job in jobs:
                if job.id == id:
                    jobs.remove(job)
                    self._events.append(Cancelled(id))
                    return True
        return False

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._flying or self._decodings or self._events)

    def step(self) -> list[Event]:
        """One round: admit, one UNet evaluation for every picture in flight, decode those that are done, encode the
        texts of those that come next."""
        self._admit()
        for shape in dict.fromkeys(job.shape for job in self._flying):
            self._round([job for job in self._flying if job.shape == shape], shape)
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
        """
        room = {
            shape: self.model.rows_at_once(shape)
            - sum(job.rows for job in self._flying if job.shape == shape)
            for shape in {job.shape for job in self._waiting}
        }
        flying_shapes = {job.shape for job in self._flying}
        reserved = sum(job.cost.feature_bytes for job in self._flying if not job.features.on_host)
        if not reserved and self._waiting:
            self._feature_room = self.model.feature_room()
        chosen: list[_Job] = []
        closed: set[Shape] = set()
        while candidates := [job for job in self._waiting if job.shape not in closed]:
            job = min(candidates, key=self._turn)
            if job.rows > room[job.shape] and job.shape in flying_shapes:
                closed.add(job.shape)
                continue
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
            self._served[job.owner] += 1
            try:
                job.hold = self.model.store.hold(job.adapters)
            except StudioError as error:
                self._events.append(Failed(job.id, error))
                continue
            job.cost.paged = job.hold.paged
            room[job.shape] -= job.rows
            flying_shapes.add(job.shape)
            chosen.append(job)
        soon = heapq.nsmallest(AHEAD, self._waiting, key=self._turn)
        self.model.store.prefetch(name for job in soon for name in job.adapters)
        if not self._waiting:
            self._served.clear()
        self._prepare(chosen)

    def _prepare(self, jobs: Sequence[_Job]) -> None:
        """Encode the text of all, one call a text encoder; where that fails, one by one, so that the bad one
        fails alone."""
        try:
            self._open(jobs)
        except StudioError as error:
            if len(jobs) == 1:
                self._events.append(Failed(jobs[0].id, error))
                return
            for job in jobs:
                self._prepare([job])

    def _open(self, jobs: Sequence[_Job]) -> None:
        texts = self._texts.encode([self._asks(job) for job in jobs])
        opened = [self._trajectory(job, own.embeddings) for job, own in zip(jobs, texts, strict=True)]
        for job, own in zip(jobs, texts, strict=True):
            job.cost.shared = not own.alone
        for job, trajectory in zip(jobs, opened, strict=True):
            job.trajectory, job.began = trajectory, time.perf_counter()
            self._flying.append(job)
            self._events.append(Started(job.id, job.request))

    def _turn(self, job: _Job) -> tuple[int, int, int]:
        """Who comes first: by priority, then owners in turn, then first come first served."""
        return (-job.priority, self._served[job.owner], job.id)

    def _asks(self, job: _Job) -> Asks:
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
        coming = [job for job in coming if not job.unspeakable and fits(job.adapters)]
        try:
            asks = [self._asks(job) for job in coming]
            if not all(self._texts.has(own) for own in asks[: window // 2]):
                self._texts.encode(asks)
        except StudioError:
            for job in coming:
                try:
                    self._texts.encode([self._asks(job)])
                except StudioError:
                    job.unspeakable = True  # it fails when it is admitted

    def _trajectory(self, job: _Job, texts: Mapping[Prompt, Embedding]) -> Trajectory:
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

    def _round(self, jobs: Sequence[_Job], shape: Shape) -> None:
        trajectories = [job.trajectory for job in jobs if job.trajectory is not None]
        try:
            predictions = self._evaluate(jobs, rows_of(trajectories), shape)
        except RenderError as error:
            self._fail(jobs, error)
            return
        first = 0
        for job, trajectory in zip(jobs, trajectories, strict=True):
            last = first + len(trajectory.lanes)
            folded = fold(trajectory.plan, predictions[first:last], job.request.guidance_rescale)
            step = trajectory.step
            trajectory.advance(folded)
            first = last
            if trajectory.done or trajectory.step > step:
                self._events.append(self._stepped(job, trajectory, step + 1))

    def _evaluate(self, jobs: Sequence[_Job], rows: Sequence[Row], shape: Shape) -> Tensor:
        """[rows, channels, h, w]: the rows in full in one call, those that run shallow in one a cut."""
        found: list[Tensor | None] = [None] * len(rows)
        for cut in (None, *dict.fromkeys(row.cut for row in rows if row.shallow)):
            places = [place for place, row in enumerate(rows) if (row.cut if row.shallow else None) == cut]
            if not places:
                continue
            some = [rows[place] for place in places]
            shares = [(job.cost, sum(row.trajectory is job.trajectory for row in some)) for job in jobs]
            with self._pace.lap(self.model.device, partial(_share, shares)):
                predictions, calls = self.model.evaluate(partial(evaluate, self.model), some, shape)
            for place, prediction in zip(places, predictions, strict=True):
                found[place] = prediction
            first = 0
            for job, (cost, own) in zip(jobs, shares, strict=True):
                last = first + own
                _charge(cost, first, last, calls, shallow=cut is not None)
                if self.model.engine.stats.why and last > first:
                    job.cost.reasons.add(self.model.engine.stats.why)
                first = last
        return torch.stack([prediction for prediction in found if prediction is not None])

    def _stepped(self, job: _Job, trajectory: Trajectory, step: int) -> Stepped:
        latents = trajectory.latents
        return Stepped(job.id, step, job.request.executed_steps, latents, partial(self._preview, latents))

    def _preview(self, latents: Tensor) -> Image.Image:
        image = Decoder(self.model).start(latents).pictures()[0]
        if image is None:
            raise RenderError("the picture is not finite at this step; lower its adapters' strengths")
        assert isinstance(image, Image.Image)
        return image

    def _fail(self, jobs: Iterable[_Job], error: StudioError) -> None:
        for job in jobs:
            self._flying.remove(job)
            self._events.append(Failed(job.id, error))

    # -- the end -----------------------------------------------------------------------------------------

    def _decode(self, jobs: Sequence[_Job]) -> None:
        """Start decoding together what has one shape."""
        for shape in dict.fromkeys(job.shape for job in jobs):
            group = [job for job in jobs if job.shape == shape]
            latents = torch.cat([job.trajectory.latents for job in group if job.trajectory is not None])
            self._decodings.append((dict(enumerate(group)), self._decoder.start(latents)))

    def _gather(self) -> None:
        """Take in what is decoded; where there is nothing else to do, or too much under way, wait for it."""
        resting = not (self._flying or self._waiting)
        while self._decodings and (
            resting or self._decodings[0][1].ready or len(self._decodings) > MOST_DECODINGS
        ):
            jobs, decoding = self._decodings.popleft()
            try:
                images = decoding.pictures()
            except RenderError as error:
                self._events += [Failed(job.id, error) for job in jobs.values()]
                continue
            self._pace.settle()  # the device has done all their calls
            self._events += [self._finished(job, images[place], decoding) for place, job in jobs.items()]

    def _finished(self, job: _Job, image: object, decoding: Decoding) -> Event:
        if image is None:
            return Failed(job.id, _not_finite(self.model, job.request))
        seconds = time.perf_counter() - job.began
        record = make_record(job.request, self.model, job.cost, seconds, self._notes(job, decoding))
        return Finished(job.id, image, record)

    def _notes(self, job: _Job, decoding: Decoding) -> tuple[str, ...]:
        notes = []
        limit = self.model.found_limits.get(job.shape)
        if limit is not None:
            notes.append(
                f"device memory holds {limit} UNet rows a call at this size; larger batches are split"
            )
        if self.model.store.exceeds(job.adapters):
            notes.append("its adapters alone are more than the device memory set aside for adapters")
        if job.features.on_host and self.model.device.type != "cpu":
            notes.append(
                "remembered features were kept in the host's memory, the device's being too small for them"
            )
        if decoding.tiled:
            notes.append(
                "the picture was decoded tile by tile, the device's memory being too small for all of it; "
                "seams can show, very faintly"
            )
        return (*notes, *sorted(job.cost.reasons))


def _share(shares: Sequence[tuple[Cost, int]], seconds: float) -> None:
    """Add a call's seconds on the device to the pictures' costs, by their rows in it."""
    together = sum(rows for _, rows in shares)
    for cost, rows in shares:
        cost.device_seconds += seconds * rows / together


def _charge(cost: Cost, first: int, last: int, calls: Sequence[int], *, shallow: bool) -> None:
    """Add to a picture's cost the calls, all in full or all shallow, in which its rows first … last stood."""
    if shallow:
        cost.shallow_rows += last - first
    else:
        cost.rows += last - first
    start = 0
    for size in calls:
        inside = min(last, start + size) - max(first, start)
        if inside > 0:
            if shallow:
                cost.shallow_calls += 1
            else:
                cost.calls += 1
            cost.largest_call = max(cost.largest_call, size)
            cost.shared = cost.shared or inside < size
        start += size


def _not_finite(model: Model, request: Request) -> RenderError:
    strengths = ", ".join(f"{use.adapter} at {use.weight:g}" for use in request.uses)
    remedy = "lower the adapters' strengths" if strengths else "try another scheduler or dtype"
    if model.dtype == torch.float16:
        remedy += " or render in bfloat16 or float32"
    return RenderError(
        f"seed {request.seed}: the picture is not finite ({strengths or 'no adapters'}, {model.dtype}); {remedy}"
    )
