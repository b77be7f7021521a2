"""One picture of a session, from its request to its last step, and how it is set aside in between.

A picture that is set aside lies in the host's memory: its latents, the state of its scheduler and its generator, its
remembered features, and its texts. It goes on with the same bits, also in another session and with a model that was
loaded anew.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composers.plan import Plan
from pipelines.engine.residency.store import Hold
from pipelines.errors import StudioError
from pipelines.events import Failed
from pipelines.families.unet import Shape
from pipelines.features import Features, Passes
from pipelines.record import Cost
from pipelines.request import Request
from pipelines.texts import Asks
from pipelines.trajectory import Trajectory

Group = tuple[Shape, int]
"""Equal for pictures that can share UNet calls: the latent shape, and 0. A picture that makes calls of its own has its
id in place of the 0."""


@dataclass(frozen=True)
class Ticket:
    """What a session answers to whoever asks for a picture.

    id: names the picture in events; from 1. request: the resolved one, with the seed that was drawn. shape: of its
    latents, (channels, h, w). steps: the solver steps that really run. rows: the UNet rows of its next round. all_rows:
    the rows of all its steps together, each step counted once.
    """

    id: int
    request: Request
    shape: Shape
    steps: int
    rows: int
    all_rows: int


@dataclass
class Flight:
    """One picture that a session was asked for.

    plans, passes: for each step that runs, its lanes and how they run. trajectory: None until it is first in flight.
    began: when that was, in seconds of `time.perf_counter`, as if it had never been set aside. hold: keeps its adapters
    on the device. asks: what it wants encoded, once that is known. not_encoded: its texts could not be encoded ahead of
    its turn. own_calls: it shares no UNet calls with others. rounds_without_room: the number of rounds in which it was
    next and found no room. parked: it was set aside, and its trajectory lies in the host's memory.
    """

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
    not_encoded: bool = False
    hold: Hold | None = None
    own_calls: bool = False
    rounds_without_room: int = 0
    parked: bool = False

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(use.adapter for use in self.request.uses)

    @property
    def embeddings(self) -> dict[str, str]:
        """The embeddings that its texts were encoded with: name -> SHA-256 of the file."""
        asks = self.asks or {}
        return {one.name: one.sha256 for ask in asks.values() for one in ask.embeddings}

    @property
    def rows(self) -> int:
        """The rows it needs in its next round."""
        return len((self.trajectory.plan if self.trajectory else self.plans[0]).lanes)

    @property
    def all_rows(self) -> int:
        """The rows of all its steps together, each step counted once."""
        return sum(len(plan.lanes) for plan in self.plans)

    @property
    def ticket(self) -> Ticket:
        return Ticket(
            self.id, self.request, self.shape, self.request.executed_steps, self.rows, self.all_rows
        )

    @property
    def group(self) -> Group:
        return (self.shape, self.id if self.own_calls else 0)

    @property
    def work(self) -> float:
        """What all its steps cost together, as UNet rows times latent cells."""
        return float(self.all_rows * self.shape[1] * self.shape[2])

    def let_go(self) -> None:
        """Let go of its adapters, features, texts and latents. Nothing more comes of it."""
        if self.hold is not None:
            self.hold.release()
        self.hold = self.trajectory = self.asks = None
        self.features.keep_only(frozenset())

    def failed(self, error: StudioError) -> Failed:
        """Let go of all it holds; the event that says why nothing more comes of it."""
        self.let_go()
        return Failed(self.id, error)


@dataclass(frozen=True)
class Aside:
    """A picture that was set aside in mid-flight.

    adapters: name -> SHA-256 of the file that it was begun with. seconds: how long it has been in flight.
    """

    flight: Flight
    adapters: Mapping[str, str]
    seconds: float


def set_aside(flight: Flight, hashes: Mapping[str, str]) -> Aside:
    """Take a picture in flight off the device. hashes: adapter -> SHA-256 of its file."""
    assert flight.trajectory is not None
    if flight.hold is not None:
        flight.hold.release()
        flight.hold = None
    trajectory = flight.trajectory
    trajectory.latents = trajectory.latents.cpu()
    trajectory.blend = trajectory.blend and trajectory.blend.to(torch.device("cpu"))
    trajectory.texts = {prompt: text.to(torch.device("cpu")) for prompt, text in trajectory.texts.items()}
    _move(trajectory.scheduler, _parked)
    flight.features.move(torch.device("cpu"))
    flight.parked, flight.own_calls, flight.rounds_without_room = True, False, 0
    return Aside(flight, hashes, time.perf_counter() - flight.began)


def take_up(flight: Flight, device: torch.device) -> None:
    """Bring a picture that was set aside back to the device, where it goes on."""
    assert flight.trajectory is not None
    trajectory = flight.trajectory
    trajectory.latents = trajectory.latents.to(device)
    trajectory.blend = trajectory.blend and trajectory.blend.to(device)
    trajectory.texts = {prompt: text.to(device) for prompt, text in trajectory.texts.items()}
    _move(
        trajectory.scheduler, lambda value: value.on_host.to(device) if isinstance(value, _Parked) else value
    )
    if not flight.features.on_host:
        flight.features.move(device)
    flight.parked = False


@dataclass(frozen=True)
class _Parked:
    """A scheduler's tensor that belongs on the device. What a scheduler keeps on the host stays there."""

    on_host: Tensor


def _parked(value: Any) -> Any:
    return _Parked(value.cpu()) if isinstance(value, Tensor) and value.device.type != "cpu" else value


def _move(scheduler: Any, moved: Any) -> None:
    """Apply `moved` to each value that a scheduler remembers between steps, also to those in its lists and tuples."""
    for name, value in list(vars(scheduler).items()):
        if isinstance(value, list | tuple):
            setattr(scheduler, name, type(value)(moved(one) for one in value))
        elif isinstance(value, Tensor | _Parked):
            setattr(scheduler, name, moved(value))
