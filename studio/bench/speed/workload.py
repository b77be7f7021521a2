"""What is timed: denoising steps for pictures that each have a mix. No tensors here."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from composers import Composer, Mix, Step, Use, build
from pipelines.features import passes_of

Layers = Literal["attention", "linear", "conv"]
Spread = Literal["identical", "distinct", "uniform", "skewed"]
Method = Literal["merge", "switch", "composite", "cmlora"]
LAYERS, SPREADS, METHODS = get_args(Layers), get_args(Spread), get_args(Method)

GUIDANCE = 5.0
CMLORA_STEPS = 20
ZIPF = 1.5
"""Exponent of the skewed popularity (punica, Chen et al. 2023, arXiv 2310.18547, section 7)."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = (*ATTENTION, "net.0.proj", "net.2", "proj_in", "proj_out")
CONV = (*LINEAR, "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
SUFFIXES = {"attention": ATTENTION, "linear": LINEAR, "conv": CONV}
"""Layers that an adapter of each kind touches, by the end of their names (SD1.x's proj_in is a convolution)."""


@dataclass(frozen=True)
class WorkloadRow:
    """One row of a UNet call. memory: the key of the features that it makes or runs on. kept: whether a later step
    reads them."""

    image: int
    negative: bool
    uses: tuple[Use, ...]
    memory: object
    shallow: bool
    kept: bool


@dataclass(frozen=True)
class Workload:
    """`images` pictures of `cells` x `cells` latent cells, each with a mix of `members` adapters of one rank.

    spread, named as in punica: "identical" pictures share one mix, "distinct" ones have one each; "uniform" ones draw
    theirs from the square root of as many mixes, "skewed" ones by a Zipf law from as many mixes as pictures.
    pool: distinct mixes overlap in so many adapters; None gives every mix its own.
    """

    cells: int
    images: int = 8
    members: int = 3
    rank: int = 16
    layers: Layers = "attention"
    spread: Spread = "distinct"
    method: Method = "merge"
    pool: int | None = None

    @property
    def adapters(self) -> int:
        """How many adapters the mixes use in all."""
        return self.pool or self.members * self._distinct

    @property
    def label(self) -> str:
        return (
            f"{self.images} x {self.cells * 8} px, {self.method} of {self.members}, {self.spread}, "
            f"{self.layers} rank {self.rank}"
        )

    def mixes(self, seed: int = 0) -> tuple[Mix, ...]:
        """The mix of every picture. Another seed gives the same members other strengths."""
        numbers = random.Random(f"mixes {seed}")
        strengths = [
            [round(numbers.uniform(0.4, 1.0), 2) for _ in range(self.members)] for _ in range(self._distinct)
        ]
        mixes = [
            Mix(
                tuple(
                    Use(adapter_name((self.members * mix + place) % self.adapters), weight)
                    for place, weight in enumerate(row)
                )
            )
            for mix, row in enumerate(strengths)
        ]
        return tuple(mixes[which] for which in self._popularity())

    def steps(self, seed: int = 0) -> tuple[tuple[WorkloadRow, ...], ...]:
        """The rows of each step of the smallest run that shows the method's mean cost."""
        composer, count = self._run()
        return steps_of(composer, count, self.mixes(seed))

    @property
    def _distinct(self) -> int:
        if self.spread == "identical":
            return 1
        return math.ceil(self.images**0.5) if self.spread == "uniform" else self.images

    def _popularity(self) -> list[int]:
        """The number of each picture's mix."""
        draw = random.Random(f"popularity {self.spread} {self.images}")
        match self.spread:
            case "identical":
                return [0] * self.images
            case "distinct":
                return list(range(self.images))
            case "uniform":
                return [draw.randrange(self._distinct) for _ in range(self.images)]
            case "skewed":
                weights = [(place + 1) ** -ZIPF for place in range(self._distinct)]
                return draw.choices(range(self._distinct), weights, k=self.images)

    def _run(self) -> tuple[Composer, int]:
        match self.method:
            case "switch":
                return build("switch", {"interval": 1}), self.members
            case "cmlora":
                return build("cmlora", {}), CMLORA_STEPS
            case _:
                return build(self.method, {}), 1


def adapter_name(index: int) -> str:
    return f"a{index}"


def steps_of(composer: Composer, count: int, mixes: Sequence[Mix]) -> tuple[tuple[WorkloadRow, ...], ...]:
    """The rows of `count` steps, picture by picture, each positive row before its negative twin."""
    runs = []
    for image, mix in enumerate(mixes):
        resolved = composer.resolved(mix, count)
        plans = [resolved.plan(Step(index, count, GUIDANCE), mix) for index in range(count)]
        passes = passes_of(plans, remembering=resolved.plans_reuse)
        runs.append(
            [
                [
                    WorkloadRow(
                        image,
                        lane.prompt.role == "negative",
                        lane.uses,
                        (image, lane.memory),
                        shallow,
                        not shallow and lane.memory in own.kept,
                    )
                    for lane, shallow in zip(plan.lanes, own.shallow, strict=True)
                ]
                for plan, own in zip(plans, passes, strict=True)
            ]
        )
    return tuple(tuple(row for run in runs for row in run[index]) for index in range(count))
