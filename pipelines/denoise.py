"""One UNet call for the lanes of many trajectories, and the fold of its rows back to one prediction per trajectory.

The rows are ordered image by image, and within an image as its plan lists the lanes. Timesteps, text embeddings and
gates are all built from this one list.
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
"""For each of several lanes, the adapters that act on it."""


@dataclass(frozen=True)
class Row:
    """One row of a UNet call: one lane of one trajectory.

    cut: where its deep features are remembered; None for a request that remembers none.
    shallow: it runs on remembered features. kept: its own features will be read at a later step.
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
    """The rows of the trajectories' next step, image by image."""
    rows = []
    for trajectory in trajectories:
        passes = trajectory.passes[trajectory.step]
        for lane, shallow in zip(trajectory.lanes, passes.shallow, strict=True):
            kept = not shallow and lane.memory in passes.kept
            rows.append(Row(trajectory, lane, trajectory.request.cut, shallow, kept))
    return rows


def evaluate(model: Model, rows: Sequence[Row]) -> Tensor:
    """Run one UNet call: the rows' predictions, [rows, channels, h, w] float32.

    All rows must have the same latent shape. Either all run in full, or all run shallow at the same cut. The features
    of rows that are `kept` are stored in their trajectories.
    """
    with torch.inference_mode():
        found = model.engine.run(_call(model, rows))
        for place, row in enumerate(rows):
            if row.kept and row.cut:
                row.trajectory.features.put(row.lane.memory, found.features[row.cut][place])
        return found.prediction.float()


def _call(model: Model, rows: Sequence[Row]) -> UNetCall:
    """The rows as tensors for the UNet."""
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
    """For every step, what acts on the lanes that run shallow, or on the lanes that run in full."""
    return [
        [lane.uses for lane, own in zip(plan.lanes, ways.shallow, strict=True) if own == shallow]
        for plan, ways in zip(plans, passes, strict=True)
    ]


def steady(uses: Sequence[Uses], here: int) -> int:
    """How many consecutive steps, step `here` among them, have the same uses.

    uses: as `uses_of` gives them; a step without lanes of the kind in question is skipped and not counted. Step `here`
    has some. Every step of such a run gets the same number, so that the engine keeps one form throughout.
    """
    place = sum(map(bool, uses[:here]))
    some = [own for own in uses if own]
    before = next((back for back in range(place) if some[place - 1 - back] != some[place]), place)
    after = next(
        (on for on in range(len(some) - place) if some[place + on] != some[place]), len(some) - place
    )
    return before + after


def fold(plan: Plan, predictions: Tensor, rescale: float) -> Tensor:
    """One image's lane predictions, [lanes, channels, h, w] float32, as its prediction, [1, channels, h, w].

    The lanes of each role are averaged by their shares. Then u + g (c - u) combines the means of the negative role (u)
    and the positive role (c), with g the plan's guidance scale; at g <= 1 the positive mean is the result. Where the
    positive shares sum to S instead of 1, because AND joins prompts with weights, it is u + g (sum w c - S u). rescale:
    0 … 1, how far the deviation of that is set back to that at g = 1 (Lin et al. 2023, arXiv 2305.08891, section 3.4).
    """
    positive, total = _mean(plan, predictions, "positive"), plan.rule.total
    if plan.rule.scale <= 1 and total == 1:
        return positive
    negative = _mean(plan, predictions, "negative")
    if total != 1:
        positive = positive + (1 - total) * negative
    guided = negative + plan.rule.scale * (positive - negative)
    if rescale > 0:
        matched = guided * (positive.std() / guided.std())
        guided = rescale * matched + (1 - rescale) * guided
    return guided


def _mean(plan: Plan, predictions: Tensor, role: Role) -> Tensor:
    members = [index for index, lane in enumerate(plan.lanes) if lane.prompt.role == role]
    own = torch.stack([predictions[index] for index in members])
    if len(members) == 1 and plan.lanes[members[0]].share == 1:
        return own
    shares = moved(torch.tensor([plan.lanes[index].share for index in members]), predictions.device)
    return torch.einsum("l,lchw->chw", shares, own)[None]


def _joined(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Texts of [tokens, width] as one tensor [rows, longest, width], and the mask [rows, longest] of real tokens.

    The mask is None where all texts are equally long. Zero padding behind a mask is exact; without one it is not.
    """
    longest = max(text.shape[0] for text in texts)
    if all(text.shape[0] == longest for text in texts):
        return torch.stack(list(texts)), None
    padded = [torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[0])) for text in texts]
    kept = [[position < text.shape[0] for position in range(longest)] for text in texts]
    return torch.stack(padded), moved(torch.tensor(kept), texts[0].device)
