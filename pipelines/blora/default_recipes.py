"""How a B-LoRA is trained: the paper's numbers, and small ones for small models."""

from __future__ import annotations

from torch import nn

from pipelines.training.recipe import Recipe, is_small

ATTENTION = r"attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
"""The layers of a block that are adapted: self- and cross-attention's four projections."""

PAPER = Recipe()
"""Frenkel et al. 2024 and their released script: rank 64, 5e-5, 1000 steps of one, text encoder frozen. There the
optimiser is the 8-bit AdamW; here it is torch's, which needs more memory and is otherwise the same."""

SMALL = Recipe(
    rank=16,
    learning_rate=1e-3,
    steps=220,
    batch=4,
    gradient_checkpointing=False,
    checkpoint_every=100,
    sample_every=110,
)
"""Ours, for the embedded models: one picture in well under a minute on two CPU cores."""


def default_recipe(unet: nn.Module) -> Recipe:
    """The recipe for a UNet of this size."""
    return SMALL if is_small(unet) else PAPER
