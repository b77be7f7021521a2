"""The data that ships with the program: embedded models, their LoRAs, and configurations for single files.

Only this module knows where the data is: in a wheel inside the package (`pipelines/_assets`), in a checkout in the top
folder `assets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import SetupError

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that ships with the program: a diffusers folder named after the model."""

    name: str
    path: Path


@dataclass(frozen=True)
class EmbeddedLora:
    """An adapter that ships with the program. model: the name of the embedded model that it is made for."""

    name: str
    path: Path
    model: str


def root() -> Path:
    """The folder with the shipped data. Raises SetupError where the installation has none."""
    for folder in (PACKAGE / "_assets", PACKAGE.parent / "assets"):
        if folder.is_dir():
            return folder
    raise SetupError(
        f"the data that ships with LoRA Studio is missing (looked for {PACKAGE / '_assets'} and "
        f"{PACKAGE.parent / 'assets'}); install the program again with "
        "`pip install --force-reinstall lora-studio`, or from a complete checkout with `pip install -e .`"
    )


def embedded_models() -> tuple[EmbeddedModel, ...]:
    """The models that ship with the program, sorted by name. No file is read. Raises SetupError as `root` does."""
    return tuple(
        EmbeddedModel(index.parent.name, index.parent)
        for index in sorted((root() / "models").glob("*/model_index.json"))
    )


def embedded_loras() -> tuple[EmbeddedLora, ...]:
    """The adapters that ship with the program, sorted by model and name. No file is read. Raises SetupError as `root`
    does."""
    return tuple(
        EmbeddedLora(file.stem, file, file.parent.name)
        for file in sorted((root() / "loras").glob("*/*.safetensors"))
    )
