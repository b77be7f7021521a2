"""Trains a FLoRA on pictures with captions: factors that multiply the UNet's weights.

W = W0 * (B A), as in `pipelines/adapters/kinds/flora.py`. Training starts at W = W0: the first rank is all ones, and of
the other ranks the inner half is random and the outer half zero. It runs through the multiplied weight itself (arXiv
2312.05677, equation 4), the cheapest form for a single adapter. The loss is in `pipelines/training/run.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipelines.adapters import Hadamard, write_lora
from pipelines.adapters.writing import refuse_existing
from pipelines.errors import RequestError
from pipelines.model import Model
from pipelines.pipeline import StudioPipeline
from pipelines.training.recipe import Recipe, is_small
from pipelines.training.run import (
    Example,
    TrainingProgress,
    TrainingRun,
    described,
    literal,
    refuse_untrainable,
    sample,
    state_file,
)

TrainingReach = Literal["attention", "transformer"]
"""Which of the UNet's layers are trained: the attention projections, or these and the feed-forward layers."""

REACHES: dict[TrainingReach, re.Pattern[str]] = {
    "attention": re.compile(r".*\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"),
    "transformer": re.compile(
        r".*\.transformer_blocks\.\d+\.(?:attn[12]\.(?:to_q|to_k|to_v|to_out\.0)|ff\.net\..*)"
    ),
}

LARGE = Recipe(
    rank=2, learning_rate=8e-3, weight_decay=0.0, steps=1000, batch=1, checkpoint_every=250, sample_every=250
)
"""For models of the published sizes. The learning rate is the paper's (8e-3 where LoRA has 1e-4, for language models);
the rest is ours. There is no decay, because it would pull the factors to zero, and not the weights to W0."""

SMALL = Recipe(
    rank=2,
    learning_rate=8e-3,
    weight_decay=0.0,
    steps=150,
    batch=4,
    gradient_checkpointing=False,
    checkpoint_every=75,
    sample_every=75,
)
"""For the embedded models; ours."""


@dataclass(frozen=True)
class TrainedFlora:
    """The outcome of a training run. file: what was written. layers: how many were trained.

    losses: of the steps that ran now; a resumed run has fewer than its recipe has steps.
    """

    file: Path
    recipe: Recipe
    layers: int
    losses: tuple[float, ...]


def default_recipe(unet: nn.Module) -> Recipe:
    """The recipe for a UNet of this size."""
    return SMALL if is_small(unet) else LARGE


def train_flora(
    pipe: StudioPipeline,
    examples: Sequence[Example],
    prompt: str,
    out: Path,
    *,
    recipe: Recipe | None = None,
    reach: TrainingReach = "attention",
    resume: bool = False,
    force: bool = False,
    progress: Callable[[TrainingProgress], None] = lambda step: None,
) -> TrainedFlora:
    """Train on the pictures and write the adapter.

    prompt: names what is learned, for sample pictures and the file's trigger phrase. It is taken literally.
    recipe: None takes `default_recipe`'s. It must have no alpha, because the type has none.
    reach: the layers to train. resume: go on from the state that an interrupted run left beside `out`.
    force: overwrite a file that is there. progress: is called after each step.
    Raises RequestError for values that make no sense, SetupError for a model that cannot be trained now, RenderError
    for a loss that is not finite, and OSError.
    """
    refuse_existing(out, force)
    model = pipe.model
    recipe = recipe or default_recipe(model.unet)
    if recipe.alpha is not None:
        raise RequestError(f"alpha={recipe.alpha}: a FLoRA has no alpha; leave it out")
    if not examples:
        raise RequestError("there is no picture to train on; give at least one")
    if blank := [number for number, example in enumerate(examples, start=1) if not example.caption.strip()]:
        raise RequestError(f"picture {blank[0]} has an empty caption; say what it shows")
    if not prompt.strip():
        raise RequestError("the prompt is empty; name what is learned, as in --prompt 'a [v] fox'")
    refuse_untrainable(model)
    with _adapted(model, reach, recipe) as weights:
        run = TrainingRun(model, examples, recipe, weights, (reach,), state_file(out))
        losses = run.train(resume, progress, lambda: sample(pipe, literal(prompt), recipe))
        layers = _factors(weights)
    metadata = described(model, recipe, out.stem, prompt, "FLoRA") | {"lora_studio.reach": reach}
    write_lora(out, layers, metadata=metadata)
    state_file(out).unlink(missing_ok=True)
    return TrainedFlora(out, recipe, len(layers), tuple(losses))


@contextmanager
def _adapted(model: Model, reach: TrainingReach, recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Within: the UNet has trainable factors. Yields "layer.inner" and "layer.outer" -> float32 parameter."""
    unet: nn.Module = model.unet
    layers = {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear) and REACHES[reach].fullmatch(name)
    }
    if not layers:
        raise RequestError(f"{model.checkpoint.label} has no {reach} layers")
    generator = torch.Generator("cpu").manual_seed(recipe.seed)
    weights: dict[str, Tensor] = {}
    unet.requires_grad_(False)
    for name, layer in layers.items():
        inner = torch.randn((recipe.rank, layer.in_features), generator=generator)
        outer = torch.zeros((layer.out_features, recipe.rank))
        inner[0], outer[:, 0] = 1, 1
        weights[f"{name}.inner"], weights[f"{name}.outer"] = (
            nn.Parameter(half.to(model.device)) for half in (inner, outer)
        )
    try:
        for name, layer in layers.items():
            forward = partial(_multiplied, layer, weights[f"{name}.inner"], weights[f"{name}.outer"])
            layer.forward = forward  # type: ignore[method-assign]
        if recipe.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        yield weights
    finally:
        model.unet.disable_gradient_checkpointing()
        for layer in layers.values():
            layer.__dict__.pop("forward", None)


def _multiplied(layer: nn.Linear, inner: Tensor, outer: Tensor, x: Tensor) -> Tensor:
    """Equation 4: x [..., in] -> [..., out], through W0 * (outer . inner) and the layer's bias."""
    with torch.autocast(x.device.type, enabled=False):
        weight = (layer.weight.float() * (outer @ inner)).to(layer.weight.dtype)
    return nn.functional.linear(x, weight, layer.bias)


def _factors(weights: dict[str, Tensor]) -> dict[str, Hadamard]:
    """ "unet.…to_q" -> its factors, in float16, as adapters usually are."""
    layers = {}
    for name in weights:
        if name.endswith(".inner"):
            stem = name.removesuffix(".inner")
            inner, outer = (weights[f"{stem}.{half}"].detach().half().cpu() for half in ("inner", "outer"))
            layers[f"unet.{stem}"] = Hadamard(inner, outer)
    return layers
