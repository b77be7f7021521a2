"""RoAd: the outputs, bias and all, are turned and stretched in pairs.

Liao and Monz 2024 (arXiv 2409.00119), as PEFT writes it: pair (j, j + g / 2) in each group of g outputs becomes
(a cos t y1 - a sin t y2, a cos t y2 + a sin t y1). `road_theta` and `road_alpha` hold t and a: [out / 2], one for each
pair; [out], one for each output; or [2 out], in each group first those of the cosines, then those of the sines. g is
the setting `group_size`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.adapters.kinds.kind import AdapterKind, RawLayer, peft_leaves
from pipelines.adapters.kinds.parts import misfit, numeric, whole
from pipelines.adapters.terms import Several, Shift, Target, Whole

PARTS = ("road_theta", "road_alpha")


class Road(AdapterKind):
    """RoAd."""

    name = "RoAd"
    leaves = peft_leaves(*PARTS)
    peft_types = ("ROAD",)
    terms = "a whole difference: the turned base weight"
    needs_base = True

    def read(self, layer: RawLayer, target: Target) -> Several | Whole:
        angle, length = whole(layer, *PARTS)
        out, group = target.shape[0], int(numeric(layer, "group_size"))
        fits = angle.shape == length.shape and tuple(angle.shape) in [(out // 2,), (out,), (2 * out,)]
        if not fits or group < 2 or group % 2 or out % group:
            raise misfit(layer, target, *PARTS)
        if len(angle) == out // 2:
            cosine, sine = (
                (length * part).view(-1, group // 2).repeat_interleave(2, dim=0).flatten()
                for part in (angle.cos(), angle.sin())
            )
        elif len(angle) == out:
            cosine, sine = length * angle.cos(), length * angle.sin()
        else:
            angles, lengths = angle.view(-1, 2, group), length.view(-1, 2, group)
            cosine = (lengths[:, 0] * angles[:, 0].cos()).flatten()
            sine = (lengths[:, 1] * angles[:, 1].sin()).flatten()

        def turned(rows: Tensor) -> Tensor:
            """The change of rows [out, n]."""
            halves = rows.view(-1, 2, group // 2, rows.shape[1])
            other = torch.stack([-halves[:, 1], halves[:, 0]], dim=1).reshape(rows.shape)
            return rows * cosine[:, None] + other * sine[:, None] - rows

        bias = target.shift()
        change = Whole(turned(target.weight().flatten(1)).reshape(target.shape))
        return Several((change, Shift(turned(bias[:, None])[:, 0]))) if bias.any() else change
