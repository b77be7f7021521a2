"""Checkpoints as other programs write them, made from tiny models.

The names below were written from the published layouts, apart from diffusers' own converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_names(unet: Any) -> dict[str, str]:
    """Module of diffusers' UNet -> module of Stability's."""
    names = dict(UNET_ENDS)
    count = len(unet.down_blocks)
    many = len(unet.down_blocks[0].resnets)
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            number = (many + 1) * level + layer + 1
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(many + 1) * (level + 1)}.0.op"
    for level in range(count):
        has_attention = hasattr(unet.up_blocks[level], "attentions")
        for layer in range(many + 1):
            number = (many + 1) * level + layer
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        last = (many + 1) * level + many
        names[f"up_blocks.{level}.upsamplers.0"] = f"output_blocks.{last}.{1 + has_attention}"
    names |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    return names | {"mid_block.resnets.1": "middle_block.2"}


def renamed(key: str, names: Mapping[str, str], resnet: Mapping[str, str]) -> str:
    module = max((name for name in names if key.startswith(f"{name}.")), key=len)
    rest = key[len(module) + 1 :]
    if ".resnets." in key:
        inner, _, last = rest.rpartition(".")
        rest = f"{resnet.get(inner, inner)}.{last}"
    return f"{names[module]}.{rest}"


def unet_tensors(unet: Any) -> Tensors:
    names = unet_names(unet)
    return {f"model.diffusion_model.{renamed(k, names, RESNET)}": v for k, v in unet.state_dict().items()}


def vae_tensors(vae: Any, prefix: str = "first_stage_model.") -> Tensors:
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    count = len(vae.encoder.down_blocks)
    for half, blocks, stage in (("encoder", "down_blocks", "down"), ("decoder", "up_blocks", "up")):
        names |= {f"{half}.{end}": f"{half}.{end}" for end in ("conv_in", "conv_out")}
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        names |= {f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for i in range(2)}
        names[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        for level in range(count):
            target = level if stage == "down" else count - 1 - level
            for layer in range(3):
                names[f"{half}.{blocks}.{level}.resnets.{layer}"] = f"{half}.{stage}.{target}.block.{layer}"
            names[f"{half}.{blocks}.{level}.{stage}samplers.0"] = f"{half}.{stage}.{target}.{stage}sample"
    tensors = {}
    for key, value in vae.state_dict().items():
        target = renamed(key, names, {"conv_shortcut": "nin_shortcut"})
        for ours, theirs in (("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_", "")):
            target = target.replace(f".attn_1.{ours}", f".attn_1.{theirs}")
        tensors[prefix + target] = (
            value[:, :, None, None] if ".attn_1." in target and value.ndim == 2 else value
        )
    return tensors


def clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """CLIP-L, as transformers writes it."""
    state = encoder.state_dict()
    return {f"{prefix}transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}


def open_clip_tensors(encoder: Any, prefix: str) -> Tensors:
    """A text encoder as open_clip writes it: query, key and value in one matrix, the projection transposed."""
    state = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    tensors = {
        f"{prefix}model.positional_embedding": state["embeddings.position_embedding.weight"],
        f"{prefix}model.token_embedding.weight": state["embeddings.token_embedding.weight"],
        f"{prefix}model.ln_final.weight": state["final_layer_norm.weight"],
        f"{prefix}model.ln_final.bias": state["final_layer_norm.bias"],
        f"{prefix}model.text_projection": state.get(
            "text_projection.weight", torch.eye(encoder.config.hidden_size)
        ).T.contiguous(),
    }
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for layer in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}.", f"{prefix}model.transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            for name, other in inner.items():
                tensors[f"{theirs}{other}.{kind}"] = state[f"{ours}{name}.{kind}"]
            parts = [state[f"{ours}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
    return tensors


def single_file_tensors(pipe: Any) -> Tensors:
    tensors = unet_tensors(pipe.unet) | vae_tensors(pipe.vae)
    if hasattr(pipe, "text_encoder_2"):
        tensors |= clip_tensors(pipe.text_encoder, "conditioner.embedders.0.")
        tensors |= open_clip_tensors(pipe.text_encoder_2, "conditioner.embedders.1.")
    else:
        tensors |= clip_tensors(pipe.text_encoder, "cond_stage_model.")
    return {key: value.clone() for key, value in tensors.items()}


def same(module: Any, other: Any) -> bool:
    a, b = module.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def diffusers_tensors(pipe: Any) -> Tensors:
    """diffusers' own names in one file, each part under its component's name."""
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {
        f"{part}.{key}": value.clone()
        for part in parts
        if getattr(pipe, part, None) is not None
        for key, value in getattr(pipe, part).state_dict().items()
    }


def sd2_tensors(pipe: Any, prefix: str) -> Tensors:
    """SD2.x: open_clip's text encoder under `prefix`."""
    tensors = unet_tensors(pipe.unet) | vae_tensors(pipe.vae)
    tensors |= open_clip_tensors(pipe.text_encoder, prefix)
    return {key: value.clone() for key, value in tensors.items()}
