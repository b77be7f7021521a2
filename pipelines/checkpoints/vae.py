"""Another VAE for a model: from a .safetensors file or a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines import assets
from pipelines.checkpoints.components import (
    first_line,
    quietly,
    read_json,
    refuse_other_than_files,
    vae_dtype,
)
from pipelines.checkpoints.contents import Part, vae_of
from pipelines.checkpoints.folders import refuse_odd_weights, variant_of, weight_files
from pipelines.checkpoints.keys import VAE
from pipelines.checkpoints.single_file import build
from pipelines.checkpoints.stored import Storage, opened
from pipelines.checkpoints.weights import read_weights_header
from pipelines.errors import ModelError, StudioError
from pipelines.families.family import Family
from pipelines.home.files import is_folder, is_regular


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
                variant = variant_of(folder, dtype)
                vae = autoencoder.from_pretrained(
                    str(folder), use_safetensors=True, local_files_only=True, variant=variant, **settings
                )
                refuse_odd_weights(path.name, VAE, vae, weight_files(folder, variant))
            else:
                config = read_json(
                    (model_folder or assets.root() / "configs" / family.name) / "vae" / "config.json"
                )
                part, storage = _part(path, config)
                with opened(path, storage) as read:
                    vae = build(VAE, part, read, vae_dtype(dtype, config))
    except StudioError:
        raise
    except Exception as error:  # diffusers raises anything
        raise ModelError(
            f"the VAE {path.name} cannot be loaded for {family.label} ({first_line(error)}); use one that was made "
            "for this kind of model"
        ) from error
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


def _part(file: Path, config: Mapping[str, Any]) -> tuple[Part, Storage]:
    """Where the VAE's weights are in a file. config: of the model's own VAE."""
    if file.suffix.lower() != ".safetensors":
        raise ModelError(f"the VAE {file.name} is no .safetensors file; pickles (.pt, .ckpt) are not opened")
    header = read_weights_header(file)
    inputs = [shape for key, shape in header.shapes.items() if key.endswith("decoder.conv_in.weight")]
    channels = next(iter(inputs[0][1:]), 0) if inputs else 4
    if channels != 4:
        raise ModelError(f"the VAE {file.name} has {channels} latent channels; SD1.x, SD2.x and SDXL use 4")
    return vae_of(file.name, header, config)


def _channels(vae: Any) -> int:
    return int(vae.config.latent_channels)


def _cell(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))
