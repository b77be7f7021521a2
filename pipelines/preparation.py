"""What is done for pictures before they are in flight.

While the device works on a round, the next pictures' adapters are fetched and their texts encoded. When it is a
picture's turn, its trajectory is opened: texts, start noise, the latents of an initial image.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor

from composers.plan import Prompt
from pipelines.errors import RequestError
from pipelines.faults import log_shared
from pipelines.flight import Flight
from pipelines.inpainting import canvas
from pipelines.model import Model
from pipelines.request import Request
from pipelines.schedulers import make_scheduler
from pipelines.text.encoder import Embedding
from pipelines.texts import Asks, Texts
from pipelines.trajectory import Trajectory, open_trajectory

LOOK_AHEAD = {"cpu": 4, "cuda": 32}
"""How many pictures have their texts encoded before their turn. Few on a CPU, where encoding takes seconds and the
round waits for it."""


class Preparation:
    """Prepares one session's pictures."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._texts = Texts(model)
        self._processor = VaeImageProcessor(vae_scale_factor=model.checkpoint.vae_scale_factor)

    @property
    def look_ahead(self) -> int:
        """How many of the next pictures have their texts encoded before their turn."""
        return LOOK_AHEAD.get(self._model.device.type, 4)

    def fetch_adapters(self, coming: Sequence[Flight]) -> None:
        """Start to bring the adapters of the next pictures to the device. Raises nothing."""
        with suppress(Exception):  # whoever needs them is told when it is admitted
            self._model.store.prefetch(name for flight in coming for name in flight.adapters)

    def encode_ahead(self, coming: Sequence[Flight]) -> None:
        """Encode the texts of the next pictures in one call. coming: the nearest first.

        Does nothing while the nearer half of `look_ahead` is encoded. Raises nothing: a picture whose texts cannot be
        encoded fails when it is opened.
        """
        fits = self._model.store.fits  # encoding needs the adapters on the device, beside those in flight
        coming = [
            flight for flight in coming if not (flight.not_encoded or flight.parked) and fits(flight.adapters)
        ]
        try:
            asks = [self._asks(flight) for flight in coming]
            if not all(self._texts.has(own) for own in asks[: self.look_ahead // 2]):
                self._texts.encode(asks)
        except Exception as error:
            if len(coming) > 1:
                log_shared(error, "encoding ahead failed")
            for flight in coming:
                try:
                    self._texts.encode([self._asks(flight)])
                except Exception:
                    flight.not_encoded = True  # it fails when it is admitted

    def open(self, flights: Sequence[Flight]) -> None:
        """Give each picture its trajectory. Their texts are encoded together.

        Raises the error of any one of them; then none has a trajectory.
        """
        texts = self._texts.encode([self._asks(flight) for flight in flights])
        opened = [
            self._trajectory(flight, own.embeddings) for flight, own in zip(flights, texts, strict=True)
        ]
        for flight, own, trajectory in zip(flights, texts, opened, strict=True):
            flight.cost.shared = not own.alone
            flight.trajectory, flight.began = trajectory, time.perf_counter()

    def _asks(self, flight: Flight) -> Asks:
        """What the picture needs encoded. Raises PromptError, and RequestError where one of its adapters has been
        unloaded since it was submitted."""
        for use in flight.request.uses:
            if use.adapter not in self._model.store.known:
                raise RequestError(
                    f"adapter {use.adapter!r} was unloaded while a picture with it waited; load it again"
                )
        if flight.asks is None:
            flight.asks = self._texts.asks(flight.request, flight.plans)
        return flight.asks

    def _trajectory(self, flight: Flight, texts: Mapping[Prompt, Embedding]) -> Trajectory:
        request, encoded, mask = flight.request, None, None
        if request.init_image is not None:
            image = request.init_image.convert("RGB")
            if request.mask is not None:
                own = canvas(request)
                image, mask = own.image, F.adaptive_avg_pool2d(own.latent_mask, flight.shape[1:])
            pixels = self._processor.preprocess(image, height=request.height, width=request.width)
            encoded = partial(self._model.encode_image, pixels)
        return open_trajectory(
            request,
            plans=flight.plans,
            passes=flight.passes,
            texts=texts,
            sizes=self._sizes(request),
            scheduler=make_scheduler(request.scheduler, self._model.checkpoint.scheduler),
            shape=flight.shape,
            device=self._model.device,
            features=flight.features,
            encoded=encoded,
            mask=mask,
        )

    def _sizes(self, request: Request) -> tuple[int, ...]:
        if not self._model.checkpoint.family.size_conditioned:
            return ()
        assert request.original_size is not None
        assert request.target_size is not None
        return (*request.original_size, *request.crop, *request.target_size)
