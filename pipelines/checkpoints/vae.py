"""Another VAE for a model: from a .safetensors file or a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipelines import assets
from pipelines.checkpoints.components import (
    first_line,
    quietly,
    read_json,
    refuse_incomplete,
    refuse_other_than_files,
    vae_dtype,
)
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError, StudioError
from pipelines.families.family import Family
from pipelines.home.files import is_folder, is_regular

DECODER_INPUTS = (
    "decoder.conv_in.weight",
    "first_stage_model.decoder.conv_in.weight",
    "vae.decoder.conv_in.weight",
)
"""The weights whose shape tells the number of latent channels, one for each layout of files."""


def load_vae(path: Path, family: Family, dtype: torch.dtype, model_folder: Path | None = None) -> Any:
    """Load the VAE from a .safetensors file or a diffusers folder. dtype: of the model (see `vae_dtype`).

    model_folder: the diffusers folder of the model that it is for, None for a single file. A VAE in a .safetensors file
        is read with that model's VAE configuration, so that its latents have the scale that the UNet expects.
    Raises ModelError for what is no VAE for this family, and NoAnswer.
    """
    import diffusers

    autoencoder: Any = diffusers.AutoencoderKL
    try:
        with quietly():
            if is_folder(path):
                folder = path / "vae" if is_regular(path / "vae" / "config.json") else path
                refuse_other_than_files(folder)
                settings = {"dtype": vae_dtype(dtype, read_json(folder / "config.json"))}
                vae = autoencoder.from_pretrained(
                    str(folder), use_safetensors=True, local_files_only=True, **settings
                )
            else:
                _refuse_other_files(path)
                config = model_folder or assets.root() / "configs" / family.name
                vae = autoencoder.from_single_file(
                    str(path),
                    config=str(config),
                    subfolder="vae",
                    dtype=vae_dtype(dtype, read_json(config / "vae" / "config.json")),
                    local_files_only=True,
                )
    except StudioError:
        raise
    except Exception as error:  # diffusers raises anything
        raise ModelError(
            f"the VAE {path.name} cannot be loaded for {family.label} ({first_line(error)}); use one that was made "
            "for this kind of model"
        ) from error
    refuse_incomplete(path.name, vae)
    return vae.eval()


def refuse_misfit(label: str, vae: Any, own: Any) -> None:
    """Raises ModelError for a VAE whose latents have another shape than those of the model's own VAE.

    label: the VAE's name. own: the model's own VAE.
    """
    for what, of in (("latent channels", _channels), ("pixels per latent cell", _cell)):
        if of(vae) != of(own):
            raise ModelError(
                f"the VAE {label} has {of(vae)} {what}, the model's own {of(own)}; use a VAE made for this model"
            )


def _refuse_other_files(file: Path) -> None:
    if file.suffix.lower() != ".safetensors":
        raise ModelError(f"the VAE {file.name} is no .safetensors file; pickles (.pt, .ckpt) are not opened")
    shapes = read_weights_header(file).shapes
    first = next((shapes[key] for key in DECODER_INPUTS if key in shapes), None)
    if first is None:
        raise ModelError(f"{file.name} holds no VAE; choose a file with a VAE's encoder and decoder")
    channels = next(iter(first[1:]), 0)
    if channels != 4:
        raise ModelError(f"the VAE {file.name} has {channels} latent channels; SD1.x, SD2.x and SDXL use 4")


def _channels(vae: Any) -> int:
    return int(vae.config.latent_channels)


def _cell(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))
