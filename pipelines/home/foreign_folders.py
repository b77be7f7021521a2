"""Other programs' model folders: from ComfyUI's `extra_model_paths.yaml`, or a ComfyUI, webui or Fooocus folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import SetupError
from pipelines.home.answers import answered
from pipelines.home.files import exists, is_folder, is_regular, read_text
from pipelines.home.paths import expanded
from pipelines.home.plain import LONGEST_YAML, read_yaml, reading
from pipelines.home.settings import Roots

COMFYUI_KEYS: Mapping[str, tuple[str, ...]] = {
    "models": ("checkpoints", "diffusers"),
    "loras": ("loras",),
    "vae": ("vae",),
    "embeddings": ("embeddings",),
}
"""Our kind of folder -> ComfyUI's keys for such folders."""

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "models": ("models/checkpoints", "models/Stable-diffusion", "models/diffusers"),
    "loras": ("models/loras", "models/Lora", "models/LyCORIS"),
    "vae": ("models/vae", "models/VAE"),
    "embeddings": ("models/embeddings", "embeddings"),
}
"""Our kind of folder -> where other programs keep such files, relative to their own folder."""


def import_paths(path: str | Path) -> Roots:
    """The model folders of another program, those that exist.

    path: an `extra_model_paths.yaml`, or the folder of a ComfyUI, webui (Forge, A1111) or Fooocus installation.
    Raises SetupError where no folders are found, or (as NoAnswer) where a folder does not answer.
    """
    path = expanded(path)
    if is_folder(path):
        extra = path / "extra_model_paths.yaml"
        roots = _from_layout(path) + (_from_yaml(extra) if is_regular(extra) else Roots())
    elif exists(path):
        roots = _from_yaml(path)
    else:
        raise SetupError(f"{path} does not exist; give ComfyUI's extra_model_paths.yaml or a webui's folder")
    if not roots:
        raise SetupError(
            f"no model folders were found from {path}; give ComfyUI's extra_model_paths.yaml or a webui's "
            "own folder (the one that holds the folder 'models')"
        )
    return roots


def _from_layout(folder: Path) -> Roots:
    if folder.name == "models":
        folder = folder.parent
    return Roots(**{kind: _existing([folder / name for name in names]) for kind, names in LAYOUTS.items()})


def _from_yaml(file: Path) -> Roots:
    """The folders in ComfyUI's format: sections of `key: folder`, with one folder a line, relative to the section's
    `base_path`. Raises SetupError."""
    remedy = "mend it or give another file"
    with reading(str(file), SetupError, remedy):
        text = read_text(file, LONGEST_YAML)
    sections = read_yaml(text, str(file), error=SetupError, remedy=remedy) or {}
    if not isinstance(sections, dict):
        raise SetupError(f"{file} holds no sections; give ComfyUI's extra_model_paths.yaml")
    roots = Roots()
    for section in sections.values():
        if isinstance(section, dict):
            roots += Roots(**{kind: _section(file, section, keys) for kind, keys in COMFYUI_KEYS.items()})
    return roots


def _section(file: Path, section: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Path, ...]:
    base = file.parent / _expanded(_said(section, "base_path"))
    lines = [line.strip() for key in keys for line in _said(section, key).splitlines()]
    return _existing([base / _expanded(line) for line in lines if line])


def _said(section: Mapping[str, Any], key: str) -> str:
    """The text under a key, "" for other values. (Values made of YAML aliases may be endless once written out.)"""
    value = section.get(key)
    return value if isinstance(value, str) else ""


def _expanded(text: str) -> Path:
    return expanded(os.path.expandvars(text))


def _existing(folders: list[Path]) -> tuple[Path, ...]:
    """Those that exist, each once, by their real paths."""
    return tuple(dict.fromkeys(_real(folder) for folder in folders if is_folder(folder)))


def _real(folder: Path) -> Path:
    return answered(folder, lambda: Path(os.path.realpath(folder)))
