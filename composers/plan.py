"""The words every composition method is written in: uses and mixes go in, plans of lanes come out.

A composer is a pure function of (step, mix). It holds settings, never state, and knows no tensor, no
model and no file: all lanes of a run are therefore known before it starts.
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
    """A strength factor over the run: (start, factor) pairs whose starts rise.

    start: below 1 a fraction of the steps; from 1 on the number of a step, which counts from 0. The factor before
    the first start is 1. Schedules scale strengths only; they never change membership, turns or shares.
    Raises ComposerError.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not all(isinstance(point, tuple | list) and len(point) == 2 for point in self.points):
            raise ComposerError(f"schedule {shown(self.points)} must be pairs of a start and a factor")
        starts = [start for start, _ in self.points]
        if not all(_is_finite(start) and (0 <= start < 1 or start == int(start) > 0) for start in starts):
            raise ComposerError(
                f"schedule starts {shown(starts)} must be fractions of the steps below 1, or whole numbers of steps"
            )
        for alike in ([start for start in starts if start < 1], [start for start in starts if start >= 1]):
            if alike != sorted(set(alike)):
                raise ComposerError(f"schedule starts {shown(starts)} must rise strictly")
        for _, factor in self.points:
            if not _is_finite(factor):
                raise ComposerError(f"schedule factor {shown(factor)} must be a finite number")

    def over(self, count: int) -> Schedule | None:
        """The schedule of a run of `count` steps, its starts as fractions; None where it changes nothing.

        Raises ComposerError where fractions and step numbers together do not rise.
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
        """The factor at a step, whose time is index/count."""
        own = self.over(step.count)
        points = own.points if own is not None else ()
        begun = bisect_right(points, step.index / step.count, key=lambda point: point[0] - 1e-9)
        return points[begun - 1][1] if begun else 1.0


@dataclass(frozen=True)
class Use:
    """One adapter in a mix.

    weight: strength of its UNet part; 0 removes it before planning.
    text_weight: strength of its text-encoder part, constant over the run; None means `weight`.
    blocks: (block name, factor) pairs; () means every block at 1, otherwise unlisted blocks are at 0.
        Names match on dotted boundaries, the longest wins, and the factor multiplies `weight`.
    schedule: factor over the steps, UNet only.
    pinned: stays active in every lane of both roles (an acceleration adapter such as LCM) and is
        no member of the mix as the composer sees it.
    band: "high" dominates early, "low" late (CMLoRA); None leaves it to the profile or the metadata.
    """

    adapter: str
    weight: float = 1.0
    text_weight: float | None = None
    blocks: tuple[tuple[str, float], ...] = ()
    schedule: Schedule | None = None
    pinned: bool = False
    band: Band | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, str):
            raise ComposerError(f"adapter={shown(self.adapter)} must be a name")
        if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in self.blocks):
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
        """The factor of the block that holds `module` (a dotted module name inside the UNet)."""
        if not self.blocks:
            return 1.0
        matching = [
            (len(name), factor) for name, factor in self.blocks if f"{module}.".startswith(f"{name}.")
        ]
        return max(matching)[1] if matching else 0.0


@dataclass(frozen=True)
class Mix:
    """The unpinned adapters of one image, in order, and how the text encoder sees them.

    text: "merged" encodes every prompt with all adapters at their text strengths; "first" with the
        first one only; "per_adapter" encodes each lane with the lane's own adapters.
    """

    uses: tuple[Use, ...] = ()
    text: TextMode = "merged"

    def __len__(self) -> int:
        return len(self.uses)

    def lane(self, uses: Iterable[Use], share: float, *, fresh: bool = True) -> Lane:
        """A positive lane holding `uses`, its prompt encoded as this mix says."""
        uses = tuple(uses)
        seen = {"merged": self.uses, "first": self.uses[:1], "per_adapter": uses}[self.text]
        return Lane(Prompt("positive", text_uses(seen)), uses, share, fresh)


def _is_finite(value: object) -> bool:
    """Whether it is a number, and one that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def text_uses(uses: Iterable[Use]) -> tuple[Use, ...]:
    """What the text encoder gets of `uses`: (adapter, text strength) alone, those at 0 left out."""
    strengths = ((use.adapter, use.weight if use.text_weight is None else use.text_weight) for use in uses)
    return tuple(Use(adapter, weight) for adapter, weight in strengths if weight != 0)


@dataclass(frozen=True)
class Step:
    """One solver step of the `count` that are really executed; index 0 is the noisiest."""

    index: int
    count: int
    guidance: float


@dataclass(frozen=True)
class Prompt:
    """Which of the request's two prompts, encoded with which adapters (`Use.weight` is the text strength)."""

    role: Role
    text_uses: tuple[Use, ...] = ()


@dataclass(frozen=True)
class Lane:
    """One row of a UNet batch.

    share: its part in the mean of its role, >= 0; each role's shares sum to 1.
    fresh: False permits the engine to reuse remembered deep features (with nothing remembered it
        evaluates in full all the same).
    variant: names a changed forward pass; "" is the plain one.
    """

    prompt: Prompt
    uses: tuple[Use, ...]
    share: float
    fresh: bool = True
    variant: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal keys are one and the same evaluation."""
        return (self.prompt, self.variant, self.uses)

    @property
    def memory(self) -> tuple[object, ...]:
        """Whose deep features these are: as `key`, but without strengths."""
        members = tuple((use.adapter, tuple(name for name, _ in use.blocks)) for use in self.uses)
        return (self.prompt, self.variant, members)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance on the role means: u + scale * (c - u); the positive mean alone at scale <= 1."""

    scale: float


@dataclass(frozen=True)
class Plan:
    """The lanes of one image at one step and the rule that folds their predictions into one.

    max_age: how many steps old the remembered features of a lane that is not fresh may be.
    """

    lanes: tuple[Lane, ...]
    rule: Guidance
    max_age: int = 5


def guided(lanes: Iterable[Lane], step: Step) -> Plan:
    """Positive lanes -> a plan: equal lanes merged, empty shares dropped, each lane followed by its
    negative twin when guidance is above 1 (diffusers' rule)."""
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
    """What a front end must know to offer one setting."""

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
    """A composer's setting: a dataclass field whose range, unit and help travel with it."""
    return field(default=default, metadata={"knob": Knob(label, help, unit, low, high, tuple(choices))})


@dataclass(frozen=True)
class Setting:
    """A field with a knob, of a method or of a request, as front ends offer it.

    default: `dataclasses.MISSING` where it must be given. annotation: of its values, without None.
    optional: whether None is one of them.
    """

    name: str
    default: Any
    annotation: str
    optional: bool
    knob: Knob

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.annotation == "int"


def settings(kind: type[Any]) -> tuple[Setting, ...]:
    """The settings of a dataclass, in its own order."""
    found = []
    for one in dataclasses.fields(kind):
        if "knob" in one.metadata:
            annotation = str(one.type)
            bare = annotation.removesuffix(" | None")
            found.append(Setting(one.name, one.default, bare, bare != annotation, one.metadata["knob"]))
    return tuple(found)


@dataclass(frozen=True)
class Composer(ABC):
    """A composition method: settings in its fields, one pure decision in `plan`.

    Adding a file with one subclass to this folder adds the method to Python, the command line, the
    batch script and the web app alike.

    fewest, most: how many adapters it takes (pinned ones not counted).
    by_band: it reads `Use.band`, which is then filled before planning.
    plans_reuse: it decides itself which lanes are fresh, so that a request's `reuse` has no place.
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

        Raises ComposerError where the mix has too few or too many adapters, or the run too few steps.
        """
        if len(mix) < self.fewest or (self.most is not None and len(mix) > self.most):
            wanted = f"at least {self.fewest}" if self.most is None else f"{self.fewest} to {self.most}"
            raise ComposerError(
                f"{self.name} takes {wanted} adapters (pinned ones not counted), got {len(mix)}"
            )
        return self

    def prepared(self, uses: tuple[Use, ...]) -> tuple[Use, ...]:
        """The members as this method wants them when a request is admitted, one for each, in order.

        Symbolic blocks ("@content") are replaced by the model's own afterwards. Applying it twice changes
        nothing more.
        """
        return uses

    @abstractmethod
    def plan(self, step: Step, mix: Mix) -> Plan:
        """The lanes of one image at one step."""
