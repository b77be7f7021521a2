"""LoRA Switch: one adapter at a time, taking turns over the steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from composers.errors import ComposerError
from composers.plan import Composer, Mix, Plan, Step, guided, knob


@dataclass(frozen=True)
class Switch(Composer):
    """One active adapter a step, the next one every `interval` steps (Zhong et al. 2024, arXiv 2402.16843, eq. 4).

    With k adapters, T steps and s the step from 0:

    convention "paper": adapter floor(s / interval) mod k is active.
    convention "code": adapter floor(max(s - 1, 0) / interval) mod k, as in the released code; there the first adapter
        keeps its first turn one step longer.

    Where the run is too short for every adapter to have a turn, the interval is lowered: to T // k ("paper") or
    (T - 2) // (k - 1) ("code"). `resolved` and `plan` raise ComposerError for fewer than k ("paper") or k + 1 ("code")
    steps.
    """

    name: ClassVar[str] = "switch"
    summary: ClassVar[str] = "One adapter at a time, in turn over the steps. One UNet pass a step."

    interval: int = knob(
        5, "Interval", "Steps before the next adapter takes its turn.", unit="steps", low=1, high=1000
    )
    convention: Literal["paper", "code"] = knob(
        "paper", "Convention", "The paper's turns, or the released code's.", choices=("paper", "code")
    )

    def resolved(self, mix: Mix, count: int) -> Switch:
        super().resolved(mix, count)
        return replace(self, interval=self._interval(len(mix), count))

    def plan(self, step: Step, mix: Mix) -> Plan:
        if not mix.uses:
            return guided([mix.lane((), share=1.0)], step)
        position = step.index if self.convention == "paper" else max(step.index - 1, 0)
        turn = position // self._interval(len(mix), step.count) % len(mix)
        return guided([mix.lane([mix.uses[turn]], share=1.0)], step)

    def _interval(self, adapters: int, steps: int) -> int:
        if adapters < 2:
            return self.interval
        if self.convention == "paper":
            longest, fewest_steps = steps // adapters, adapters
        else:
            longest, fewest_steps = (steps - 2) // (adapters - 1), adapters + 1
        if longest < 1:
            raise ComposerError(
                f"switch gives each of {adapters} adapters a turn, which takes at least {fewest_steps} steps; "
                f"this run executes {steps}"
            )
        return min(self.interval, longest)
