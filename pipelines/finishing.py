"""What is done for pictures after their last step: they are decoded, and their records are made.

Where a decode of several pictures fails, each of them is decoded again by itself, so that only the one at fault fails.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from pipelines.decoding import Decoder, Decoding, OutputType
from pipelines.events import Event, Finished
from pipelines.faults import log_shared, own_error
from pipelines.flight import Flight
from pipelines.inpainting import pasted
from pipelines.memory import picture_made
from pipelines.model import Model
from pipelines.notes import not_finite, notes_on
from pipelines.pace import Pace
from pipelines.record import make_record

MOST_DECODINGS = 4
"""Decodes under way before the rounds wait for the oldest."""


class Finishing:
    """Decodes one session's pictures, in the order in which they are given, and makes their records."""

    def __init__(self, model: Model, output_type: OutputType, pace: Pace) -> None:
        self._model = model
        self._decoder = Decoder(model, output_type)
        self._pace = pace
        self._decodings: deque[tuple[dict[int, Flight], Decoding]] = deque()

    @property
    def busy(self) -> bool:
        """Whether a decode is under way, even if all its pictures have been cancelled."""
        return bool(self._decodings)

    @property
    def flights(self) -> list[Flight]:
        """The pictures that are being decoded."""
        return [flight for flights, _ in self._decodings for flight in flights.values()]

    def start(self, flights: Sequence[Flight]) -> Iterator[Event]:
        """Start to decode pictures, those of one shape together. Yields the events of pictures that fail at once."""
        for shape in dict.fromkeys(flight.shape for flight in flights):
            yield from self._start([flight for flight in flights if flight.shape == shape])

    def gather(self, *, wait: bool) -> Iterator[Event]:
        """Yield the events of the pictures whose decodes are done.

        Waits for the oldest decode while more than `MOST_DECODINGS` are under way. wait: wait for all of them.
        """
        while self._decodings and (
            wait or self._decodings[0][1].ready or len(self._decodings) > MOST_DECODINGS
        ):
            flights, decoding = self._decodings.popleft()
            try:
                images = decoding.pictures()
            except Exception as error:
                yield from self._one_by_one(list(flights.values()), error)
                continue
            self._pace.settle()  # the device has done all their calls
            for place, flight in flights.items():
                yield self._finish(flight, images[place], tiled=decoding.tiled)

    def take_out(self, id: int) -> Flight | None:
        """Remove a picture and return it; None where it is not being decoded."""
        for flights, _ in self._decodings:
            for place, flight in flights.items():
                if flight.id == id:
                    return flights.pop(place)
        return None

    def _start(self, flights: Sequence[Flight]) -> Iterator[Event]:
        try:
            latents = [flight.trajectory.latents for flight in flights if flight.trajectory is not None]
            self._decodings.append((dict(enumerate(flights)), self._decoder.start(torch.cat(latents))))
        except Exception as error:
            yield from self._one_by_one(flights, error)

    def _one_by_one(self, flights: Sequence[Flight], error: Exception) -> Iterator[Event]:
        """Handle a failed decode: one picture fails with it, several are decoded again, each by itself."""
        if len(flights) == 1:
            yield flights[0].failed(own_error(error, "the picture could not be decoded"))
            return
        log_shared(error, "decoding failed")
        for flight in flights:
            yield from self._start([flight])

    def _finish(self, flight: Flight, image: object, *, tiled: bool) -> Event:
        if image is None:
            return flight.failed(not_finite(self._model, flight.request))
        try:
            seconds = time.perf_counter() - flight.began
            notes = notes_on(self._model, flight, tiled=tiled)
            record = make_record(flight.request, self._model, flight.cost, seconds, notes, flight.embeddings)
            if isinstance(image, Image.Image):
                image = pasted(flight.request, image)
        except Exception as error:
            return flight.failed(own_error(error, "the picture's record could not be made"))
        flight.let_go()
        picture_made()
        return Finished(flight.id, image, record, flight.request)
