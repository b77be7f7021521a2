"""The one driver of a session, for the command line, `batch`, Ray's workers and the web.

    give -> [waiting] -> [in flight] -> step: (picture, event) -> Finished or Failed: forgotten
                 |            |
                 +-- cancel --+-- suspend: (picture, aside) -> resume, here or in another runner of the same model

Callers name their pictures as they like: by a task, a key, or a place in a list. The runner remembers which picture is
which in the session, counts the rows that wait, and measures how full the rounds are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines import Event, Failed, Finished, Request, Session, Started, StudioError, Ticket
from pipelines.families.unet import Shape
from pipelines.faults import own_error
from pipelines.flight import Aside
from pipelines.model import Model

P = TypeVar("P", bound=Hashable)

AHEAD = 2
"""How many full UNet calls' worth of pictures may wait in the session. So it never runs out of work."""


@dataclass
class Fill:
    """How full the rounds were.

    rows: the UNet rows that were evaluated, in full or shallow. room: the rows that these calls could have held.
    busy_rows, busy_room: the same, counted only while further pictures of the same shape waited.
    """

    rows: int = 0
    room: int = 0
    busy_rows: int = 0
    busy_room: int = 0

    @property
    def busy(self) -> float | None:
        """busy_rows / busy_room, 0 … 1; None where no further picture ever waited."""
        return self.busy_rows / self.busy_room if self.busy_room else None

    @property
    def overall(self) -> float | None:
        """rows / room, 0 … 1; None before the first round."""
        return self.rows / self.room if self.room else None

    def __add__(self, other: Fill) -> Fill:
        return Fill(
            self.rows + other.rows,
            self.room + other.room,
            self.busy_rows + other.busy_rows,
            self.busy_room + other.busy_room,
        )


class Runner(Generic[P]):
    """Drives one session of a model. It holds a picture at most once at a time. For one thread at a time.

    fill: how full the rounds have been.
    """

    def __init__(self, model: Model) -> None:
        self.fill = Fill()
        self._model = model
        self._session = Session(model)
        self._tickets: dict[P, Ticket] = {}
        self._pictures: dict[int, P] = {}
        self._waiting: dict[P, Ticket] = {}

    def close(self) -> None:
        """Cancels all pictures, so that they let go of their adapters."""
        for picture in self.pictures:
            self.cancel(picture)

    # -- pictures ----------------------------------------------------------------------------------------

    def give(self, picture: P, request: Request, *, owner: Hashable = "", priority: int = 0) -> Ticket:
        """Asks for a picture, and reads the files of its adapters that were not read yet.

        owner, priority: as `Session.submit` takes them. Whatever goes wrong is raised as StudioError, and touches no
        other picture.
        """
        try:
            self._model.store.ensure([use.adapter for use in request.uses])
            return self._entered(picture, self._session.submit(request, owner, priority))
        except StudioError:
            raise
        except Exception as error:
            raise own_error(error, "the picture could not be begun") from error

    def cancel(self, picture: P) -> bool:
        """Takes a picture out before its next UNet call. False where it is not here, or no longer here."""
        ticket = self._tickets.get(picture)
        if ticket is None or not self._session.cancel(ticket.id):
            return False
        self._forget(picture)
        return True

    def suspend(self) -> tuple[list[tuple[P, Aside]], list[P]]:
        """Takes out every picture that is not being decoded.

        Returns those that had begun, each with what `resume` takes, and those that had not.
        """
        begun = [(self._pictures[id], aside) for id, aside in self._session.suspend().items()]
        for picture, _ in begun:
            self._forget(picture)
        return begun, [picture for picture in self.waiting if self.cancel(picture)]

    def resume(self, picture: P, aside: Aside) -> Ticket:
        """Goes on with a picture that was set aside. Raises AdapterFileError as `Session.resume` does."""
        return self._entered(picture, self._session.resume(aside))

    def start_over(self) -> list[P]:
        """Begins a new session after the old one broke. Returns the pictures that were in the old one."""
        lost = self.pictures
        for picture in lost:
            self._forget(picture)
        self._session.close()
        self._session = Session(self._model)
        return lost

    def step(self) -> list[tuple[P, Event]]:
        """Runs one round of the session. Returns its events, each with its picture; cancelled pictures have none."""
        before = Counter(self._model.engine.stats.rows)
        events = []
        for event in self._session.step():
            if event.id not in self._pictures:
                continue
            picture = self._pictures[event.id]
            if isinstance(event, Started):
                self._waiting.pop(picture, None)
            elif isinstance(event, Finished | Failed):
                self._forget(picture)
            events.append((picture, event))
        self._measure(self._model.engine.stats.rows - before)
        return events

    # -- what is here ------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return self._session.idle

    @property
    def pictures(self) -> list[P]:
        """The pictures that were given and are not done."""
        return list(self._tickets)

    @property
    def waiting(self) -> list[P]:
        """The pictures that were given and are not in flight yet."""
        return list(self._waiting)

    @property
    def room(self) -> int:
        """About how many more pictures, each like the last one that waits, to give now so that no row stays empty."""
        if not self._waiting:
            return max(AHEAD * self._limit(self._usual) // 2, 1)
        last = next(reversed(self._waiting.values()))
        free = AHEAD * self._limit(last.shape) - self._rows_waiting
        return max(-(-free // last.rows), 0)

    @property
    def hungry(self) -> bool:
        """Whether the rows that wait are fewer than one UNet call holds at the model's own size.

        A caller that follows this gives as few pictures as possible, fewer than by `room`. The web does: its queue
        should decide late who is next, and after a crash every picture that was given is drawn alone.
        """
        return self._rows_waiting < self._limit(self._usual)

    @property
    def _rows_waiting(self) -> int:
        return sum(ticket.rows for ticket in self._waiting.values())

    @property
    def _usual(self) -> Shape:
        """The latent shape of the model's own size."""
        defaults = self._model.checkpoint.defaults
        return self._model.latent_shape(defaults.width, defaults.height)

    def _limit(self, shape: Shape) -> int:
        return self._model.rows_at_once(shape)

    def _entered(self, picture: P, ticket: Ticket) -> Ticket:
        self._tickets[picture] = self._waiting[picture] = ticket
        self._pictures[ticket.id] = picture
        return ticket

    def _forget(self, picture: P) -> None:
        self._waiting.pop(picture, None)
        ticket = self._tickets.pop(picture, None)
        if ticket is not None:
            self._pictures.pop(ticket.id, None)

    def _measure(self, rows_of_round: Counter[tuple[int, ...]]) -> None:
        waiting = Counter(ticket.shape for ticket in self._waiting.values())
        for shape, rows in rows_of_round.items():
            at = (shape[0], shape[1], shape[2])
            limit = self._limit(at)
            room = limit * -(-rows // limit)
            busy = waiting[at] > 0
            self.fill += Fill(rows, room, rows * busy, room * busy)
