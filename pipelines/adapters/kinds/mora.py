"""MoRA: one square matrix M [r, r] between fixed ways to make inputs fewer and outputs more.

Jiang et al. 2024 (arXiv 2405.12130). The inputs are cut into groups of r; where they do not divide, the first inputs
follow the last ones again.

    mora.shared   M, "sharing": the groups are added up; the outputs are M's, repeated.
    mora.turned   M, "rotation" (RoPE), r even: group t is turned by the angles t / 10000^(2 j / r) in its pairs
                  (j, j + r / 2), and gives r outputs of its own; these are repeated or cut to the layer's.

M's scale is 1 in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.adapters.kinds.papers import Paper, Sheet
from pipelines.adapters.terms import LowRank, Whole


class Mora(Paper):
    """MoRA."""

    name, word, parts = "MoRA", "mora", ("shared", "turned")

    def change(self, sheet: Sheet) -> LowRank | Whole:
        turned = sheet.has("turned")
        square = sheet.square("turned" if turned else "shared")
        size = len(square)
        if size > sheet.width or (turned and (size % 2 or sheet.has("shared"))):
            raise sheet.misfit(*self.parts)
        groups = -(-sheet.width // size)
        if not turned:
            folded = torch.eye(size).repeat(1, groups)
            return sheet.low_rank(
                _around(folded, sheet.width), square[torch.arange(sheet.out) % size], sheet.scale()
            )
        made = min(groups, -(-sheet.out // size))  # of the groups' outputs, no more are used
        change = torch.zeros(made, size, groups, size)
        change[range(made), :, range(made)] = square @ _turns(made, size)
        rows = torch.arange(sheet.out) % (made * size)
        change = _around(change.view(made * size, groups * size), sheet.width)
        return sheet.dense(change[rows], sheet.scale())


def _around(columns: Tensor, width: int) -> Tensor:
    """Columns beyond the inputs are those of the first inputs again."""
    found = columns[:, :width].clone()
    found[:, : columns.shape[1] - width] += columns[:, width:]
    return found


def _turns(count: int, size: int) -> Tensor:
    """The turn of each group, [count, size, size]."""
    half = size // 2
    angles = torch.arange(count)[:, None] / 10000 ** (torch.arange(half) * 2 / size)
    cosine, sine = torch.diag_embed(angles.cos()), torch.diag_embed(angles.sin())
    return torch.cat([torch.cat([cosine, -sine], dim=2), torch.cat([sine, cosine], dim=2)], dim=1)
