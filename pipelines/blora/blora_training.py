"""Trains a B-LoRA on one picture and one prompt, in the attention of the content blocks and the style blocks.

The blocks are trained jointly. So they divide the picture's content and style between them (Frenkel et al. 2024, arXiv
2403.14572, section 4). The loss is in `pipelines/training/run.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipelines.adapters import LowRank, write_lora
from pipelines.adapters.writing import Naming, refuse_existing
from pipelines.blocks import within
from pipelines.blora.default_recipes import ATTENTION, default_recipe
from pipelines.errors import RequestError, SetupError
from pipelines.model import Model
from pipelines.pipeline import StudioPipeline
from pipelines.training.recipe import Recipe
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

_ADAPTER = "blora"


@dataclass(frozen=True)
class TrainedBLora:
    """The outcome of a training run. file: what was written. layers: how many were trained.

    losses: of the steps that ran now; a resumed run has fewer than its recipe has steps.
    """

    file: Path
    recipe: Recipe
    blocks: tuple[str, ...]
    layers: int
    losses: tuple[float, ...]


def train_blora(
    pipe: StudioPipeline,
    image: Image.Image,
    prompt: str,
    out: Path,
    *,
    recipe: Recipe | None = None,
    sample_prompt: str | None = None,
    naming: Naming = "peft",
    resume: bool = False,
    force: bool = False,
    progress: Callable[[TrainingProgress], None] = lambda step: None,
) -> TrainedBLora:
    """Train on one picture and write the adapter. The method `BLora` uses either part of it; `split` cuts it in two.

    prompt: taken literally: the brackets in "A [v]" (as in the paper) are part of it. The name in it should be a word
        that the model does not know. sample_prompt: for sample pictures, in prompt syntax; None takes `prompt`.
    recipe: None takes the paper's, or the small one for small models.
    naming: of the keys, as in `write_lora`. force: overwrite a file that is there.
    resume: go on from the state that an interrupted run left beside `out`. A KeyboardInterrupt between two steps (as
        `progress` may raise it) leaves the state of the step just done; one amid a step leaves the last checkpoint.
    progress: is called after each step.
    Raises SetupError without peft or for a model that cannot be trained now, RequestError for a model without a block
    map and for other values that make no sense, RenderError for a loss that is not finite, and OSError.
    """
    require_peft()
    refuse_existing(out, force)
    if not prompt.strip():
        raise RequestError("the prompt is empty; name the picture, as in --prompt 'A [v]'")
    model = pipe.model
    recipe = recipe or default_recipe(model.unet)
    refuse_untrainable(model)
    blocks = training_blocks(model)
    with _adapted(model, blocks, recipe) as weights:
        run = TrainingRun(model, [Example(image, prompt)], recipe, weights, blocks, state_file(out))
        losses = run.train(resume, progress, lambda: sample(pipe, sample_prompt or literal(prompt), recipe))
        layers = _factors(weights, recipe)
    metadata = described(model, recipe, out.stem, prompt, "B-LoRA") | {"lora_studio.blocks": ",".join(blocks)}
    write_lora(out, layers, naming=naming, metadata=metadata)
    state_file(out).unlink(missing_ok=True)
    return TrainedBLora(out, recipe, blocks, len(layers), tuple(losses))


def training_blocks(model: Model) -> tuple[str, ...]:
    """The model's content blocks, then its style blocks. Raises RequestError for a model without a map of them."""
    return mapped_blocks(model.checkpoint.label, model.facts.block_map)


def mapped_blocks(label: str, block_map: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The content blocks, then the style blocks, of a model's map. Raises RequestError where either is missing.

    label: the model's name. block_map: "content" and "style", with or without "@" before them -> blocks.
    """
    parts = {name.removeprefix("@"): blocks for name, blocks in block_map.items()}
    for part in ("content", "style"):
        if not parts.get(part):
            raise RequestError(
                f"{label} has no map of its {part} blocks: the published map is SDXL's. "
                "`lora-studio probe-blocks` proposes one; put it into the model's studio.json"
            )
    return tuple(dict.fromkeys((*parts["content"], *parts["style"])))


def trained_layers(names: Iterable[str], blocks: tuple[str, ...]) -> list[str]:
    """Of a UNet's layers, the attention projections in these blocks. SDXL has 160 in its two blocks."""
    attention = re.compile(rf".*\.{ATTENTION}")
    return [
        name for name in names if attention.fullmatch(name) and any(within(name, block) for block in blocks)
    ]


def require_peft() -> None:
    """Raises SetupError where peft is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise SetupError(
            "training needs peft, which is not installed: pip install 'lora-studio[train]'"
        ) from error


@contextmanager
def _adapted(model: Model, blocks: tuple[str, ...], recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Within: the UNet has trainable factors. Yields "layer.lora_A" and "layer.lora_B" -> float32 parameter."""
    from peft import LoraConfig

    unet = model.unet
    targets = trained_layers((name for name, _ in unet.named_modules()), blocks)
    if not targets:
        raise RequestError(
            f"{model.checkpoint.label} has no attention in {', '.join(blocks)}; mend its block map"
        )
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha or recipe.rank,
        init_lora_weights="gaussian",
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # peft draws the start of every lora_A from the global generator
        unet.add_adapter(config, _ADAPTER)
    try:
        weights: dict[str, Tensor] = {}
        for name, parameter in unet.named_parameters():
            if f".{_ADAPTER}." in name:
                parameter.data = parameter.data.float()
                weights[name.replace(f".{_ADAPTER}.weight", "")] = parameter
        if recipe.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        yield weights
    finally:
        unet.disable_gradient_checkpointing()
        unet.unload_lora()
        unet.requires_grad_(False)


def _factors(weights: dict[str, Tensor], recipe: Recipe) -> dict[str, LowRank]:
    """ "unet.…to_q" -> its factors, in float16, as adapters usually are."""
    layers = {}
    for name in weights:
        if name.endswith(".lora_A"):
            stem = name.removesuffix(".lora_A")
            down, up = (weights[f"{stem}.{half}"].detach().half().cpu() for half in ("lora_A", "lora_B"))
            layers[f"unet.{stem}"] = LowRank(down, up, recipe.scale)
    return layers
