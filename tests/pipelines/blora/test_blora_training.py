"""Training: the loss is the paper's, a resumed run ends as an uninterrupted one, and the model stays as it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import Request, StudioPipeline
from pipelines.adapters import read_adapter, sha256
from pipelines.blora.blora_training import TrainedBLora, train_blora
from pipelines.blora.default_recipes import PAPER, SMALL, default_recipe
from pipelines.errors import RequestError, SetupError
from pipelines.text.encoder import TextAsk
from pipelines.training.recipe import Recipe
from pipelines.training.run import TrainingProgress, literal, state_file

QUICK = Recipe(
    rank=4,
    learning_rate=1e-2,
    steps=3,
    batch=2,
    size=32,
    gradient_checkpointing=False,
    checkpoint_every=100,
    sample_every=0,
)
PROMPT = "A [v]"


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(sdxl_folder)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def train(pipe: StudioPipeline, image: Image.Image, out: Path, **settings: Any) -> TrainedBLora:
    settings = {"recipe": QUICK, **settings}
    return train_blora(pipe, image, PROMPT, out, **settings)


def test_a_run_writes_an_adapter_and_leaves_the_model_alone(
    pipe: StudioPipeline, image: Image.Image, tmp_path: Path
) -> None:
    request = Request("a fox", seed=1, steps=2, width=32, height=32)
    plain = pipe(request, output_type="latent").images[0]
    weights = {name: weight.clone() for name, weight in pipe.model.unet.state_dict().items()}
    told: list[TrainingProgress] = []
    trained = train(pipe, image, tmp_path / "v.safetensors", progress=told.append)
    assert [progress.step for progress in told] == [1, 2, 3]
    assert trained.losses == tuple(progress.loss for progress in told)
    assert trained.layers == 2 * 2 * 4 * 2  # two blocks of two transformer layers, two attentions of four
    after = pipe.model.unet.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())
    assert torch.equal(pipe(request, output_type="latent").images[0], plain)
    adapter = read_adapter(trained.file, pipe.model.layers, "v")
    assert {".".join(name.split(".")[1:5]) for name in adapter.layers} == {
        *("up_blocks.0.attentions.0", "up_blocks.0.attentions.1")
    }
    assert all(factors.up.abs().max() > 0 for factors in adapter.layers.values())
    assert {factors.scale for factors in adapter.layers.values()} == {1.0}
    assert adapter.metadata.triggers == (r"\[v\]",)
    assert adapter.metadata.raw["lora_studio.prompt"] == PROMPT
    assert not state_file(trained.file).exists()
    pipe.load_lora_weights(trained.file, "v")
    try:
        mixed = pipe(replace(request, adapters={"v": 1.0}), output_type="latent").images[0]
        assert not torch.allclose(mixed, plain, atol=1e-4)
    finally:
        pipe.unload_lora_weights()


def test_resumed_is_uninterrupted(pipe: StudioPipeline, image: Image.Image, tmp_path: Path) -> None:
    whole = train(pipe, image, tmp_path / "whole.safetensors")

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    out = tmp_path / "broken.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(pipe, image, out, progress=stop)
    assert not out.exists()
    assert state_file(out).exists()
    assert not hasattr(pipe.model.unet, "peft_config")
    with pytest.raises(RequestError, match="differs in prompt, rank"):
        train_blora(pipe, image, "B", out, recipe=replace(QUICK, rank=8), resume=True)
    torch.manual_seed(99)  # nothing may depend on the global generator
    resumed = train(pipe, image, out, resume=True)
    assert resumed.losses == whole.losses[2:]
    mine, other = (read_adapter(file, pipe.model.layers, "v") for file in (whole.file, resumed.file))
    for name, factors in mine.layers.items():
        assert torch.equal(factors.up, other.layers[name].up)
        assert torch.equal(factors.down, other.layers[name].down)
    before = sha256(whole.file)
    train(pipe, image, whole.file, force=True)
    assert sha256(whole.file) == before


def test_checkpoints_are_written_on_the_way(pipe: StudioPipeline, image: Image.Image, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    seen: list[bool] = []
    recipe = replace(QUICK, checkpoint_every=1, sample_every=2)
    samples: list[Image.Image] = []

    def look(progress: TrainingProgress) -> None:
        seen.append(state_file(out).exists())
        if progress.sample is not None:
            samples.append(progress.sample)

    train(pipe, image, out, recipe=recipe, progress=look)
    assert seen == [False, True, True]
    assert len(samples) == 1
    with pytest.raises(RequestError, match="nothing to resume"):
        train(pipe, image, out, force=True, resume=True)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_follows_the_models_prediction_type(
    prediction: str, sdxl_folder: Path, image: Image.Image, tmp_path: Path
) -> None:
    """The first loss, worked out by hand: lora_B starts at zero, so the base model's own error is the loss."""
    folder = shutil.copytree(sdxl_folder, tmp_path / "model")
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps({**config, "prediction_type": prediction})
    )
    pipe = StudioPipeline.from_pretrained(folder)
    model = pipe.model
    recipe = replace(QUICK, steps=1)
    found = train(pipe, image.resize((32, 32)), tmp_path / "v.safetensors", recipe=recipe).losses[0]

    pixels = torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1)[None].float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latent = model.vae.encode(pixels).latent_dist
        sampled, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
        steps = torch.randint(1000, (2,), generator=generator)
        clean = (latent.mean + latent.std * sampled) * model.vae.config.scaling_factor
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        kept = (1 - betas).cumprod(0)[steps].view(2, 1, 1, 1)
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        target = noise if prediction == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * clean
        text = model.encode_text([TextAsk(literal(PROMPT))])[0]
        assert text.pooled is not None
        output = model.unet(
            noisy,
            steps,
            encoder_hidden_states=text.tokens.expand(2, -1, -1),
            added_cond_kwargs={
                "text_embeds": text.pooled.expand(2, -1),
                "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2),
            },
        ).sample
    assert found == pytest.approx(float((output - target).square().mean()), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_resumes_too(
    dtype: torch.dtype, sdxl_folder: Path, image: Image.Image, tmp_path: Path
) -> None:
    """The base in half precision, the factors, the latents and the optimiser in float32."""
    pipe = StudioPipeline.from_pretrained(sdxl_folder, dtype=dtype)
    whole = train(pipe, image, tmp_path / "whole.safetensors")

    def stop(progress: TrainingProgress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pipe, image, tmp_path / "broken.safetensors", progress=stop)
    resumed = train(pipe, image, tmp_path / "broken.safetensors", resume=True)
    assert resumed.losses == whole.losses[2:]
    assert all(loss < 10 for loss in whole.losses)
    assert {weight.dtype for weight in pipe.model.unet.parameters()} == {dtype}


def test_sd1_trains_on_the_blocks_of_its_card(sd_folder: Path, image: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no map of its content blocks.*probe-blocks"):
        train(StudioPipeline.from_pretrained(sd_folder), image, tmp_path / "v.safetensors")
    folder = shutil.copytree(sd_folder, tmp_path / "carded")
    card = {"block_map": {"content": ["up_blocks.1"], "style": ["up_blocks.2.attentions.0"]}}
    (folder / "studio.json").write_text(json.dumps(card))
    recipe = replace(QUICK, gradient_checkpointing=True, center_crop=False)
    trained = train(StudioPipeline.from_pretrained(folder), image, tmp_path / "v.safetensors", recipe=recipe)
    assert trained.blocks == ("up_blocks.1", "up_blocks.2.attentions.0")
    assert trained.layers == (3 + 1) * 8


def test_what_makes_no_sense_is_refused(
    pipe: StudioPipeline,
    image: Image.Image,
    tmp_path: Path,
    sdxl_folder: Path,
    make_lora: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "v.safetensors"
    for settings, message in (
        ({"rank": 0}, "rank=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"steps": 2.5}, r"steps=2\.5"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(RequestError, match=message):
            replace(QUICK, **settings)
    with pytest.raises(RequestError, match="multiple of 2"):
        train(pipe, image, out, recipe=replace(QUICK, size=33))
    with pytest.raises(RequestError, match="prompt is empty"):
        train_blora(pipe, image, " ", out, recipe=QUICK)
    out.touch()
    with pytest.raises(RequestError, match="already there"):
        train(pipe, image, out)
    pipe.load_lora_weights(make_lora(sdxl_folder, "fox", seed=1), "fox")
    with pytest.raises(SetupError, match="unload them first"):
        train(pipe, image, out, force=True)
    pipe.unload_lora_weights()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SetupError, match=r"pip install 'lora-studio\[train\]'"):
        train(pipe, image, out, force=True)


def test_recipes() -> None:
    assert (PAPER.rank, PAPER.learning_rate, PAPER.steps, PAPER.batch) == (64, 5e-5, 1000, 1)
    assert (SMALL.rank, SMALL.learning_rate, SMALL.steps, SMALL.batch) == (16, 1e-3, 220, 4)
    with torch.device("meta"):
        assert default_recipe(torch.nn.Linear(10, 10)) == SMALL
        assert default_recipe(torch.nn.Linear(20_000, 20_000)) == PAPER
    assert SMALL.with_values(rank=4, steps=None) == replace(SMALL, rank=4)
    assert literal(r"a (b) [v] \c") == r"a \(b\) \[v\] \\c"
