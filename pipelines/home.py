"""The user's folders (models, LoRAs, VAEs, pictures) and `config.toml`; names become files here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from pipelines import assets
from pipelines.errors import ModelError


@dataclass(frozen=True)
class Home:
    """Where the user's things lie. Nothing is created by making one."""

    path: Path

    @classmethod
    def resolve(cls, flag: str | Path | None = None) -> Home:
        """flag > LORA_STUDIO_HOME > the platform's folder for user data."""
        chosen = flag or os.environ.get("LORA_STUDIO_HOME") or platformdirs.user_data_dir("lora-studio")
        return cls(Path(chosen).expanduser())

    def locate_model(self, source: str | Path) -> Path | None:
        """The folder or file of a model by name or path; None where it can only be a hub id."""
        for model in assets.embedded_models():
            if model.name == str(source).lower():
                return model.path
        if Path(source).expanduser().exists():
            return Path(source).expanduser()
        if isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "~", "/")):
            return None
        raise ModelError(f"no model {str(source)!r}")

    def find_vae(self, name: str | Path) -> Path:
        """A VAE by path."""
        return Path(name).expanduser()
