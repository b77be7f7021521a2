"""LoRA Composite: every adapter predicts alone, the predictions are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from composers.plan import Composer, Mix, Plan, Step, guided


@dataclass(frozen=True)
class Composite(Composer):
    """e = (1/k) sum_i [e_i(z) + g (e_i(z, c) - e_i(z))] (Zhong et al. 2024, arXiv 2402.16843, eq. 5).

    k adapters, guidance scale g. The mean of each role is taken first, and guidance is applied once to the means; by
    linearity this is the same. Without guidance the positive predictions are averaged; the released code then returns
    the last adapter's prediction alone.
    """

    name: ClassVar[str] = "composite"
    summary: ClassVar[str] = (
        "Each adapter predicts alone, the predictions are averaged. One pass a step per adapter."
    )

    def plan(self, step: Step, mix: Mix) -> Plan:
        if not mix.uses:
            return guided([mix.lane((), share=1.0)], step)
        return guided([mix.lane([use], share=1.0 / len(mix)) for use in mix.uses], step)
