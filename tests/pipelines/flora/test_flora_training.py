"""Training a FLoRA: it starts at the base, learns, resumes exactly, and renders as it was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import Request, StudioPipeline
from pipelines.adapters import Hadamard, read_adapter, sha256
from pipelines.blora.blora_training import train_blora
from pipelines.errors import RequestError, SetupError
from pipelines.flora.flora_training import LARGE, SMALL, TrainedFlora, default_recipe, train_flora
from pipelines.training.recipe import Recipe
from pipelines.training.run import Example, TrainingProgress, state_file

QUICK = Recipe(
    rank=3,
    learning_rate=2e-2,
    weight_decay=0.0,
    steps=3,
    batch=2,
    size=32,
    gradient_checkpointing=False,
    checkpoint_every=100,
    sample_every=0,
)
PROMPT = "a [v] fox"
REQUEST = Request("a fox", seed=1, steps=2, width=32, height=32)


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(sdxl_folder)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    numbers = np.random.default_rng(0)
    captions = (PROMPT, f"{PROMPT} on the beach", f"{PROMPT} {'far away ' * 60}")
    return [
        Example(Image.fromarray(numbers.integers(0, 255, (40, 48, 3), dtype=np.uint8)), caption)
        for caption in captions
    ]


def train(pipe: StudioPipeline, examples: list[Example], out: Path, **settings: Any) -> TrainedFlora:
    return train_flora(pipe, examples, PROMPT, out, **{"recipe": QUICK, **settings})


def test_a_run_writes_an_adapter_and_leaves_the_model_alone(
    pipe: StudioPipeline, examples: list[Example], tmp_path: Path
) -> None:
    plain = pipe(REQUEST, output_type="latent").images[0]
    weights = {name: weight.clone() for name, weight in pipe.model.unet.state_dict().items()}
    told: list[TrainingProgress] = []
    trained = train(pipe, examples, tmp_path / "v.safetensors", progress=told.append)
    assert trained.losses == tuple(progress.loss for progress in told)
    after = pipe.model.unet.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert torch.equal(pipe(REQUEST, output_type="latent").images[0], plain)
    adapter = read_adapter(trained.file, pipe.model.layers, "v")
    assert adapter.report.kind == "FLoRA"
    assert len(adapter.layers) == trained.layers == sum("attn" in name for name in adapter.layers)
    assert all(isinstance(factors, Hadamard) and not factors.idle for factors in adapter.layers.values())
    assert adapter.metadata.triggers == (r"\[v\]",)
    assert adapter.metadata.raw["lora_studio.method"] == "FLoRA"
    assert not state_file(trained.file).exists()
    wide = train(pipe, examples, tmp_path / "wide.safetensors", reach="transformer")
    assert wide.layers > trained.layers


def test_it_starts_at_the_base(pipe: StudioPipeline, examples: list[Example], tmp_path: Path) -> None:
    """The first loss is that of a B-LoRA, which starts at the base too, on the same picture and noise."""
    one = [Example(examples[0].image, PROMPT)]
    flora = train(pipe, one, tmp_path / "f.safetensors").losses[0]
    blora = train_blora(pipe, one[0].image, PROMPT, tmp_path / "b.safetensors", recipe=QUICK).losses[0]
    assert flora == pytest.approx(blora, rel=1e-5)


def test_it_learns_a_picture(pipe: StudioPipeline, examples: list[Example], tmp_path: Path) -> None:
    recipe = replace(QUICK, steps=30, batch=4)
    losses = train(pipe, examples[:1], tmp_path / "v.safetensors", recipe=recipe).losses
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])  # random layers can do no more


@pytest.mark.parametrize("reach", ["attention", "transformer"])
def test_the_file_renders_as_it_was_trained(
    reach: str, pipe: StudioPipeline, examples: list[Example], tmp_path: Path
) -> None:
    """The last sample, drawn through the weights in training, is the picture of the file in the lane layers, but for
    the file's half precision."""
    samples: list[Image.Image] = []

    def keep(progress: TrainingProgress) -> None:
        if progress.sample is not None:
            samples.append(progress.sample)

    recipe = replace(QUICK, learning_rate=0.1, sample_every=3)
    trained = train(pipe, examples[:1], tmp_path / "v.safetensors", recipe=recipe, reach=reach, progress=keep)
    request = Request(r"a \[v\] fox", seed=recipe.seed)
    plain = np.asarray(pipe(request).images[0], dtype=float)
    pipe.load_lora_weights(trained.file, "v")
    try:
        drawn = np.asarray(pipe(replace(request, adapters={"v": 1.0})).images[0], dtype=float)
    finally:
        pipe.unload_lora_weights()
    expected = np.asarray(samples[-1], dtype=float)
    assert np.abs(drawn - expected).mean() < 0.5  # of 255
    assert np.abs(plain - expected).mean() > 5


def test_resumed_is_uninterrupted(pipe: StudioPipeline, examples: list[Example], tmp_path: Path) -> None:
    whole = train(pipe, examples, tmp_path / "whole.safetensors")

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    out = tmp_path / "broken.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(pipe, examples, out, progress=stop)
    assert not out.exists()
    assert not any("forward" in module.__dict__ for module in pipe.model.unet.modules())
    with pytest.raises(RequestError, match="differs in picture, prompt"):
        train(pipe, examples[:2], out, resume=True)
    torch.manual_seed(99)  # nothing may depend on the global generator
    resumed = train(pipe, examples, out, resume=True)
    assert resumed.losses == whole.losses[2:]
    before = sha256(whole.file)
    train(pipe, examples, whole.file, force=True)
    assert sha256(whole.file) == before


def test_half_precision_trains_too(sd_folder: Path, examples: list[Example], tmp_path: Path) -> None:
    """In bfloat16; the loop is that of B-LoRAs, whose tests train in float16 too."""
    pipe = StudioPipeline.from_pretrained(sd_folder, dtype=torch.bfloat16)
    recipe = replace(QUICK, gradient_checkpointing=True)
    trained = train(pipe, examples, tmp_path / "v.safetensors", recipe=recipe)
    assert all(loss < 10 for loss in trained.losses)
    assert not all(
        factors.idle for factors in read_adapter(trained.file, pipe.model.layers, "v").layers.values()
    )


def test_what_makes_no_sense_is_refused(
    pipe: StudioPipeline,
    examples: list[Example],
    tmp_path: Path,
    sdxl_folder: Path,
    make_lora: Callable[..., Path],
) -> None:
    out = tmp_path / "v.safetensors"
    with pytest.raises(RequestError, match="no alpha"):
        train(pipe, examples, out, recipe=replace(QUICK, alpha=4))
    with pytest.raises(RequestError, match="no picture"):
        train(pipe, [], out)
    with pytest.raises(RequestError, match="picture 2 has an empty caption"):
        train(pipe, [examples[0], Example(examples[1].image, " ")], out)
    with pytest.raises(RequestError, match="prompt is empty"):
        train_flora(pipe, examples, "", out, recipe=QUICK)
    with pytest.raises(RequestError, match="multiple of 2"):
        train(pipe, examples, out, recipe=replace(QUICK, size=33))
    out.touch()
    with pytest.raises(RequestError, match="already there"):
        train(pipe, examples, out)
    pipe.load_lora_weights(make_lora(sdxl_folder, "fox", seed=1), "fox")
    with pytest.raises(SetupError, match="unload them first"):
        train(pipe, examples, out, force=True)
    pipe.unload_lora_weights()


def test_recipes() -> None:
    with torch.device("meta"):
        assert default_recipe(torch.nn.Linear(10, 10)) == SMALL
        assert default_recipe(torch.nn.Linear(20_000, 20_000)) == LARGE
    assert LARGE.learning_rate == SMALL.learning_rate == 8e-3
