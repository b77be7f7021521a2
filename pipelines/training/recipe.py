"""The settings of a training run, for all types of adapters."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

from torch import nn

from pipelines.errors import RequestError

SMALL_MODEL = 100_000_000
"""A UNet with fewer parameters gets a small recipe by default."""


def is_small(unet: nn.Module) -> bool:
    """Whether a UNet is about as small as those of the embedded models."""
    return sum(weight.numel() for weight in unet.parameters()) < SMALL_MODEL


def _check(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name}={value!r} must be a whole number in {low} … {high}")


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run. Raises RequestError for values that make no sense.

    rank: of each layer's factors. alpha: None stands for the rank, so that the scale is 1.
    learning_rate: AdamW's, constant, without warm-up. weight_decay: AdamW's.
    steps: of the optimiser. batch: noisy copies of pictures in each step.
    size: the side of the square to which pictures are brought, in pixels; None takes the model's own size.
    center_crop: the square is cut from the middle; otherwise the picture is stretched to it.
    seed: of all random numbers of the run.
    gradient_checkpointing: takes less memory, and about a third more time. checkpoint_every: steps between states from
        which training can resume. sample_every: steps between sample pictures, 0 for none.
    """

    rank: int = 64
    alpha: int | None = None
    learning_rate: float = 5e-5
    weight_decay: float = 1e-4
    steps: int = 1000
    batch: int = 1
    size: int | None = None
    center_crop: bool = True
    seed: int = 0
    gradient_checkpointing: bool = True
    checkpoint_every: int = 250
    sample_every: int = 250

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "batch", "checkpoint_every"):
            _check(name, getattr(self, name), 1, 1_000_000)
        _check("sample_every", self.sample_every, 0, 1_000_000)
        _check("seed", self.seed, 0, 2**63 - 1)
        if self.alpha is not None:
            _check("alpha", self.alpha, 1, 1_000_000)
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1e6):
                raise RequestError(f"{name}={value!r} must be a number of 0 or more")
        if not self.learning_rate:
            raise RequestError("learning_rate=0 would train nothing; give a number above 0")
        if self.size is not None:
            _check("size", self.size, 8, 8192)

    @property
    def scale(self) -> float:
        """The factors' scale, alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def with_values(self, **values: object) -> Recipe:
        """This recipe with the given values in place of its own. None keeps its own. Raises RequestError."""
        known = {field.name for field in fields(self)}
        assert values.keys() <= known, values.keys() - known
        return replace(self, **{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
