"""One model at work: pictures are given, share UNet calls, and come back as they finish.

The batch script has one worker in its own process; under Ray each actor has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pipelines import Failed, Finished, Record, Request, Session, Started, StudioPipeline
from pipelines.faults import own_error

AHEAD = 2
"""Row limits' worth of pictures that wait at the session's door, so that it never wants for work."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rendered:
    """A picture, or why there is none. request: the resolved one. png: the file's bytes, from a remote worker."""

    key: str
    request: Request | None = field(default=None, repr=False)
    record: Record | None = field(default=None, repr=False)
    image: Image.Image | None = field(default=None, repr=False)
    png: bytes | None = field(default=None, repr=False)
    error: str | None = None


@dataclass
class Fill:
    """How full the rounds were: rows evaluated, in full or shallow, of those the row limit allows.

    busy_*: only rounds with further pictures waiting.
    """

    rows: int = 0
    room: int = 0
    busy_rows: int = 0
    busy_room: int = 0

    @property
    def busy(self) -> float | None:
        """Rows used / row limit while work was waiting; None where none ever was."""
        return self.busy_rows / self.busy_room if self.busy_room else None

    @property
    def overall(self) -> float | None:
        return self.rows / self.room if self.room else None

    def __add__(self, other: Fill) -> Fill:
        return Fill(
            self.rows + other.rows,
            self.room + other.room,
            self.busy_rows + other.busy_rows,
            self.busy_room + other.busy_room,
        )


@dataclass
class _Waiting:
    shape: Shape
    rows: int


class Worker:
    """Renders pictures on one loaded model."""

    def __init__(self, pipe: StudioPipeline, files: Mapping[str, Path]) -> None:
        self.pipe = pipe
        self.fill = Fill()
        pipe.store.add(files)
        self._session = Session(pipe.model)
        self._keys: dict[int, str] = {}
        self._requests: dict[int, Request] = {}
        self._waiting: dict[int, _Waiting] = {}

    def close(self) -> None:
        """Leaves the model as it was found."""
        for id in self._keys:
            self._session.cancel(id)  # what is in flight would keep its adapters
        self.pipe.unload_lora_weights()

    @property
    def busy(self) -> bool:
        return not self._session.idle

    @property
    def hungry(self) -> bool:
        """Whether more pictures should be given, so that no row stays empty."""
        return self.room > 0

    @property
    def room(self) -> int:
        """About how many more pictures should be given."""
        if not self._waiting:
            defaults = self.pipe.model.checkpoint.defaults
            shape = self.pipe.model.latent_shape(defaults.width, defaults.height)
            return max(AHEAD * self.pipe.model.rows_at_once(shape) // 2, 1)
        last = next(reversed(self._waiting.values()))
        free = AHEAD * self._limit(last.shape) - sum(job.rows for job in self._waiting.values())
        return max(-(-free // last.rows), 0)

    def _limit(self, shape: Shape) -> int:
        return self.pipe.model.rows_at_once((shape[0], shape[1], shape[2]))

    def give(self, key: str, request: Request) -> Rendered | None:
        """Ask for a picture; what comes back at once is why it cannot be made."""
        try:
            self.pipe.store.ensure([use.adapter for use in request.uses])
            resolved = request.resolved(self.pipe.model.facts)
            id = self._session.submit(resolved)
        except Exception as error:
            return Rendered(key, error=str(own_error(error, "the picture could not be begun")))
        assert resolved.width is not None
        assert resolved.height is not None
        shape = self.pipe.model.latent_shape(resolved.width, resolved.height)
        rows = len(resolved.plans()[0].lanes)
        self._keys[id], self._requests[id], self._waiting[id] = key, resolved, _Waiting(shape, rows)
        return None

    def step(self) -> list[Rendered]:
        """One round; the pictures that it finished."""
        before = Counter(self.pipe.model.engine.stats.rows)
        rendered = []
        for event in self._session.step():
            if isinstance(event, Started | Failed):
                self._waiting.pop(event.id, None)
            if isinstance(event, Finished):
                assert isinstance(event.image, Image.Image)
                request = self._requests.pop(event.id)
                rendered.append(Rendered(self._keys.pop(event.id), request, event.record, event.image))
            elif isinstance(event, Failed):
                self._requests.pop(event.id)
                rendered.append(Rendered(self._keys.pop(event.id), error=str(event.error)))
        self._measure(self.pipe.model.engine.stats.rows - before)
        return rendered

    def _measure(self, rows_of_round: Counter[Shape]) -> None:
        waiting = Counter(job.shape for job in self._waiting.values())
        for shape, rows in rows_of_round.items():
            limit = self._limit(shape)
            room = limit * -(-rows // limit)
            busy = waiting[shape] > 0
            self.fill += Fill(rows, room, rows * busy, room * busy)
