"""The shapes of the embedded models, and saving them in the stock diffusers layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tokenizer as words
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

LATENT = 32  # latent pixels a side
SCALING = 0.13025
POOLED = 128
BETAS = {"beta_start": 0.00085, "beta_end": 0.02, "beta_schedule": "scaled_linear"}


def vae() -> AutoencoderKL:
    """f = 4, four channels: 128 x 128 pictures <-> 32 x 32 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 80),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=SCALING,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def unet(family: str) -> UNet2DConditionModel:
    if family == "sdxl":
        return UNet2DConditionModel(
            sample_size=LATENT,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96, 112),
            layers_per_block=2,
            transformer_layers_per_block=(1, 1, 1),
            attention_head_dim=(4, 6, 7),
            cross_attention_dim=256,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=6 * 32 + POOLED,
            norm_num_groups=16,
        )
    return UNet2DConditionModel(
        sample_size=LATENT,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 48, 48, 48),
        layers_per_block=2,
        attention_head_dim=3,
        cross_attention_dim=128,
        norm_num_groups=8,
    )


def text_encoder(projection: bool, layers: int = 3) -> CLIPTextModel | CLIPTextModelWithProjection:
    vocabulary, _ = words.tables()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=512,
        projection_dim=POOLED,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=words.LENGTH,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=vocabulary[words.BOS],
        eos_token_id=vocabulary[words.EOS],
        pad_token_id=vocabulary["!"] if projection else vocabulary[words.EOS],
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def encode_text(model: CLIPTextModel, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ids [n, 77] -> (penultimate [n, 77, 128], last with final norm [n, 77, 128], pooled [n, 128]).

    The same numbers as the model's own forward, written out so that it compiles into the step.
    """
    core = getattr(model, "text_model", model)
    x = core.embeddings.token_embedding(ids) + core.embeddings.position_embedding.weight
    gelu = model.config.hidden_act == "gelu"
    heads = model.config.num_attention_heads
    penultimate = x
    for layer in core.encoder.layers:
        penultimate = x
        h = layer.layer_norm1(x)
        q, k, v = (
            p(h).unflatten(-1, (heads, -1)).transpose(1, 2)
            for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + layer.self_attn.out_proj(h)
        h = layer.mlp.fc1(layer.layer_norm2(x))
        h = F.gelu(h) if gelu else h * torch.sigmoid(1.702 * h)
        x = x + layer.mlp.fc2(h)
    last = core.final_layer_norm(x)
    end = (ids == model.config.eos_token_id).int().argmax(1)
    pooled = last[torch.arange(len(ids), device=ids.device), end]
    if hasattr(model, "text_projection"):
        pooled = model.text_projection(pooled)
    return penultimate, last, pooled


def texts(family: str) -> nn.ModuleDict:
    if family == "sdxl":
        return nn.ModuleDict({"text_encoder": text_encoder(False), "text_encoder_2": text_encoder(True)})
    return nn.ModuleDict({"text_encoder": text_encoder(False, layers=2)})


def scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        **BETAS,
    )


def half(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().half().cpu().contiguous() for k, v in module.state_dict().items()}


def save_weights(path: Path, modules: dict[str, nn.Module]) -> None:
    """All modules in one fp16 file, keys prefixed by the module's name."""
    tensors = {f"{name}.{k}": v for name, m in modules.items() for k, v in half(m).items()}
    save_file(tensors, path)


def load_vae(work: Path) -> AutoencoderKL:
    """The trained VAE: train_vae.py's, else the one that ships with tiny-sdxl (the same weights)."""
    made, shipped = work / "vae.safetensors", Path(__file__).parents[1] / "models/tiny-sdxl/vae"
    network = vae()
    if made.exists():
        load_weights(made, {"vae": network})
    else:
        network.load_state_dict(
            {k: v.float() for k, v in load_file(next(shipped.glob("*.safetensors"))).items()}
        )
    return network.eval()


def load_weights(path: Path, modules: dict[str, nn.Module]) -> None:
    tensors = load_file(path)
    for name, module in modules.items():
        own = {k[len(name) + 1 :]: v.float() for k, v in tensors.items() if k.startswith(name + ".")}
        if own:
            module.load_state_dict(own)


def export(folder: Path, family: str, modules: dict[str, nn.Module]) -> None:
    """Write the stock layout: fp16 safetensors, every file below 12 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        module.half().save_pretrained(target, max_shard_size="10MB")
        module.float()
        config = json.loads((target / "config.json").read_text())
        config.pop("_name_or_path", None)
        (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    scheduler().save_pretrained(folder / "scheduler")
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    config["clip_sample"] = False  # DDIM would clip latents to -1..1 without it
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n"
    )
    words.save(folder / "tokenizer")
    index: dict[str, object] = {
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family == "sdxl":
        words.save(folder / "tokenizer_2", pad="!")
        index |= {
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "image_encoder": [None, None],
            "feature_extractor": [None, None],
            "force_zeros_for_empty_prompt": True,
            "add_watermarker": False,
        }
    else:
        index |= {
            "_class_name": "StableDiffusionPipeline",
            "image_encoder": [None, None],
            "feature_extractor": [None, None],
            "safety_checker": [None, None],
            "requires_safety_checker": False,
        }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
