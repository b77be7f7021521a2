"""From a diffusers folder on this computer to its components."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from composers.shown import shown
from pipelines.checkpoints.components import (
    Components,
    first_line,
    make_model_scheduler,
    quietly,
    read_json,
    refuse_other_than_files,
    vae_dtype,
)
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError, StudioError
from pipelines.families.family import SDXL, Family, family_of
from pipelines.home.answers import answered
from pipelines.home.files import is_folder
from pipelines.home.plain import short

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""Component -> the classes of it that can be run."""

MOST_LAYERS = 64
"""Most layers of one kind that a configuration may give one part. SDXL's second text encoder has 32."""
HALVES = (torch.float16, torch.bfloat16)
UNUSED: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}


def load_folder(folder: Path, dtype: torch.dtype) -> Components:
    """Load a local diffusers folder; nothing is fetched. Raises ModelError for what cannot be run, and NoAnswer."""
    import diffusers

    refuse_other_than_files(folder)
    index = read_json(folder / "model_index.json")
    family = folder_family(folder, index)
    for part in ("unet", "vae", *family.text_encoders):
        _refuse_endless(folder, part)
    variant = folder_variant(folder, dtype)
    scheduler = make_model_scheduler(read_json(folder / "scheduler" / "scheduler_config.json"), family)
    pipeline_class: Any
    if family is SDXL:
        pipeline_class = diffusers.StableDiffusionXLPipeline
        settings = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    else:
        pipeline_class = diffusers.StableDiffusionPipeline
        settings = {**UNUSED, "requires_safety_checker": False}
    try:
        with quietly():
            pipeline = pipeline_class.from_pretrained(
                str(folder),
                dtype={"vae": vae_dtype(dtype, read_json(folder / "vae" / "config.json")), "default": dtype},
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                scheduler=None,
                **settings,
            )
    except StudioError:
        raise
    except Exception as error:  # diffusers and transformers raise anything
        raise ModelError(
            f"{folder} cannot be loaded: {first_line(error)}; copy or download it again"
        ) from error
    for part in ("unet", "vae", *family.text_encoders):
        _refuse_incomplete(folder, part, getattr(pipeline, part), dtype)
    tokenizers = {
        name: getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in family.text_encoders
    }
    return Components(
        family=family,
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoders={name: getattr(pipeline, name) for name in family.text_encoders},
        tokenizers=tokenizers,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
        files=folder_files(folder, dtype),
    )


def folder_family(folder: Path, index: Mapping[str, Any]) -> Family:
    """The family of a diffusers folder, from its configurations alone. index: its model_index.json.

    Raises ModelError for a model that cannot be run, and NoAnswer.
    """
    label = folder.name
    kind = short(index.get("_class_name"))
    if not isinstance(index.get("unet"), list):
        raise ModelError(
            f"{label} is a {kind}, which has no UNet; SD1.x, SD2.x and SDXL models can be used, not SD3, "
            "FLUX or other transformer models"
        )
    unet_config = read_json(folder / "unet" / "config.json")
    try:
        family = family_of(unet_config)
    except ModelError as error:
        raise ModelError(f"{label} ({kind}): {error}") from error
    encoders = [index.get(name) or [None] for name in family.text_encoders]
    if family is SDXL and not all(isinstance(entry, list) and entry[0] for entry in encoders):
        raise ModelError(
            f"{label} is an SDXL refiner (it has one text encoder only); load the SDXL base model"
        )
    for key in ("time_cond_proj_dim", "class_embed_type", "encoder_hid_dim_type"):
        if unet_config.get(key) is not None:
            raise ModelError(
                f"{label} ({kind}): its UNet takes a further input ({key}={shown(unet_config[key])}), which plain "
                "text-to-image does not give; use the base model (for LCM: with an LCM-LoRA)"
            )
    for name, allowed in CLASSES.items():
        if name.endswith("_2") and family is not SDXL:
            continue
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in allowed:
            raise ModelError(
                f"{label} ({kind}): {name} is {shown(entry)}; it must be a {' or '.join(allowed)}"
            )
        if entry[0] not in ("diffusers", "transformers"):
            raise ModelError(
                f"{label} ({kind}): {name} comes from {shown(entry[0])}, and foreign code is not run"
            )
    return family


def folder_variant(folder: Path, dtype: torch.dtype) -> str | None:
    """ "fp16" if the UNet has such files and `dtype` is a half precision, or if it has no others; else None.

    Raises ModelError where the UNet has no .safetensors file, and NoAnswer.
    """
    plain, half = weight_files(folder / "unet", None), weight_files(folder / "unet", "fp16")
    if not plain and not half:
        pickled = answered(folder, lambda: any((folder / "unet").glob("*.bin")))
        raise ModelError(
            f"{folder} has no .safetensors weights in its unet folder"
            + ("; .bin files are not read, because they may run code" if pickled else "")
        )
    return "fp16" if half and (dtype in HALVES or not plain) else None


def folder_files(folder: Path, dtype: torch.dtype) -> tuple[Path, ...]:
    """The weight files that loading in `dtype` reads, in a fixed order. Raises as `folder_variant`."""
    variant = folder_variant(folder, dtype)
    parts = [part for part in CLASSES if "tokenizer" not in part and is_folder(folder / part)]
    return tuple(file for part in parts for file in _part_files(folder, part, variant))


def _refuse_endless(folder: Path, part: str) -> None:
    """Raises ModelError for a configuration with so many layers that building them would not end."""
    for key, value in read_json(folder / part / "config.json").items():
        if not (key.endswith("layers") or "layers_per_block" in key):
            continue
        pending = [value]
        while pending:
            one = pending.pop()
            if isinstance(one, list):
                pending += one
            elif isinstance(one, int | float) and not one <= MOST_LAYERS:
                raise ModelError(
                    f"{folder.name}: the {key} of its {part} is {shown(value)}, more than {MOST_LAYERS}; "
                    "copy or download the model again"
                )


def _refuse_incomplete(folder: Path, part: str, module: Any, dtype: torch.dtype) -> None:
    """Raises ModelError where files lack weights, which diffusers and transformers fill with random numbers."""
    headers = [read_weights_header(file) for file in _part_files(folder, part, folder_variant(folder, dtype))]
    stored = sum(prod(s) for h in headers for key, s in h.shapes.items() if not key.endswith("position_ids"))
    needed = sum(weight.numel() for weight in module.parameters())
    if stored < needed:
        raise ModelError(
            f"{folder.name}: the files in {part} hold {stored} numbers where {needed} belong; copy or download "
            "the model again"
        )


def _part_files(folder: Path, part: str, variant: str | None) -> tuple[Path, ...]:
    return weight_files(folder / part, variant) or weight_files(folder / part, None)


def weight_files(folder: Path, variant: str | None) -> tuple[Path, ...]:
    """The weight files of one variant in a component's folder, shards included, in a fixed order. Raises NoAnswer."""
    found = []
    for file in sorted(answered(folder, lambda: list(folder.glob("*.safetensors")))):
        match = re.fullmatch(
            r"(?:diffusion_pytorch_model|model)(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors", file.name
        )
        if match and (match[1] or match[3] or None) == (f".{variant}" if variant else None):
            found.append(file)
    return tuple(found)
