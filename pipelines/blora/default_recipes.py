"""The default recipes for training a B-LoRA: the paper's, and one for small models."""

from __future__ import annotations

from torch import nn

from pipelines.training.recipe import Recipe, is_small

ATTENTION = r"attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
"""The layers of a block that are trained, as a regular expression: the projections of self- and cross-attention."""

PAPER = Recipe()
"""As in Frenkel et al. 2024 and their released script: rank 64, learning rate 5e-5, 1000 steps of batch 1, the text
encoders frozen. Their optimiser is the 8-bit AdamW. Here it is torch's, which needs more memory."""

SMALL = Recipe(
    rank=16,
    learning_rate=1e-3,
    steps=220,
    batch=4,
    gradient_checkpointing=False,
    checkpoint_every=100,
    sample_every=110,
)
"""Ours, for the embedded models: trains on one picture in well under a minute on two CPU cores."""


def default_recipe(unet: nn.Module) -> Recipe:
    """The recipe for a UNet of this size."""
    return SMALL if is_small(unet) else PAPER
