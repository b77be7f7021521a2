"""One training run: its pictures, its optimiser, its noise. The caller brings the parameters to train.

The loss, for each noisy copy x_t = a_t x_0 + s_t e of a picture's latents, with t uniform over the training steps:

    epsilon models  |e_theta(x_t, t, c) - e|^2                   (Ho et al. 2020, arXiv 2006.11239, equation 14)
    v models        |v_theta(x_t, t, c) - (a_t e - s_t x_0)|^2   (Salimans & Ho 2022, arXiv 2202.00512)

It is the mean over all numbers of the batch. The base weights, the text encoders and the VAE are not changed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from pipelines.errors import RenderError, RequestError, SetupError
from pipelines.model import Model
from pipelines.pipeline import StudioPipeline
from pipelines.request import Request
from pipelines.text.encoder import TextAsk
from pipelines.training.recipe import Recipe
from pipelines.training.state import Identity, load_state, save_state


@dataclass(frozen=True)
class Example:
    """A picture and its caption. The caption is taken literally: the brackets in "A [v]" are part of it."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class TrainingProgress:
    """What is reported after each optimiser step. step: from 1 to `steps`. sample: a picture with the adapter as it is
    now, None where none is due."""

    step: int
    steps: int
    loss: float
    sample: Image.Image | None = None


def state_file(out: Path) -> Path:
    """The file for the state of an unfinished run, beside the adapter file `out`."""
    return out.with_name(f"{out.stem}.training")


def literal(text: str) -> str:
    """A text written in prompt syntax, so that it means itself: "A [v]" -> "A \\[v\\]"."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


def refuse_untrainable(model: Model) -> None:
    """Raises SetupError for a model with `offload` on, and for one with adapters loaded."""
    if model.offload:
        raise SetupError("training needs the whole model on its device; open it without low memory mode")
    if model.store.known:
        raise SetupError("training needs a model without adapters; unload them first")


class TrainingRun:
    """One training run over `examples`.

    weights: name -> a parameter to train, float32. where: names of what is trained, part of the run's identity.
    file: for its state. Raises RequestError for a size or a prediction type that cannot be trained, PromptError for a
    caption that is too long, and RenderError where memory runs out.
    """

    def __init__(
        self,
        model: Model,
        examples: Sequence[Example],
        recipe: Recipe,
        weights: Mapping[str, Tensor],
        where: tuple[str, ...],
        file: Path,
    ) -> None:
        self.model, self.recipe, self.weights, self.file = model, recipe, weights, file
        captions = [example.caption for example in examples]
        self.identity = Identity(
            picture=_mark([example.image for example in examples]),
            prompt="\n".join(captions),
            model=model.checkpoint.label,
            blocks=where,
            recipe=recipe.to_dict(),
        )
        self.generator = torch.Generator("cpu").manual_seed(recipe.seed)
        self.optimiser = torch.optim.AdamW(
            weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.noise_schedule = _noise_schedule(model)
        side = side_of(model, recipe)
        moments = [_latents(model, example.image, side, recipe.center_crop) for example in examples]
        self.latent_mean, self.latent_std = (torch.cat(parts) for parts in zip(*moments, strict=True))
        asks = model.text.level([TextAsk(literal(caption)) for caption in captions])
        texts = model.encode_text(asks)
        self.tokens = torch.stack([text.tokens for text in texts]).to(
            model.dtype
        )  # [pictures, tokens, width]
        pooled = [text.pooled for text in texts if text.pooled is not None]
        self.pooled = torch.stack(pooled).to(model.dtype) if pooled else None  # [pictures, width]
        self.sizes = torch.tensor([side, side, 0, 0, side, side], device=model.device, dtype=model.dtype)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)

    def train(
        self, resume: bool, progress: Callable[[TrainingProgress], None], sample: Callable[[], Image.Image]
    ) -> list[float]:
        """Run all steps that are left, and return their losses.

        resume: go on from the state in the run's file. progress: is called after each step. sample: makes a sample
        picture. A KeyboardInterrupt between two steps saves the state first. Raises RequestError for a state that is
        missing or another run's, RenderError for a loss that is not finite, and OSError.
        """
        done, whole = 0, True  # whole: `done` steps are complete, and no other has begun
        if resume:
            if not self.file.is_file():
                raise RequestError(
                    f"there is nothing to resume: {self.file} is not there; start without --resume"
                )
            done, scale = load_state(self.file, self.identity, self.weights, self.optimiser, self.generator)
            self.scaler.load_state_dict(scale)
        losses: list[float] = []
        recipe = self.recipe
        try:
            for step in range(done + 1, recipe.steps + 1):
                whole = False
                losses.append(self._step())
                done, whole = step, True
                due = recipe.sample_every and step % recipe.sample_every == 0
                progress(TrainingProgress(step, recipe.steps, losses[-1], sample() if due else None))
                if step % recipe.checkpoint_every == 0 and step < recipe.steps:
                    self._save(step)
        except KeyboardInterrupt:
            if whole:
                self._save(done)
            raise
        return losses

    def _save(self, step: int) -> None:
        scale = self.scaler.state_dict()
        save_state(self.file, self.identity, step, self.weights, self.optimiser, self.generator, scale)

    def _step(self) -> float:
        """Make one optimiser step and return its loss. All random numbers come from the run's generator, on the CPU."""
        model, batch = self.model, self.recipe.batch
        shape = (batch, *self.latent_mean.shape[1:])
        sampled, noise = (torch.randn(shape, generator=self.generator).to(model.device) for _ in range(2))
        count = self.noise_schedule.config.num_train_timesteps
        steps = torch.randint(count, (batch,), generator=self.generator).to(model.device)
        picked = self._picked()
        latents = (
            self.latent_mean[picked] + self.latent_std[picked] * sampled
        )  # [batch, channels, h, w] float32
        noisy = self.noise_schedule.add_noise(latents, noise, steps)
        target = noise
        if model.checkpoint.prediction_type == "v_prediction":
            target = self.noise_schedule.get_velocity(latents, noise, steps)
        half = model.dtype != torch.float32
        with torch.autocast(model.device.type, model.dtype) if half else nullcontext():
            prediction: Tensor = model.unet(
                noisy.to(model.dtype),
                steps,
                encoder_hidden_states=self.tokens[picked],
                added_cond_kwargs=self._added(picked),
                return_dict=False,
            )[0]
        loss = F.mse_loss(prediction.float(), target)
        value = float(loss.detach())
        if not value < float("inf"):
            raise RenderError(
                f"the loss became {value}; lower the learning rate, or train in float32 or bfloat16"
            )
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return value

    def _picked(self) -> Tensor:
        """The numbers of the pictures in this step, [batch]. A single picture takes no random number."""
        count, batch = len(self.latent_mean), self.recipe.batch
        if count == 1:
            return torch.zeros(batch, dtype=torch.long, device=self.model.device)
        return torch.randint(count, (batch,), generator=self.generator).to(self.model.device)

    def _added(self, picked: Tensor) -> dict[str, Tensor] | None:
        """SDXL's pooled text and sizes: those of the training square, uncropped, as when rendering. Else None."""
        if not self.model.checkpoint.family.size_conditioned:
            return None
        assert self.pooled is not None
        return {"text_embeds": self.pooled[picked], "time_ids": self.sizes.expand(len(picked), -1)}


def side_of(model: Model, recipe: Recipe) -> int:
    """The side of the training square in pixels. Raises RequestError unless it is a multiple of the latent cell's."""
    defaults = model.checkpoint.defaults
    unit = model.checkpoint.vae_scale_factor
    side = recipe.size or min(defaults.width, defaults.height)
    if side % unit:
        raise RequestError(f"size={side} must be a multiple of {unit} pixels for {model.checkpoint.label}")
    return side


def sample(pipe: StudioPipeline, prompt: str, recipe: Recipe) -> Image.Image:
    """A picture of the prompt, with the adapter as it is now. Raises the StudioError that it fails with."""
    picture = pipe(Request(prompt, seed=recipe.seed)).images[0]
    assert isinstance(picture, Image.Image)
    return picture


def described(model: Model, recipe: Recipe, title: str, prompt: str, method: str) -> dict[str, str]:
    """The metadata of a trained adapter: enough to use it, and to train it again. method: "B-LoRA" or "FLoRA"."""
    checkpoint = model.checkpoint
    named = re.search(r"\[[^\]]+\]", prompt)
    return {
        "modelspec.architecture": checkpoint.family.architecture,
        "modelspec.title": title,
        "modelspec.trigger_phrase": literal(named[0] if named else prompt),
        "modelspec.prediction_type": "v" if checkpoint.prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": "x".join([str(side_of(model, recipe))] * 2),
        "lora_studio.category": "concept",
        "lora_studio.method": method,
        "lora_studio.base": checkpoint.label,
        "lora_studio.prompt": prompt,
        "lora_studio.recipe": (
            f"rank {recipe.rank}, {recipe.steps} steps of {recipe.batch}, learning rate {recipe.learning_rate:g}, "
            f"seed {recipe.seed}"
        ),
    }


def _noise_schedule(model: Model) -> Any:
    """The model's noise schedule for training. Raises RequestError for a prediction type that cannot be trained."""
    import diffusers

    kind = model.checkpoint.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise RequestError(
            f"{model.checkpoint.label} predicts {kind!r}; only epsilon and v_prediction can be trained"
        )
    scheduler_class: Any = diffusers.DDPMScheduler
    return scheduler_class.from_config(dict(model.checkpoint.scheduler.config), prediction_type=kind)


@torch.no_grad()
def _latents(model: Model, image: Image.Image, side: int, center_crop: bool) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of the picture's latents, each [1, channels, h, w] float32, scaled for the UNet.

    side: of the training square, in pixels.
    """
    image = ImageOps.exif_transpose(image).convert("RGB")
    if center_crop:
        square = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    else:
        square = image.resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(1, side, side, 3)
    pixels = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).to(model.device, model.vae.dtype)
    distribution = model.vae.encode(pixels).latent_dist
    config = model.vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0], [1.0]
    shift, spread = (torch.tensor(v, device=model.device).view(1, -1, 1, 1) for v in (mean, std))
    scale = config.scaling_factor / spread
    return (distribution.mean.float() - shift) * scale, distribution.std.float() * scale


def _mark(images: Sequence[Image.Image]) -> str:
    """The hash of the pictures' pixels, which tells whether a state belongs to the same pictures."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()
