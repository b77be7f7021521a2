"""One UNet call for the lanes of many trajectories, and the fold back to one prediction each.

Lanes stand image by image, each positive row followed by its negative twin. Timesteps, embeddings and
gates are all built from that one list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composers.plan import Lane, Plan, Role
from pipelines.model import Model
from pipelines.text import Embedding
from pipelines.trajectory import Trajectory


@dataclass(frozen=True)
class Row:
    """One lane of one trajectory."""

    trajectory: Trajectory
    lane: Lane

    @property
    def text(self) -> Embedding:
        return self.trajectory.texts[self.lane.prompt]


def rows_of(trajectories: Sequence[Trajectory]) -> list[Row]:
    return [Row(trajectory, lane) for trajectory in trajectories for lane in trajectory.lanes]


def evaluate(model: Model, rows: Sequence[Row]) -> Tensor:
    """One UNet call: [rows, channels, h, w] float32. All rows have one latent shape."""
    inputs: dict[int, Tensor] = {}
    for row in rows:
        inputs.setdefault(id(row.trajectory), row.trajectory.model_input())
    latents = torch.cat([inputs[id(row.trajectory)] for row in rows])  # [rows, channels, h, w]
    timesteps = torch.tensor([row.trajectory.timestep for row in rows], device=model.device)  # [rows] float32
    tokens, mask = _joined([row.text.tokens for row in rows])
    added = None
    if rows[0].trajectory.sizes:
        pooled = torch.stack(
            [row.text.pooled for row in rows if row.text.pooled is not None]
        )  # [rows, width]
        sizes = torch.tensor([row.trajectory.sizes for row in rows], device=model.device)  # [rows, 6]
        added = {"text_embeds": pooled.to(model.dtype), "time_ids": sizes.to(model.dtype)}
    with torch.inference_mode(), model.bank.active("unet", [row.lane.uses for row in rows]):
        predictions: Tensor = model.unet(
            latents.to(model.dtype),
            timesteps,
            encoder_hidden_states=tokens.to(model.dtype),
            encoder_attention_mask=mask,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
    return predictions.float()


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
    if len(members) == 1:
        return predictions[members]
    shares = torch.tensor([plan.lanes[index].share for index in members], device=predictions.device)
    return torch.einsum("l,lchw->chw", shares, predictions[members])[None]


def _joined(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """[tokens, width] each -> ([rows, longest, width], mask [rows, longest] or None where all are as long).

    Zero padding behind a mask is exact; padding without one is not."""
    longest = max(text.shape[0] for text in texts)
    if all(text.shape[0] == longest for text in texts):
        return torch.stack(list(texts)), None
    padded = [torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[0])) for text in texts]
    kept = [[position < text.shape[0] for position in range(longest)] for text in texts]
    return torch.stack(padded), torch.tensor(kept, device=texts[0].device)
