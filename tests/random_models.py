"""Tiny random models of the real topology, and random adapters for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines import assets
from pipelines.adapters import Hadamard, write_lora

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDTH = 32


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        force_upcast=False,
    )


def _text_config(act: str, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=act,
        projection_dim=projection,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )


def _tokenizer(pad: str) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(
        assets.root() / "configs" / "tokenizer", pad_token=pad, model_max_length=77
    )


def save_sd(folder: Path) -> Path:
    """SD1.x's layout: four UNet levels, one text encoder, convolutions around the transformers."""
    torch.manual_seed(11)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        unet=unet,
        text_encoder=CLIPTextModel(_text_config("quick_gelu", WIDTH)),
        tokenizer=_tokenizer("<|endoftext|>"),
        scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def save_sdxl(folder: Path, channels: Sequence[int], layers: int, transformers: Sequence[int]) -> Path:
    """SDXL's layout: the first level without attention, two text encoders, size conditioning.

    channels, transformers: a number a level; layers: in each level.
    """
    torch.manual_seed(12)
    attending = len(channels) - 1
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * attending),
        up_block_types=(*("CrossAttnUpBlock2D",) * attending, "UpBlock2D"),
        transformer_layers_per_block=tuple(transformers),
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(*(2,) * attending, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        norm_num_groups=8,
    )
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        unet=unet,
        text_encoder=CLIPTextModel(_text_config("quick_gelu", WIDTH)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config("gelu", WIDTH)),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def stock_pipeline(folder: Path) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The folder as stock diffusers loads it, quiet."""
    kind = StableDiffusionXLPipeline if (folder / "text_encoder_2").exists() else StableDiffusionPipeline
    extra = {"add_watermarker": False} if kind is StableDiffusionXLPipeline else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, dtype=torch.float32, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def _layer_shapes(folder: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """component -> Linear and Conv2d layer -> its weight's shape."""
    pipe = stock_pipeline(folder)
    parts = {name: getattr(pipe, name, None) for name in ("unet", "text_encoder", "text_encoder_2")}
    return {
        name: {
            module: tuple(layer.weight.shape)
            for module, layer in part.named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        }
        for name, part in parts.items()
        if part is not None
    }


def save_lora(folder: Path, file: Path, *, seed: int, rank: int, where: str, text: bool) -> None:
    """A PEFT-named adapter for the model in `folder`.

    Every factor is random, so that each one shows in the picture; alpha equals rank, as stock loaders assume.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for part, layers in _layer_shapes(folder).items():
        for module, shape in layers.items():
            if where in module if part == "unet" else text and "_proj" in module:
                down = torch.randn((rank, *shape[1:]), generator=generator) * 0.3
                up = torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator) * 0.3
                tensors[f"{part}.{module}.lora_A.weight"] = down
                tensors[f"{part}.{module}.lora_B.weight"] = up
    save_file(tensors, file)


def save_flora(folder: Path, file: Path, *, rank: int, where: str, text: bool) -> None:
    """A FLoRA for the model in `folder`, around the identity."""
    generator = torch.Generator().manual_seed(rank)
    layers = {}
    for part, shapes in _layer_shapes(folder).items():
        for module, shape in shapes.items():
            if where in module if part == "unet" else text and "_proj" in module:
                inner = torch.randn((rank, shape[1]), generator=generator) * 0.3
                outer = torch.randn((shape[0], rank), generator=generator) * 0.3
                inner[0] += 1
                outer[:, 0] += 1
                layers[f"{part}.{module}"] = Hadamard(inner, outer)
    write_lora(file, layers, metadata={"modelspec.title": file.stem})
