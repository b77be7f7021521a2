"""What a session tells of its pictures: `Started`, then `Stepped` for each step, then `Finished`.

`Failed` or `Cancelled` may come in place of any of them, and is then the last. A picture that was set aside starts anew
when it goes on. `id` is that of the picture's `Ticket`.
"""

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
    """The picture is in flight. request: the resolved one, with the seed that was drawn."""

    id: int
    request: Request


@dataclass(frozen=True)
class Stepped:
    """The picture has advanced by one step. step: how many are done, 1 … count.

    latents: [1, channels, h, w] float32, on the model's device. preview: decodes them as they stand, as a PIL image.
    """

    id: int
    step: int
    count: int
    latents: Tensor = field(repr=False, compare=False)
    preview: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Finished:
    """The picture is done.

    image: a PIL image, an array [height, width, 3] or a tensor [3, height, width] of float32 in 0 … 1, or latents
    [channels, h, w], as the session's `output_type` says. record: what was done. request: the resolved one.

    On CUDA, pictures are decoded beside the rounds. There this may come several rounds after the last `Stepped`.
    """

    id: int
    image: object = field(repr=False)
    record: Record
    request: Request


@dataclass(frozen=True)
class Failed:
    """The picture cannot be made, and `error` says why. The others go on."""

    id: int
    error: StudioError


@dataclass(frozen=True)
class Cancelled:
    """The picture was taken out: before its next UNet call, or before its decode was over."""

    id: int


Event = Started | Stepped | Finished | Failed | Cancelled
