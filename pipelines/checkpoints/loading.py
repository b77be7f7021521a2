"""From a model's source to its parts, ready to run: `load_checkpoint`.

A source is the name of an embedded model or of one in a models folder, a local diffusers folder, a .safetensors file,
or a model id on the hub. Local sources never use the network. diffusers does the loading. What is decided here is which
class, which files and which precision to take, and what to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipelines.checkpoints.card import CARD_FILE, ModelCard, read_card, resolve_defaults
from pipelines.checkpoints.components import Components
from pipelines.checkpoints.folders import folder_files, load_folder
from pipelines.checkpoints.hashes import short_hash
from pipelines.checkpoints.hub import DownloadProgress, fetch
from pipelines.checkpoints.single_file import CheckpointFacts, examine, load_single_file
from pipelines.checkpoints.vae import load_vae, refuse_misfit
from pipelines.checkpoints.weights import memory_needed, refuse_if_too_large
from pipelines.errors import ModelError
from pipelines.families.family import SD2, Defaults, Family
from pipelines.home import Home
from pipelines.home.files import is_folder
from pipelines.schedulers import Scheduler, name_of

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, on the CPU, in evaluation mode.

    text_encoders, tokenizers: by the text encoder's component name ("text_encoder", "text_encoder_2").
    scheduler: the model's own; trajectories use fresh ones made from it (`pipelines.schedulers`).
    label: the name to show. source: what was asked for.
    card: the one in its folder, if any. defaults: what a request without further settings gets.
    prediction_type: "epsilon", "v_prediction" or "sample".
    zero_snr: the noise schedule is rescaled so that the last training step is pure noise.
    force_zeros_for_empty_prompt: a missing negative prompt is zeros, not the encoded empty text.
    dtype: of the UNet and the text encoders; the VAE's may differ.
    files: the weight files. hashes: the folder where hashes of large files are remembered.
    notes: what a user should know of how it was read; they are in the record of each of its pictures.
    """

    unet: Any
    vae: Any
    text_encoders: Mapping[str, Any]
    tokenizers: Mapping[str, Any]
    scheduler: Scheduler
    family: Family
    label: str
    source: str
    card: ModelCard | None
    defaults: Defaults
    prediction_type: str
    zero_snr: bool
    force_zeros_for_empty_prompt: bool
    dtype: torch.dtype
    files: tuple[Path, ...] = field(repr=False)
    hashes: Path | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """Ten hexadecimal digits that tell this model's weights from others'. The first access reads the files."""
        return short_hash(self.files, self.hashes)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell along each side."""
        return scale_factor(self.vae)


def load_checkpoint(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    vae: str | Path | None = None,
    home: Home | None = None,
    allow_downloads: bool = True,
    notify: Notify | None = None,
    progress: DownloadProgress | None = None,
) -> Checkpoint:
    """Load a model onto the CPU.

    dtype: of the UNet and the text encoders. The VAE has it too, or float32 if it overflows in float16 (`vae_dtype`).
    vae: another VAE to use: a name in a vae folder, a .safetensors file or a diffusers folder.
    home: where names are looked up; None is the user's own (see `pipelines.home.home`).
    allow_downloads: whether a hub id that is not in the local cache may be fetched.
    notify: is called with a sentence on the memory that a full-size model needs, before it is loaded, and with its
        notes.
    progress: is told how a download goes. What it raises ends it.
    Raises ModelError for what cannot be found, read or run, and NoAnswer.
    """
    home = home or Home.resolve()
    found = home.find_model(source)
    vae_path = None if vae is None else home.find_vae(vae).path
    label = str(source) if found is None else found.name
    path = fetch(str(source), dtype, allow_downloads, progress) if found is None else found.path
    folder = is_folder(path)
    files = folder_files(path, dtype) if folder else (path,)
    facts = None if folder else examine(path)
    refuse_if_too_large(label, memory_needed(files, dtype), notify)
    if facts is None:
        parts, card = _folder_parts(path, dtype, vae_path), read_card(path)
        defaults = _folder_defaults(label, parts, card)
    else:
        other = None if vae_path is None else load_vae(vae_path, facts.family, dtype)
        parts, card = load_single_file(path, dtype, other, facts), None
        defaults = _file_defaults(facts)
    if notify is not None:
        for note in parts.notes:
            notify(f"{label}: {note}")
    checkpoint = _checkpoint(parts, label, str(source), card, defaults, dtype)
    return replace(checkpoint, hashes=home.hashes)


def _folder_parts(folder: Path, dtype: torch.dtype, vae: Path | None) -> Components:
    parts = load_folder(folder, dtype)
    if vae is None:
        return parts
    other = load_vae(vae, parts.family, dtype, folder)
    refuse_misfit(vae.name, other, parts.vae)
    return replace(parts, vae=other)


def _folder_defaults(label: str, parts: Components, card: ModelCard | None) -> Defaults:
    """The card's defaults, else the folder's own scheduler and the size that its UNet was made for."""
    if card is not None and card.family not in (None, parts.family.name):
        raise ModelError(
            f"{label}: its card says {card.family}, but it is {parts.family.label}; mend {CARD_FILE}"
        )
    cells = parts.unet.config.sample_size
    size = None
    if cells is not None:
        height, width = (cells, cells) if isinstance(cells, int) else cells
        size = (int(width) * scale_factor(parts.vae), int(height) * scale_factor(parts.vae))
    return resolve_defaults(parts.family, card, scheduler=name_of(parts.scheduler), size=size)


def _file_defaults(facts: CheckpointFacts) -> Defaults:
    """The family's defaults, with two exceptions.

    SD2.x models that predict noise are those of 512 pixels. Zero-SNR models get Euler, because Karras spacing would
    spend most steps on the infinite noise from which their schedule starts.
    """
    size = (512, 512) if facts.family is SD2 and facts.prediction_type == "epsilon" else None
    return resolve_defaults(facts.family, None, scheduler="Euler" if facts.zero_snr else None, size=size)


def scale_factor(vae: Any) -> int:
    """Pixels per latent cell along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _checkpoint(
    parts: Components,
    label: str,
    source: str,
    card: ModelCard | None,
    defaults: Defaults,
    dtype: torch.dtype,
) -> Checkpoint:
    config = parts.scheduler.config
    for module in (parts.unet, parts.vae, *parts.text_encoders.values()):
        module.eval().requires_grad_(False)
    return Checkpoint(
        unet=parts.unet,
        vae=parts.vae,
        text_encoders=parts.text_encoders,
        tokenizers=parts.tokenizers,
        scheduler=parts.scheduler,
        family=parts.family,
        label=label,
        source=source,
        card=card,
        defaults=defaults,
        prediction_type=str(config.get("prediction_type", "epsilon")),
        zero_snr=bool(config.get("rescale_betas_zero_snr", False)),
        force_zeros_for_empty_prompt=parts.force_zeros_for_empty_prompt,
        dtype=dtype,
        files=parts.files,
        notes=parts.notes,
    )
