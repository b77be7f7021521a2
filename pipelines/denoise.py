"""One UNet call for lanes of many trajectories, and the fold back to one prediction each.

Lanes stand image by image, each positive row followed by its negative twin. Timesteps, embeddings and
gates are all built from that one list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composers.plan import Lane, Plan, Role
from pipelines.family import Cut
from pipelines.features import captured, shallow_modules, shallow_pass
from pipelines.model import Model
from pipelines.text.encoder import Embedding
from pipelines.trajectory import Trajectory


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
    latents, timesteps, conditions = _inputs(model, rows)
    uses = [row.lane.uses for row in rows]
    cut = rows[0].cut
    if rows[0].shallow:
        assert cut is not None
        remembered = [row.trajectory.features.get(row.lane.memory, model.device) for row in rows]
        modules = shallow_modules(model.unet, cut)
        with torch.inference_mode(), model.bank.active("unet", uses, modules):
            deep = torch.stack(remembered)  # [rows, channels, h, w] of the features
            return shallow_pass(model.unet, cut, deep, latents, timesteps, **conditions).float()
    kept = [(place, row, row.cut) for place, row in enumerate(rows) if row.kept and row.cut]
    with (
        torch.inference_mode(),
        model.bank.active("unet", uses),
        captured(model.unet, {cut for _, _, cut in kept}) as found,
    ):
        predictions: Tensor = model.unet(latents, timesteps, **conditions, return_dict=False)[0]
        for place, row, cut in kept:
            row.trajectory.features.put(row.lane.memory, found[cut][place])
    return predictions.float()


def _inputs(model: Model, rows: Sequence[Row]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Latents [rows, channels, h, w], timesteps [rows] float32, and text and sizes as the UNet names them."""
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
    conditions = {
        "encoder_hidden_states": tokens.to(model.dtype),
        "encoder_attention_mask": mask,
        "added_cond_kwargs": added,
    }
    return latents.to(model.dtype), timesteps, conditions


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
