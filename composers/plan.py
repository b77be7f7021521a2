"""The words that every composition method is written in. Uses and mixes go in, plans of lanes come out.

A composer is a pure function of (step, mix). It holds settings and no state. It knows no tensor, no model and no file.
So all lanes of a run are known before the run starts.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, ClassVar, Literal

from composers.errors import ComposerError
from composers.shown import shown

Role = Literal["positive", "negative"]
Band = Literal["high", "low"]
TextMode = Literal["merged", "first", "per_adapter"]


@dataclass(frozen=True)
class Schedule:
    """A factor on a strength that changes over the run.

    points: (start, factor) pairs. A start in 0 … 1, 1 excluded, is a fraction of the run's steps. A whole number from 1
    on is the number of a step; steps count from 0. Factors are finite. Each holds from its start to the next one, and
    before the first start the factor is 1.

    A schedule scales strengths only. It never changes who is in the mix, whose turn it is, or the shares. Raises
    ComposerError for any other start or factor, and where the fractions, or the step numbers, do not rise strictly.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not _are_pairs(self.points):
            raise ComposerError(f"schedule {shown(self.points)} must be pairs of a start and a factor")
        starts = [start for start, _ in self.points]
        if not all(_is_finite(start) and (0 <= start < 1 or start == int(start) > 0) for start in starts):
            raise ComposerError(
                f"schedule starts {shown(starts)} must be fractions of the steps below 1, or step numbers"
            )
        for alike in ([start for start in starts if start < 1], [start for start in starts if start >= 1]):
            if alike != sorted(set(alike)):
                raise ComposerError(f"schedule starts {shown(starts)} must rise strictly")
        for _, factor in self.points:
            if not _is_finite(factor):
                raise ComposerError(f"schedule factor {shown(factor)} must be a finite number")

    def over(self, count: int) -> Schedule | None:
        """The schedule for a run of `count` steps, with all starts as fractions.

        None where every start is a step number that the run does not reach. Raises ComposerError where the fractions
        and the step numbers together do not rise strictly.
        """
        if all(start < 1 for start, _ in self.points):
            return self
        points = [(start if start < 1 else start / count, factor) for start, factor in self.points]
        starts = [start for start, _ in points]
        if starts != sorted(set(starts)):
            raise ComposerError(
                f"schedule starts {shown([start for start, _ in self.points])} must rise strictly; over {count} "
                "steps they do not"
            )
        reached = tuple(point for point in points if point[0] < 1)
        return Schedule(reached) if reached else None

    def factor(self, step: Step) -> float:
        """The factor at a step. A start has passed where it is at most index / count."""
        own = self.over(step.count)
        points = own.points if own is not None else ()
        begun = bisect_right(points, step.index / step.count, key=lambda point: point[0] - 1e-9)
        return points[begun - 1][1] if begun else 1.0


@dataclass(frozen=True)
class Use:
    """One adapter in a mix. All strengths and factors are finite numbers, and may be negative.

    weight: the strength of its UNet part.
    text_weight: the strength of its text-encoder part; None means `weight`. A use with both strengths at 0 is removed
        before planning.
    blocks: (block name, factor) pairs; a factor multiplies `weight`. () means every block at 1. Otherwise blocks that
        are not listed are at 0. Names match on dotted boundaries, and the longest match wins.
    schedule: a factor on `weight` over the steps. It acts on the text encoder only where `text_scheduled` is true, as
        for an adapter that a prompt names in an edit.
    pinned: it is active in every lane of both roles, as an acceleration adapter such as LCM must be. The composer does
        not see it.
    band: its frequency band (CMLoRA, Zou et al. 2025, arXiv 2502.04923). "high" dominates early, "low" late. None
        leaves the choice to its profile or its metadata.

    Raises ComposerError.
    """

    adapter: str
    weight: float = 1.0
    text_weight: float | None = None
    blocks: tuple[tuple[str, float], ...] = ()
    schedule: Schedule | None = None
    pinned: bool = False
    band: Band | None = None
    text_scheduled: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, str):
            raise ComposerError(f"adapter={shown(self.adapter)} must be a name")
        if not _are_pairs(self.blocks):
            raise ComposerError(
                f"adapter {shown(self.adapter)}: blocks={shown(self.blocks)} must be pairs of a name and a factor"
            )
        numbers = [self.weight, *(factor for _, factor in self.blocks)]
        if self.text_weight is not None:
            numbers.append(self.text_weight)
        if not all(map(_is_finite, numbers)):
            raise ComposerError(
                f"adapter {shown(self.adapter)}: weights must be finite numbers, got {shown(numbers)}"
            )
        if self.band not in (None, "high", "low"):
            raise ComposerError(
                f"adapter {shown(self.adapter)}: band={shown(self.band)} must be high, low or None"
            )

    def block_factor(self, module: str) -> float:
        """The factor for a module of the UNet, given by its dotted name. It is 0 where no listed block holds it."""
        if not self.blocks:
            return 1.0
        matching = [
            (len(name), factor) for name, factor in self.blocks if f"{module}.".startswith(f"{name}.")
        ]
        return max(matching)[1] if matching else 0.0


@dataclass(frozen=True)
class Mix:
    """The adapters of one picture that are not pinned, in order, and how the text encoder sees them.

    text: "merged" encodes both prompts with all adapters, at their text strengths. "first" takes the first adapter
        only. "per_adapter" encodes the prompt of each lane with that lane's own adapters.
    """

    uses: tuple[Use, ...] = ()
    text: TextMode = "merged"

    def __len__(self) -> int:
        return len(self.uses)

    def lane(self, uses: Iterable[Use], share: float, *, fresh: bool = True) -> Lane:
        """A positive lane in which `uses` act. Its prompt is encoded as this mix says. share, fresh: see `Lane`."""
        uses = tuple(uses)
        seen = {"merged": self.uses, "first": self.uses[:1], "per_adapter": uses}[self.text]
        return Lane(Prompt("positive", text_uses(seen)), uses, share, fresh)


def _are_pairs(value: object) -> bool:
    """Whether it is a row of pairs."""
    return isinstance(value, tuple | list) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in value
    )


def _is_finite(value: object) -> bool:
    """Whether it is a real number, no bool, and finite as a float."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def text_uses(uses: Iterable[Use]) -> tuple[Use, ...]:
    """What the text encoder gets of `uses`: each adapter with its text strength as `weight`, without those at 0."""
    strengths = ((use.adapter, use.weight if use.text_weight is None else use.text_weight) for use in uses)
    return tuple(Use(adapter, weight) for adapter, weight in strengths if weight != 0)


@dataclass(frozen=True)
class Step:
    """One of the `count` solver steps that are really executed.

    index: 0 … count - 1; 0 is the noisiest. guidance: the picture's guidance scale, 0 or above.
    """

    index: int
    count: int
    guidance: float


@dataclass(frozen=True)
class Prompt:
    """One of the request's two prompts, and the adapters that it is encoded with (see `text_uses`).

    text: which of the texts that the prompts stand for (`pipelines.text.editing`). Composers leave it alone: whoever
        drives them puts it in, step by step.
    """

    role: Role
    text_uses: tuple[Use, ...] = ()
    text: int = 0


@dataclass(frozen=True)
class Lane:
    """One row of a UNet batch.

    prompt: what it is conditioned on. uses: the adapters that act on it.
    share: its part in the mean of its role, 0 … 1. The shares of each role sum to 1, until the weights of prompts that
        AND joins are multiplied in.
    fresh: False permits the engine to run on remembered deep features. Where none are remembered that still hold, the
        lane runs in full all the same (`pipelines.features`).
    variant: names a changed forward pass; "" is the plain one.
    """

    prompt: Prompt
    uses: tuple[Use, ...]
    share: float
    fresh: bool = True
    variant: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """Lanes with equal keys are one and the same evaluation."""
        return (self.prompt, self.variant, self.uses)

    @property
    def memory(self) -> tuple[object, ...]:
        """The key under which its deep features are remembered: as `key`, but without strengths and factors."""
        members = tuple((use.adapter, tuple(name for name, _ in use.blocks)) for use in self.uses)
        return (self.prompt, self.variant, members)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): u + scale * (c - u).

    c and u are the means of the positive and the negative role. At a scale of 1 or less, the result is c alone.

    total: the sum of the positive shares, which is 1 unless AND joins prompts with weights w. The rule is then
        u + scale * sum_i w_i (c_i - u) (Liu et al. 2022, arXiv 2206.01714, equation 11), at a scale of at least 1.
    """

    scale: float
    total: float = 1.0


@dataclass(frozen=True)
class Plan:
    """The lanes of one picture at one step, and the rule that folds their predictions into one.

    max_age: the most steps since the features were made that a lane may run on, if it need not be fresh.
    """

    lanes: tuple[Lane, ...]
    rule: Guidance
    max_age: int = 5


def guided(lanes: Iterable[Lane], step: Step) -> Plan:
    """The plan of these positive lanes. Where guidance is above 1 (diffusers' rule), a negative twin follows each lane.

    Lanes with equal keys become one, with the sum of their shares. Lanes with a share of 0 are dropped. Raises
    ComposerError for a negative share.
    """
    merged: dict[object, Lane] = {}
    for lane in lanes:
        if lane.share < 0:
            raise ComposerError(f"a lane's share must not be negative, got {lane.share}")
        if lane.share > 0:
            twin = merged.get(lane.key)
            share, fresh = (
                (twin.share + lane.share, twin.fresh or lane.fresh) if twin else (lane.share, lane.fresh)
            )
            merged[lane.key] = replace(lane, share=share, fresh=fresh)
    rows: list[Lane] = []
    for lane in merged.values():
        rows.append(lane)
        if step.guidance > 1:
            rows.append(replace(lane, prompt=replace(lane.prompt, role="negative")))
    return Plan(tuple(rows), Guidance(step.guidance))


@dataclass(frozen=True)
class Knob:
    """What a front must know to offer one setting.

    low, high: the range, both ends included; None where there is no bound. choices: the texts that it may be; () for
    any other kind of value.
    """

    label: str
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


def knob(
    default: Any,
    label: str,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that is a setting, of a method or of a request, and carries its `Knob`."""
    return field(default=default, metadata={"knob": Knob(label, help, unit, low, high, tuple(choices))})


@dataclass(frozen=True)
class Setting:
    """A field with a knob, of a method or of a request, as fronts offer it.

    default: `dataclasses.MISSING` where it must be given. annotation: the type of its values as it is written in the
    source, without None. optional: whether it may also be None.
    """

    name: str
    default: Any
    annotation: str
    optional: bool
    knob: Knob

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers (None aside)."""
        return self.annotation == "int"


def settings(kind: type[Any]) -> tuple[Setting, ...]:
    """The fields of a dataclass that have a knob, in its own order."""
    found = []
    for one in dataclasses.fields(kind):
        if "knob" in one.metadata:
            annotation = str(one.type)
            bare = annotation.removesuffix(" | None")
            found.append(Setting(one.name, one.default, bare, bare != annotation, one.metadata["knob"]))
    return tuple(found)


@dataclass(frozen=True)
class Composer(ABC):
    """A composition method. Its settings are its fields, and `plan` is its one pure decision.

    A file with one subclass in this folder adds the method to every front (see CONTRIBUTING.md).

    name: what fronts call it. summary: one or two sentences for users.
    fewest, most: how many adapters it takes, pinned ones not counted. most: None is any number.
    by_band: it reads `Use.band`. Bands are then filled in before planning.
    plans_reuse: it decides itself which lanes are fresh. A request's `reuse` is then refused.

    Raises ComposerError for a setting outside its knob's range or choices.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    fewest: ClassVar[int] = 0
    most: ClassVar[int | None] = None
    by_band: ClassVar[bool] = False
    plans_reuse: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            if "knob" in setting.metadata:
                self._check(
                    setting.name, getattr(self, setting.name), setting.metadata["knob"], setting.default
                )

    def _check(self, name: str, value: object, knob: Knob, default: object) -> None:
        where = f"{self.name}: {name}={shown(value)}"
        if knob.choices and value not in knob.choices:
            raise ComposerError(f"{where} must be one of {', '.join(knob.choices)}")
        if knob.low is None and knob.high is None:
            return
        wanted = "a whole number" if type(default) is int else "a number"
        whole_enough = isinstance(value, int) or (isinstance(value, float) and type(default) is not int)
        if not whole_enough or not _is_finite(value):
            raise ComposerError(f"{where} must be {wanted}")
        low, high = -math.inf if knob.low is None else knob.low, math.inf if knob.high is None else knob.high
        if not low <= value <= high:  # type: ignore[operator]
            raise ComposerError(f"{where} must lie in {low:g} … {high:g}")

    def resolved(self, mix: Mix, count: int) -> Composer:
        """This method with the settings that a run of `count` steps over `mix` really uses.

        Raises ComposerError for too few or too many adapters. Methods that need a number of steps raise it for fewer.
        """
        if len(mix) < self.fewest or (self.most is not None and len(mix) > self.most):
            wanted = f"at least {self.fewest}" if self.most is None else f"{self.fewest} to {self.most}"
            raise ComposerError(
                f"{self.name} takes {wanted} adapters (pinned ones not counted), got {len(mix)}"
            )
        return self

    def prepared(self, uses: tuple[Use, ...]) -> tuple[Use, ...]:
        """The members of the mix as this method wants them, one for each, in order. Called when a request is resolved.

        It may give them symbolic blocks ("@content"), which are replaced by the model's own afterwards. A second call
        must change nothing more.
        """
        return uses

    @abstractmethod
    def plan(self, step: Step, mix: Mix) -> Plan:
        """The lanes of one picture at one step, and the rule that folds them (see `guided`)."""
