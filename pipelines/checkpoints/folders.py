"""From a diffusers folder on this computer to its components."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from composers.shown import shown
from pipelines.checkpoints import clip_layout, vae_layout
from pipelines.checkpoints.components import (
    Components,
    first_line,
    make_model_scheduler,
    quietly,
    read_json,
    refuse_other_than_files,
    vae_dtype,
)
from pipelines.checkpoints.matching import Spell
from pipelines.checkpoints.single_file import load_tokenizers
from pipelines.checkpoints.stored import listed, refuse_infinite, storage_of
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError, StudioError
from pipelines.families.family import SDXL, Family, family_of
from pipelines.home.answers import answered
from pipelines.home.files import is_folder, is_regular
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

_WEIGHT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors"
)
CLIP_WORDS = 49408
"""Words that CLIP's tokenizer knows."""
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
    _refuse_pickles(folder, family, variant)
    tokenizers, notes = _own_tokenizers(folder, family)
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
                **tokenizers,
                **settings,
            )
    except StudioError:
        raise
    except Exception as error:  # diffusers and transformers raise anything
        raise ModelError(
            f"{folder} cannot be loaded: {first_line(error)}; copy or download it again"
        ) from error
    for part in ("unet", "vae", *family.text_encoders):
        refuse_odd_weights(folder.name, part, getattr(pipeline, part), _part_files(folder, part, variant))
    return Components(
        family=family,
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoders={name: getattr(pipeline, name) for name in family.text_encoders},
        tokenizers={name: getattr(pipeline, _tokenizer(name)) for name in family.text_encoders},
        scheduler=scheduler,
        force_zeros_for_empty_prompt=bool(pipeline.config.get("force_zeros_for_empty_prompt", False)),
        files=folder_files(folder, dtype),
        notes=notes,
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
    """The variant of the UNet's files to load; None for those without one. Raises as `variant_of`."""
    return variant_of(folder / "unet", dtype)


def variant_of(part: Path, dtype: torch.dtype) -> str | None:
    """The variant of a part's files to load, such as "fp16", "bf16" or "non_ema"; None for those without one.

    A half precision prefers the files in that precision, then fp16 ones; float32 those without a variant. Raises
    ModelError where the folder has no .safetensors weights, and NoAnswer.
    """
    there = {variant for _, variant in _weight_files(part)}
    if not there:
        raise ModelError(f"{part.parent} has {_no_weights(part)}")
    wanted = ("bf16", "fp16", "") if dtype == torch.bfloat16 else ("fp16", "bf16", "")
    order = wanted if dtype in HALVES else ("", "fp32", *wanted)
    return next((variant for variant in order if variant in there), sorted(there)[0]) or None


def _no_weights(part: Path) -> str:
    pickled = answered(part, lambda: any(part.glob("*.bin")))
    return f"no .safetensors weights in its {part.name} folder; " + (
        ".bin files are not read, because they may run code: use a copy with .safetensors files"
        if pickled
        else "copy or download the model again"
    )


def _refuse_pickles(folder: Path, family: Family, variant: str | None) -> None:
    """Raises ModelError for a part without weights that can be read."""
    for part in ("vae", *family.text_encoders):
        if not _part_files(folder, part, variant):
            raise ModelError(f"{folder} cannot be loaded: no model.safetensors, {_no_weights(folder / part)}")


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _own_tokenizers(folder: Path, family: Family) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(CLIP's tokenizers, for those of a folder that are missing; notes). Raises ModelError where the model reads other
    words than CLIP's."""
    missing = [
        name
        for name in family.text_encoders
        if not any(is_regular(folder / _tokenizer(name) / file) for file in ("vocab.json", "tokenizer.json"))
    ]
    if not missing:
        return {}, ()
    for name in missing:
        if read_json(folder / name / "config.json").get("vocab_size") != CLIP_WORDS:
            raise ModelError(f"{folder} has no {_tokenizer(name)} folder; copy or download the model again")
    shipped = dict(zip(family.text_encoders, load_tokenizers(family), strict=True))
    note = f"its folder has no {' and no '.join(map(_tokenizer, missing))}, so CLIP's own is used"
    return {_tokenizer(name): shipped[name] for name in missing}, (note,)


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


def refuse_odd_weights(label: str, part: str, module: Any, files: Iterable[Path]) -> None:
    """Raises ModelError where the files of a part and what was made of them do not have the same weights.

    The same for weights at a scale, and for numbers that are not finite. diffusers and transformers fill what is
    missing with random numbers, leave out what they do not know, and take any number as it stands.

    label: the model's name. part: "unet", "vae" or a text encoder's name. module: what was made of the files.
    """
    inner = "text_model."
    expected = {name.removeprefix(inner): tuple(weight.shape) for name, weight in module.state_dict().items()}
    found: dict[str, Any] = {}
    odd: list[str] = []
    again = "copy or download the model again"
    for file in files:
        header = read_weights_header(file)
        storage = storage_of(f"{label}: {file.name}", header)
        if storage.scales:
            raise ModelError(
                f"{label}: weights in {part} have scales ({listed(name for name, _ in storage.scales.values())}), "
                "which are read from single files only; use a copy in fp16"
            )
        spell = _spelling(part, header.shapes, module)
        for key, shape in header.shapes.items():
            names = [plain.removeprefix(inner) for plain, _, _ in spell(key, shape)]
            if names[0] in expected:
                found[names[0]] = shape
                storage.check([key])
            elif key not in storage.beside and not _is_of_no_use(part, names[0]):
                odd.append(key)
    if missing := [name for name in expected if name not in found]:
        stored = sum(prod(shape) for shape in found.values())
        needed = sum(prod(shape) for shape in expected.values())
        raise ModelError(
            f"{label}: the files in {part} hold {stored} numbers where {needed} belong: it lacks "
            f"{len(missing)} weights, such as {listed(missing)}; {again}"
        )
    if odd:
        raise ModelError(
            f"{label}: weights in {part} are not understood ({len(odd)}): {listed(odd)}. Without them "
            f"the picture would be another; {again}"
        )
    for name, weight in module.state_dict().items():
        if weight.is_floating_point():
            refuse_infinite(f"{label}: {part}", name, weight)


def _spelling(part: str, shapes: Mapping[str, tuple[int, ...]], module: Any) -> Spell:
    if part == "vae":
        levels = vae_layout.levels_of(shapes, module.config)
        return lambda name, shape: vae_layout.plain_names(name, shape, levels)
    if part == "unet":
        return lambda name, shape: iter([(name, shape, "")])
    return clip_layout.plain_names


def _is_of_no_use(part: str, name: str) -> bool:
    return part.startswith("text_encoder") and clip_layout.LEFT_OUT.fullmatch(name) is not None


def _part_files(folder: Path, part: str, variant: str | None) -> tuple[Path, ...]:
    return weight_files(folder / part, variant) or weight_files(folder / part, None)


def weight_files(folder: Path, variant: str | None) -> tuple[Path, ...]:
    """The weight files of one variant in a component's folder, shards included, in a fixed order. Raises NoAnswer."""
    return tuple(file for file, of in _weight_files(folder) if of == (variant or ""))


def _weight_files(folder: Path) -> list[tuple[Path, str]]:
    """(a weight file, its variant: "" for none), in the order of their names."""
    found = []
    for file in sorted(answered(folder, lambda: list(folder.glob("*.safetensors")))):
        match = _WEIGHT_FILE.fullmatch(file.name)
        if match and not (match[1] and match[2]):
            found.append((file, match[1] or match[2] or ""))
    return found
