"""One UNet call for lanes of many trajectories, and the fold back to one prediction each.

Lanes stand image by image, each positive row followed by its negative twin. Timesteps, embeddings and
gates are all built from that one list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composers.plan import Lane, Plan, Role, Use
from pipelines.engine.unet_call import UNetCall
from pipelines.families.family import Cut
from pipelines.features import Passes
from pipelines.model import Model
from pipelines.pace import moved
from pipelines.text.encoder import Embedding
from pipelines.trajectory import Trajectory

Uses = list[tuple[Use, ...]]
"""What acts on each of some lanes."""


@dataclass(frozen=True)
class Row:
    """One lane of one trajectory.

    cut: where its features are remembered; None where they are not.
    shallow: it runs on remembered features. kept: the features it makes will be read at a later step.
    """

    trajectory: Trajectory
    lane: Lane
    cut: Cut | None = None
    shallow: bool = False
    kept: bool = False

    @property
    def text(self) -> Embedding:
        return self.trajectory.texts[self.lane.prompt]


def rows_of(trajectories: Sequence[Trajectory]) -> list[Row]:
    """The rows of the next round, image by image."""
    rows = []
    for trajectory in trajectories:
        passes = trajectory.passes[trajectory.step]
        for lane, shallow in zip(trajectory.lanes, passes.shallow, strict=True):
            kept = not shallow and lane.memory in passes.kept
            rows.append(Row(trajectory, lane, trajectory.request.cut, shallow, kept))
    return rows


def evaluate(model: Model, rows: Sequence[Row]) -> Tensor:
    """One UNet call: [rows, channels, h, w] float32. All rows have one latent shape, and all run in full or all run
    shallow at one cut."""
    with torch.inference_mode():
        found = model.engine.run(_call(model, rows))
        for place, row in enumerate(rows):
            if row.kept and row.cut:
                row.trajectory.features.put(row.lane.memory, found.features[row.cut][place])
        return found.prediction.float()


def _call(model: Model, rows: Sequence[Row]) -> UNetCall:
    """The rows as the UNet reads them."""
    inputs: dict[int, Tensor] = {}
    for row in rows:
        inputs.setdefault(id(row.trajectory), row.trajectory.model_input())
    latents = torch.cat([inputs[id(row.trajectory)] for row in rows])  # [rows, channels, h, w]
    timesteps = moved(torch.tensor([row.trajectory.timestep for row in rows]), model.device)  # [rows] float32
    tokens, mask = _joined([row.text.tokens for row in rows])
    pooled = sizes = deep = None
    if rows[0].trajectory.sizes:
        own = [row.text.pooled for row in rows if row.text.pooled is not None]
        pooled = torch.stack(own).to(model.dtype)  # [rows, width]
        sizes = moved(torch.tensor([row.trajectory.sizes for row in rows]), model.device).to(model.dtype)
    shallow = rows[0].shallow
    if shallow:
        remembered = [row.trajectory.features.get(row.lane.memory, model.device) for row in rows]
        deep = torch.stack(remembered)  # [rows, channels, h, w] of the features
    flying = {id(row.trajectory): row.trajectory for row in rows}
    leaves = dict.fromkeys(row.cut for row in rows if row.kept and row.cut)
    return UNetCall(
        latents.to(model.dtype),
        timesteps,
        tokens.to(model.dtype),
        mask,
        pooled,
        sizes,
        uses=tuple(row.lane.uses for row in rows),
        texts=tuple(row.text.tokens for row in rows),
        steady=min(
            steady(uses_of(own.plans, own.passes, shallow=shallow), own.step) for own in flying.values()
        ),
        cut=rows[0].cut if shallow else None,
        deep=deep,
        leaves=tuple(sorted(leaves)),
    )


def uses_of(plans: Sequence[Plan], passes: Sequence[Passes], *, shallow: bool) -> list[Uses]:
    """Of every step, what acts on the lanes that run shallow, or on those that run in full."""
    return [
        [lane.uses for lane, own in zip(plan.lanes, ways.shallow, strict=True) if own == shallow]
        for plan, ways in zip(plans, passes, strict=True)
    ]


def steady(uses: Sequence[Uses], here: int) -> int:
    """Steps in a row, around step `here`, in which lanes that run one way have the same uses: the same for all of
    them, so that no form changes within. Steps without such lanes are passed over."""
    place = sum(map(bool, uses[:here]))
    some = [own for own in uses if own]
    before = next((back for back in range(place) if some[place - 1 - back] != some[place]), place)
    after = next(
        (on for on in range(len(some) - place) if some[place + on] != some[place]), len(some) - place
    )
    return before + after


def fold(plan: Plan, predictions: Tensor, rescale: float) -> Tensor:
    """predictions [lanes, channels, h, w] float32 -> [1, channels, h, w]: the share-weighted mean of each
    role, guidance on the means, then the optional rescale (Lin et al. 2023, arXiv 2305.08891, section 3.4)."""
    positive = _mean(plan, predictions, "positive")
    if plan.rule.scale <= 1:
        return positive
    negative = _mean(plan, predictions, "negative")
    guided = negative + plan.rule.scale * (positive - negative)
    if rescale > 0:
        matched = guided * (positive.std() / guided.std())
        guided = rescale * matched + (1 - rescale) * guided
    return guided


def _mean(plan: Plan, predictions: Tensor, role: Role) -> Tensor:
    members = [index for index, lane in enumerate(plan.lanes) if lane.prompt.role == role]
    own = torch.stack([predictions[index] for index in members])
    if len(members) == 1:
        return own
    shares = moved(torch.tensor([plan.lanes[index].share for index in members]), predictions.device)
    return torch.einsum("l,lchw->chw", shares, own)[None]


def _joined(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """[tokens, width] each -> ([rows, longest, width], mask [rows, longest] or None where all are as long).

    Zero padding behind a mask is exact; padding without one is not."""
    longest = max(text.shape[0] for text in texts)
    if all(text.shape[0] == longest for text in texts):
        return torch.stack(list(texts)), None
    padded = [torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[0])) for text in texts]
    kept = [[position < text.shape[0] for position in range(longest)] for text in texts]
    return torch.stack(padded), moved(torch.tensor(kept), texts[0].device)
