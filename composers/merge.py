"""Merge: every adapter acts at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from composers.plan import Composer, Mix, Plan, Step, guided


@dataclass(frozen=True)
class Merge(Composer):
    """W' = W + sum_i w_i B_i A_i (Zhong et al. 2024, arXiv 2402.16843, section 2); the w_i are not normalised."""

    name: ClassVar[str] = "merge"
    summary: ClassVar[str] = "All adapters at once, added up. One UNet pass a step."

    def plan(self, step: Step, mix: Mix) -> Plan:
        return guided([mix.lane(mix.uses, share=1.0)], step)
