"""Train a B-LoRA: one picture, one prompt, the attention of the content and the style blocks.

Loss, per noisy copy x_t = a_t x_0 + s_t e of the picture's latents, with t uniform over the training steps:

    epsilon models  |e_theta(x_t, t, c) - e|^2
    v models        |v_theta(x_t, t, c) - (a_t e - s_t x_0)|^2   (Salimans & Ho 2022, arXiv 2202.00512)

The base, the text encoders and the VAE stay as they are. Both blocks are trained jointly, which is what makes
them share the picture out between them (Frenkel et al. 2024, arXiv 2403.14572, section 4).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from pipelines.adapters import LowRank, write_lora
from pipelines.adapters.writing import Naming
from pipelines.blocks import within
from pipelines.blora.recipe import ATTENTION, Recipe, default_recipe
from pipelines.blora.splitting import refuse_existing
from pipelines.blora.state import Identity, load_state, save_state
from pipelines.errors import RenderError, RequestError, SetupError
from pipelines.model import Model
from pipelines.pipeline import StudioPipeline
from pipelines.request import Request
from pipelines.text.encoder import TextAsk

_ADAPTER = "blora"


@dataclass(frozen=True)
class Progress:
    """Told after every optimiser step. sample: a picture of the prompt as the adapter stands, where one is due."""

    step: int
    steps: int
    loss: float
    sample: Image.Image | None = None


@dataclass(frozen=True)
class Trained:
    """The outcome. losses: of the steps run now; a resumed run has fewer than its recipe's steps."""

    file: Path
    recipe: Recipe
    blocks: tuple[str, ...]
    layers: int
    losses: tuple[float, ...]


def state_file(out: Path) -> Path:
    """Where the state of an unfinished run lies, beside the file to be."""
    return out.with_name(f"{out.stem}.training")


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
    progress: Callable[[Progress], None] = lambda step: None,
) -> Trained:
    """Train on one picture and write the adapter; BLora takes either part of it, `split` cuts it in two.

    prompt: taken to the letter ("A [v]" holds brackets, as in the paper); the name in it should be a word the
        model does not know. sample_prompt: for sample pictures, in prompt syntax; None is `prompt`.
    recipe: None is the paper's, or the small one for small models.
    resume: go on from the state that an interrupted run left beside `out`. A KeyboardInterrupt that `progress`
        raises leaves one of the step just done; any other leaves the last checkpoint.
    Raises SetupError without peft, RequestError for a model without block map, RenderError for a loss that is
    not finite, and StudioError otherwise.
    """
    require_peft()
    refuse_existing(out, force)
    if not prompt.strip():
        raise RequestError("the prompt is empty; name the picture, as in --prompt 'A [v]'")
    model = pipe.model
    recipe = recipe or default_recipe(model.unet)
    if model.offload:
        raise SetupError("training needs the whole model on its device; open it without low memory mode")
    if model.bank.adapters:
        raise SetupError("training needs a model without adapters; unload them first")
    blocks = training_blocks(model)
    identity = Identity(_mark(image), prompt, model.checkpoint.label, blocks, recipe.to_dict())
    with _adapted(model, blocks, recipe) as weights:
        losses = _Run(model, image, prompt, recipe, weights, identity, state_file(out)).train(
            resume, progress, lambda: _sample(pipe, sample_prompt or literal(prompt), recipe)
        )
        layers = _factors(weights, recipe)
    write_lora(out, layers, naming=naming, metadata=_metadata(model, prompt, recipe, blocks, out.stem))
    state_file(out).unlink(missing_ok=True)
    return Trained(out, recipe, blocks, len(layers), tuple(losses))


def training_blocks(model: Model) -> tuple[str, ...]:
    """The model's content and style blocks. Raises RequestError for a model without a map of them."""
    block_map = model.facts.block_map
    for part in ("@content", "@style"):
        if not block_map.get(part):
            raise RequestError(
                f"{model.checkpoint.label} has no map of its {part[1:]} blocks: the published map is SDXL's. "
                "`lora-studio probe-blocks` proposes one; put it into the model's studio.json"
            )
    return tuple(dict.fromkeys((*block_map["@content"], *block_map["@style"])))


def trained_layers(names: Iterable[str], blocks: tuple[str, ...]) -> list[str]:
    """Of a UNet's layers, the attention projections in the blocks: 160 of them in SDXL's two."""
    attention = re.compile(rf".*\.{ATTENTION}")
    return [
        name for name in names if attention.fullmatch(name) and any(within(name, block) for block in blocks)
    ]


def literal(text: str) -> str:
    """A text in prompt syntax that means the text itself: "A [v]" -> "A \\[v\\]"."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


def require_peft() -> None:
    """Raises SetupError where peft is missing."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise SetupError(
            "training needs peft, which is not installed: pip install 'lora-studio[train]'"
        ) from error


@contextmanager
def _adapted(model: Model, blocks: tuple[str, ...], recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Within: the UNet with trainable factors; yields "layer.lora_A" and "layer.lora_B" -> parameter."""
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


class _Run:
    """One training run: its data, its optimiser, its noise."""

    def __init__(
        self,
        model: Model,
        image: Image.Image,
        prompt: str,
        recipe: Recipe,
        weights: dict[str, Tensor],
        identity: Identity,
        file: Path,
    ) -> None:
        self.model, self.recipe, self.weights = model, recipe, weights
        self.identity, self.file = identity, file
        self.generator = torch.Generator("cpu").manual_seed(recipe.seed)
        self.optimiser = torch.optim.AdamW(
            weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.noise_schedule = _noise_schedule(model)
        self.latent_mean, self.latent_std = _latents(model, image, _size(model, recipe), recipe.center_crop)
        text = model.encode_text([TextAsk(literal(prompt))])[0]
        self.tokens = text.tokens.to(model.dtype).expand(recipe.batch, -1, -1)  # [batch, tokens, width]
        self.added = self._added(text.pooled)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)

    def train(
        self, resume: bool, progress: Callable[[Progress], None], sample: Callable[[], Image.Image]
    ) -> list[float]:
        """The losses of the steps run now."""
        done, whole = 0, True  # whole: the state is that after `done` steps, not amid one
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
                progress(Progress(step, recipe.steps, losses[-1], sample() if due else None))
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
        """One optimiser step; all randomness comes from the run's own generator, on the CPU."""
        model, batch = self.model, self.recipe.batch
        shape = (batch, *self.latent_mean.shape[1:])
        sampled, noise = (torch.randn(shape, generator=self.generator).to(model.device) for _ in range(2))
        count = self.noise_schedule.config.num_train_timesteps
        steps = torch.randint(count, (batch,), generator=self.generator).to(model.device)
        latents = self.latent_mean + self.latent_std * sampled  # [batch, channels, h, w] float32
        noisy = self.noise_schedule.add_noise(latents, noise, steps)
        target = noise
        if model.checkpoint.prediction_type == "v_prediction":
            target = self.noise_schedule.get_velocity(latents, noise, steps)
        half = model.dtype != torch.float32
        with torch.autocast(model.device.type, model.dtype) if half else nullcontext():
            prediction: Tensor = model.unet(
                noisy.to(model.dtype),
                steps,
                encoder_hidden_states=self.tokens,
                added_cond_kwargs=self.added,
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

    def _added(self, pooled: Tensor | None) -> dict[str, Tensor] | None:
        """SDXL's pooled text and sizes: the square that is trained on, uncropped, as rendering's defaults say."""
        if not self.model.checkpoint.family.size_conditioned:
            return None
        assert pooled is not None
        side = _size(self.model, self.recipe)
        sizes = torch.tensor([side, side, 0, 0, side, side], device=self.model.device, dtype=self.model.dtype)
        batch = self.recipe.batch
        return {
            "text_embeds": pooled.to(self.model.dtype).expand(batch, -1),
            "time_ids": sizes.expand(batch, -1),
        }


def _noise_schedule(model: Model) -> Any:
    """The model's training noise. Raises RequestError for a prediction type that has no target here."""
    import diffusers

    kind = model.checkpoint.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise RequestError(
            f"{model.checkpoint.label} predicts {kind!r}; only epsilon and v_prediction can be trained"
        )
    scheduler_class: Any = diffusers.DDPMScheduler
    return scheduler_class.from_config(dict(model.checkpoint.scheduler.config), prediction_type=kind)


def _size(model: Model, recipe: Recipe) -> int:
    """The side of the training square, in pixels: a multiple of the latent cell."""
    defaults = model.checkpoint.defaults
    unit = model.checkpoint.vae_scale_factor
    side = recipe.size or min(defaults.width, defaults.height)
    if side % unit:
        raise RequestError(f"size={side} must be a multiple of {unit} pixels for {model.checkpoint.label}")
    return side


@torch.no_grad()
def _latents(model: Model, image: Image.Image, side: int, center_crop: bool) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the picture's latents, [1, channels, h, w] float32, scaled as the UNet knows them."""
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


def _sample(pipe: StudioPipeline, prompt: str, recipe: Recipe) -> Image.Image:
    """The prompt's picture as the adapter stands."""
    picture = pipe(Request(prompt, seed=recipe.seed)).images[0]
    assert isinstance(picture, Image.Image)
    return picture


def _factors(weights: dict[str, Tensor], recipe: Recipe) -> dict[str, LowRank]:
    """ "unet.…to_q" -> its factors in half precision, as adapters are exchanged."""
    layers = {}
    for name in weights:
        if name.endswith(".lora_A"):
            stem = name.removesuffix(".lora_A")
            down, up = (weights[f"{stem}.{half}"].detach().half().cpu() for half in ("lora_A", "lora_B"))
            layers[f"unet.{stem}"] = LowRank(down, up, recipe.scale)
    return layers


def _metadata(
    model: Model, prompt: str, recipe: Recipe, blocks: tuple[str, ...], title: str
) -> dict[str, str]:
    """What the file says of itself: enough to use it, and to train it again."""
    from pipelines.blora.splitting import ARCHITECTURES

    checkpoint = model.checkpoint
    named = re.search(r"\[[^\]]+\]", prompt)
    return {
        "modelspec.architecture": ARCHITECTURES[checkpoint.family.name],
        "modelspec.title": title,
        "modelspec.trigger_phrase": literal(named[0] if named else prompt),
        "modelspec.prediction_type": "v" if checkpoint.prediction_type == "v_prediction" else "epsilon",
        "modelspec.resolution": "x".join([str(_size(model, recipe))] * 2),
        "lora_studio.category": "concept",
        "lora_studio.method": "B-LoRA",
        "lora_studio.base": checkpoint.label,
        "lora_studio.blocks": ",".join(blocks),
        "lora_studio.prompt": prompt,
        "lora_studio.recipe": (
            f"rank {recipe.rank}, {recipe.steps} steps of {recipe.batch}, learning rate {recipe.learning_rate:g}, "
            f"seed {recipe.seed}"
        ),
    }


def _mark(image: Image.Image) -> str:
    """A picture's identity: the hash of its pixels."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
