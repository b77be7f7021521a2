"""From a single .safetensors checkpoint in Stability's layout to its components, without the network.

The keys and shapes decide what the file is, before any tensor is read. Anything but a complete SD1.x, SD2.x or SDXL
text-to-image model is refused, with a message that says what it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipelines import assets
from pipelines.checkpoints.components import (
    Components,
    first_line,
    make_model_scheduler,
    quietly,
    read_json,
    refuse_incomplete,
    vae_dtype,
)
from pipelines.checkpoints.weights import WeightsHeader, read_weights_header
from pipelines.errors import ModelError, StudioError
from pipelines.families.family import SD1, SD2, SDXL, Family
from pipelines.home.files import read_text
from pipelines.home.plain import LONGEST_YAML, read_yaml, reading

ENOUGH = 5_000
"""Keys that are looked at to tell another kind of file."""
UNET = "model.diffusion_model."
VAE = ("first_stage_model.", "vae.")
FIRST_CONV = f"{UNET}input_blocks.0.0.weight"
PAD_TOKENS = {"sd1": ("<|endoftext|>",), "sd2": ("!",), "sdxl": ("<|endoftext|>", "!")}
"""Family -> the padding token of each of its tokenizers."""

OTHERS: tuple[tuple[str, str], ...] = (
    (r"lora_(up|down|mid)\.|\.lora_[AB]\.|lora_linear_layer|\.(hada|lokr)_w1|dora_scale", "is a LoRA; load it as one"),
    (r"(^|\.)joint_blocks\.", "is an SD3 model"),
    (r"(^|\.)double_blocks\.|(^|\.)single_blocks\.|(^|\.)single_transformer_blocks\.", "is a FLUX model"),
    (r"(^|\.)(cond_seq_linear|double_layers)\.", "is an AuraFlow model"),
    (r"^clip_txt_mapper|\.channelwise\.", "is a Stable Cascade model"),
    (r"^(model\.)?diffusion_model\.(layers|transformer_blocks|blocks)\.|^transformer_blocks\.", "is a transformer"),
    (r"^control_model\.|^controlnet_|^zero_convs\.|^input_hint_block", "is a ControlNet"),
    (r"^(emb_params|clip_[lg]|string_to_param)", "is a textual inversion embedding"),
    (r"^(ip_adapter|image_proj)\.", "is an IP-Adapter"),
    (r"^down_blocks\.\d+\.resnets\.", "holds a UNet only; load its whole model folder"),
    (r"^(encoder|decoder)\.(conv_in|mid)|^first_stage_model\.", "is a VAE; give it as the VAE of a model"),
    (r"^text_model\.|^transformer\.resblocks\.|^cond_stage_model\.|^conditioner\.", "is a text encoder"),
)  # fmt: skip
"""(a pattern that some key of another kind of file matches, what to say of the file). The first match wins."""

CHANNELS = {
    9: "is an inpainting model",
    8: "is an instruction (pix2pix) model",
    5: "is a depth model",
    7: "is an upscaler",
}
"""Number of the UNet's input channels -> what to say of the model."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint's keys, shapes and metadata say about it.

    prediction_type: "epsilon" or "v_prediction". zero_snr: whether it was trained with zero terminal SNR.
    """

    family: Family
    prediction_type: str
    zero_snr: bool
    has_vae: bool


def load_single_file(file: Path, dtype: torch.dtype, vae: Any = None) -> Components:
    """Load a checkpoint without the network. vae: a VAE to use in place of the file's own.

    Raises ModelError for what cannot be run, and for a file without a VAE where none is given; and NoAnswer.
    """
    import diffusers

    facts = examine(file)
    family = facts.family
    if vae is None and not facts.has_vae:
        raise ModelError(f"{file.name} has no VAE inside; name one with --vae (or vae=…)")
    config = assets.root() / "configs" / family.name
    names = [name.replace("text_encoder", "tokenizer") for name in family.text_encoders]
    tokenizers = dict(zip(names, load_tokenizers(family), strict=True))
    unused = {"feature_extractor": None, "image_encoder": None}
    pipeline_class: Any
    if family is SDXL:
        pipeline_class, settings = diffusers.StableDiffusionXLPipeline, {**unused, "add_watermarker": False}
    else:
        pipeline_class, settings = diffusers.StableDiffusionPipeline, {**unused, "safety_checker": None}
    try:
        with quietly():
            if vae is None:
                vae = diffusers.AutoencoderKL.from_single_file(
                    str(file),
                    config=str(config),
                    subfolder="vae",
                    dtype=vae_dtype(dtype, read_json(config / "vae" / "config.json")),
                    local_files_only=True,
                )
            pipeline = pipeline_class.from_single_file(
                str(file),
                config=str(config),
                dtype=dtype,
                local_files_only=True,
                vae=vae,
                scheduler=None,
                **tokenizers,
                **settings,
            )
    except StudioError:
        raise
    except NotImplementedError as error:  # raised for a weight that nothing was loaded into
        raise ModelError(
            f"{file.name} lacks weights that a {family.label} model has; use a complete copy"
        ) from error
    except Exception as error:  # diffusers and transformers raise anything
        raise ModelError(
            f"{file.name} looks like {family.label} but cannot be loaded ({first_line(error)}); "
            "its layout is not the usual one, or parts are missing. Try another copy of the model"
        ) from error
    refuse_incomplete(
        file.name, pipeline.unet, vae, *(getattr(pipeline, name) for name in family.text_encoders)
    )
    return Components(
        family=family,
        unet=pipeline.unet,
        vae=vae,
        text_encoders={name: getattr(pipeline, name) for name in family.text_encoders},
        tokenizers={name: tokenizers[token] for name, token in zip(family.text_encoders, names, strict=True)},
        scheduler=_scheduler(config, facts),
        force_zeros_for_empty_prompt=family is SDXL,
        files=(file,),
    )


def load_tokenizers(family: Family) -> list[Any]:
    """CLIP's tokenizer, once for each text encoder of the family, with its padding token."""
    from transformers import CLIPTokenizer

    folder = str(assets.root() / "configs" / "tokenizer")
    return [
        CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=pad, model_max_length=77)
        for pad in PAD_TOKENS[family.name]
    ]


def examine(file: Path) -> CheckpointFacts:
    """Read a checkpoint's header, and say what it is. Raises ModelError, saying what it is, for what cannot be run;
    and NoAnswer."""
    if file.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelError(
            f"{file.name} is a pickle, which can run code when it is opened; use the model's .safetensors file"
        )
    if file.suffix.lower() != ".safetensors":
        raise ModelError(f"{file.name} is no model file; use a .safetensors file or a diffusers folder")
    header = read_weights_header(file)
    family = _family(file.name, header)
    return CheckpointFacts(
        family=family,
        prediction_type=_prediction_type(file, header, family),
        zero_snr="ztsnr" in header.shapes
        or header.metadata.get("ss_zero_terminal_snr", "").lower() == "true",
        has_vae=any(key.startswith(VAE) for key in header.shapes),
    )


def _family(name: str, header: WeightsHeader) -> Family:
    keys = header.shapes
    if FIRST_CONV not in keys:
        for pattern, what in OTHERS:
            if any(re.search(pattern, key) for key in islice(keys, ENOUGH)):
                raise ModelError(f"{name} {what}; as a model, SD1.x, SD2.x and SDXL checkpoints can be used")
        raise ModelError(f"{name} is not a checkpoint that is understood; use an SD1.x, SD2.x or SDXL one")
    channels = next(iter(keys[FIRST_CONV][1:]), 0)
    if channels != 4:
        what = CHANNELS.get(channels, f"takes {channels} input channels")
        raise ModelError(f"{name} {what}, which is not supported; use a plain text-to-image checkpoint")
    if any(key.endswith((".absmax", ".quant_map")) or ".weight.bitsandbytes" in key for key in keys):
        raise ModelError(f"{name} is quantized to 4 bits, which is not supported; use its fp16 or fp8 form")
    if "edm_mean" in keys or "edm_vpred.sigma_max" in keys:
        raise ModelError(
            f"{name} is an EDM model (Playground 2.5, CosXL), which is not supported; use another model"
        )

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in keys)

    if has("conditioner.embedders.1.model.") and has(f"{UNET}label_emb."):
        return SDXL
    if has("conditioner.embedders.0.model."):
        raise ModelError(f"{name} is the SDXL refiner, which is not supported; use an SDXL base model")
    if has("cond_stage_model.model."):
        return SD2
    if has("cond_stage_model.transformer.text_model."):
        return SD1
    raise ModelError(f"{name} has no text encoder inside that is understood; use a complete checkpoint")


def _prediction_type(file: Path, header: WeightsHeader, family: Family) -> str:
    """The prediction type by the marker key, else the metadata, else a .yaml beside the file, else the family's usual.

    The weights do not tell. SD2.x's published 768-pixel models predict v, and nearly all others follow them. SD2.x's
    512-pixel base needs a .yaml with `parameterization: "eps"` beside it.
    """
    if "v_pred" in header.shapes:
        return "v_prediction"
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    said = said or _parameterization(file.with_suffix(".yaml"))
    architecture = header.metadata.get("modelspec.architecture", "").lower()
    if said.startswith("v") or (not said and architecture.startswith("stable-diffusion-v2-768-v")):
        return "v_prediction"
    if said.startswith("e") or (not said and architecture.startswith("stable-diffusion-v2-512")):
        return "epsilon"
    return "v_prediction" if family is SD2 else "epsilon"


def _parameterization(file: Path) -> str:
    """The parameterization in a Stability configuration; "" where the file is not there. Raises ModelError where it
    cannot be read."""
    remedy = "mend it or take it away"
    with reading(str(file), ModelError, remedy):
        try:
            text = read_text(file, LONGEST_YAML)
        except FileNotFoundError:
            return ""
        content = read_yaml(text, str(file), error=ModelError, remedy=remedy)
        said = content["model"]["params"].get("parameterization", "eps")
    return said.lower() if isinstance(said, str) else "eps"


def _scheduler(config: Path, facts: CheckpointFacts) -> Any:
    described = read_json(config / "scheduler" / "scheduler_config.json")
    described["prediction_type"] = facts.prediction_type
    if facts.zero_snr:
        described |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if described["_class_name"] == "PNDMScheduler":  # it cannot rescale
            described["_class_name"] = "DDIMScheduler"
    return make_model_scheduler(described, facts.family)
