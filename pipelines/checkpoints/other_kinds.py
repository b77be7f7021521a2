"""What a file is that is no SD1.x, SD2.x or SDXL text-to-image model, told by its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice

ENOUGH = 2_000
"""Keys that are looked at to tell another kind of file, those counted once that differ in numbers only."""

FOREIGN: Mapping[str, tuple[str, ...]] = {
    "a LoRA; load it as one, beside a model": (
        r"lora_(up|down|mid)\.|\.lora_[AB]\.|lora_linear_layer|\.lora\.(up|down)\.",
        r"\.(hada|lokr)_w1|dora_scale|\.oft_(blocks|diag)",
    ),
    "an SD3 model": (r"(^|\.)joint_blocks\.|(^|\.)transformer_blocks\.\d+\.ff_context\.",),
    "a Chroma model": (r"distilled_guidance_layer",),
    "a FLUX.2 model": (r"(^|\.)double_stream_modulation_img",),
    "a Hunyuan video model": (r"(^|\.)individual_token_refiner\.|(^|\.)txt_in\.t_embedder",),
    "a HiDream model": (r"(^|\.)double_stream_blocks\.",),
    "a FLUX model": (r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\.",),
    "an AuraFlow model": (r"(^|\.)(cond_seq_linear|double_layers|joint_transformer_blocks)(\.|$)",),
    "a Stable Cascade model": (
        r"(^|\.)clip_(txt|img|txt_pooled)_mapper|\.channelwise\.|(^|\.)effnet_mapper",
    ),
    "a Hunyuan-DiT model": (r"(^|\.)(mlp_t5|text_embedding_padding|style_embedder)(\.|$)",),
    "a Qwen-Image model": (r"(^|\.)(img|txt)_mod\.1\.|(^|\.)txt_norm\.weight",),
    "a Lumina or Z-Image model": (r"(^|\.)(cap_embedder|noise_refiner|context_refiner)\.",),
    "an LTX video model": (r"(^|\.)patchify_proj\.",),
    "a PixArt or Sana model": (r"(^|\.)(t_block\.1|adaln_single|y_embedder\.y_proj)(\.|$)",),
    "a Wan video model": (r"(^|\.)head\.modulation$|(^|\.)time_projection\.1\.",),
    "a Mochi video model": (r"(^|\.)t5_yproj\.",),
    "a video model (Stable Video Diffusion)": (
        r"(^|\.)(time_stack|time_mixer|temporal_transformer_blocks)\b",
    ),
    "a motion module (AnimateDiff)": (r"(^|\.)motion_modules?\.",),
    "a GLIGEN model": (r"(^|\.)(position_net|fuser)\.",),
    "a Zero123 model": (r"^cc_projection\.",),
    "an unCLIP (image variation) model": (r"(^|\.)noise_augmentor\.|^embedder\.model\.",),
    "a Kolors, Kandinsky or DeepFloyd model": (
        r"(^|\.)(encoder_hid_proj|add_embedding\.(image|pool|text_norm))",
    ),
    "a full LCM model, whose UNet takes guidance as an input; use its base model with an LCM-LoRA": (
        r"cond_proj\.(weight|bias)$|(^|\.)guidance_(in|embed|embedder|embedding)\.",
    ),
    "a ControlNet": (
        r"^(control_model|controlnet|lllite_\w+|adapter\.body|t2i_adapter)\b",
        r"^controlnet_|^zero_convs\.|^input_hint_block",
    ),
    "an IP-Adapter": (r"(^|\.)(ip_adapter|image_proj)\.",),
    "a textual inversion embedding; put it into the embeddings folder": (
        r"^(emb_params|clip_[lg]$|string_to_param|bundle_emb)",
    ),
    "a safety checker": (r"^(safety_checker|concept_embeds|special_care_embeds)",),
    "an upscaler": (
        r"(^|\.)(RRDB_trunk|conv_first|conv_hr|HRconv)\.|\.rdb\d\.|\.RDB\d\.|residual_group",
        r"^params_ema\.|^body\.\d+\.|^model\.\d+\.(weight|sub\.)",
    ),
}
"""Another kind of file -> patterns, one of which some key of it matches. The first match wins."""

PARTIAL: Mapping[str, tuple[str, ...]] = {
    "holds a UNet only, and not all of it; load its whole model folder": (
        r"^(unet\.)?down_blocks\.\d+\.resnets\.",
    ),
    "holds averaged (EMA) weights only, of a UNet that is not understood": (r"^(\w+\.)*model_ema\.",),
    "is a transformer": (
        r"^(model\.)?diffusion_model\.(layers|transformer_blocks|blocks)\.",
        r"^transformer_blocks\.|^transformer\.(?!resblocks|text_model)|^blocks\.",
    ),
    "is a VAE; give it as the VAE of a model": (
        r"^(encoder|decoder)\.(conv_in|mid|mid_block|down|up)",
        r"^(first_stage_model|vae)\.|^taesd_|^decoder\.\d+\.",
    ),
    "is a text encoder": (
        r"^text_model\.|^(transformer\.)?resblocks\.|^cond_stage_model\.|^conditioner\.|^clip_[lg]\.",
        r"^text_encoders?(_\d)?\.|^encoder\.(block|layers)\.|^(model\.)?layers\.|^token_embedding\.",
        r"^transformer\.text_model\.|^embeddings\.",
    ),
}
"""The same for files without a UNet."""

CHANNELS: Mapping[int, str] = {
    9: "is an inpainting model (9 input channels)",
    8: "is an instruction (pix2pix) model (8 input channels)",
    5: "is a depth model (5 input channels)",
    7: "is an upscaler (7 input channels)",
}
"""Number of the UNet's input channels -> what to say of the model."""

EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Marks of models with another noise schedule."""

LEFT_OUT = re.compile(
    r"model_ema\..*|"
    r"(betas|alphas\w*|sqrt_\w+|posterior_\w+|log_one_minus_\w+|lvlb_weights|logvar|loss_weights)|"
    r"denoiser\..*|loss(_fn)?\..*|lpips\..*|discriminator\..*|"
    r"(global_step|epoch|iteration|num_updates|decay|pytorch-lightning_version)|(optimizer|lr_scheduler)\w*(\..*)?|"
    r"safety_checker\..*|feature_extractor\..*"
)
"""What a whole checkpoint may also hold, and no picture needs: an averaged copy of its weights, its noise schedule (the
same for each model of a family), losses, counters, the state of its training; a safety checker, which is not run."""


_NUMBER = re.compile(r"\.\d+\.")


def foreign(keys: Iterable[str]) -> str:
    """The kind of model that some of the keys belong to, with a remedy; "" where none does."""
    return _said(FOREIGN, keys)


def without_unet(keys: Iterable[str]) -> str:
    """What to say of a file without a UNet; "" where its keys do not tell."""
    some = list(keys)
    kind = foreign(some)
    return f"is {kind}" if kind else _said(PARTIAL, some)


def _said(kinds: Mapping[str, tuple[str, ...]], keys: Iterable[str]) -> str:
    alike = {_NUMBER.sub(".7.", key): key for key in keys}
    some = list(islice(alike.values(), ENOUGH))
    for what, patterns in kinds.items():
        if any(re.search(pattern, key) for pattern in patterns for key in some):
            return what
    return ""
