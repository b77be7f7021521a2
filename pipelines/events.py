"""What a session tells of its pictures. A picture's events come in the order of these classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from pipelines.errors import StudioError
from pipelines.record import Record
from pipelines.request import Request


@dataclass(frozen=True)
class Started:
    """The picture is in flight: `request` is the resolved one, with the seed that was drawn."""

    id: int
    request: Request


@dataclass(frozen=True)
class Stepped:
    """The picture has advanced to `step` of `count`. `preview()` decodes it as it stands (a PIL image).

    latents: [1, channels, h, w] float32.
    """

    id: int
    step: int
    count: int
    latents: Tensor = field(repr=False, compare=False)
    preview: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Finished:
    """The picture: a PIL image, an array [h, w, 3] in 0 … 1, a tensor [3, h, w] in 0 … 1, or latents.

    It comes one or more rounds after its last `Stepped` where pictures are decoded beside the rounds (on CUDA).
    request: the resolved one.
    """

    id: int
    image: object = field(repr=False)
    record: Record
    request: Request


@dataclass(frozen=True)
class Failed:
    """The picture cannot be made; the others go on."""

    id: int
    error: StudioError


@dataclass(frozen=True)
class Cancelled:
    """The picture was taken out before its next UNet call, or before it was decoded."""

    id: int


Event = Started | Stepped | Finished | Failed | Cancelled
