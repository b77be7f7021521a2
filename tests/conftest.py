"""Fixtures for all tests. What is heavy is imported in them: pytest-xdist's first process reads this file too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _each_tokenizer_is_read_once() -> Iterator[None]:
    """CLIP's vocabulary takes most of the time that a random model takes to open, and nobody changes a tokenizer."""
    from transformers import CLIPTokenizer

    read: Callable[..., CLIPTokenizer] = CLIPTokenizer.from_pretrained
    found: dict[object, CLIPTokenizer] = {}

    def once(folder: str | Path, **settings: Any) -> CLIPTokenizer:
        files = sorted(Path(folder).glob("*"))
        key = (repr(settings), *((file.name, sha256(file.read_bytes()).digest()) for file in files))
        if not files or key not in found:
            found[key] = read(folder, **settings)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLIPTokenizer, "from_pretrained", once)
        yield


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD1.x's layout: four UNet levels, one text encoder, convolutions around the transformers."""
    from .random_models import save_sd

    return save_sd(tmp_path_factory.mktemp("models") / "random-sd")


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL's layout, with its three UNet levels."""
    from .random_models import save_sdxl

    return save_sdxl(tmp_path_factory.mktemp("models") / "random-sdxl", (16, 32, 32), 2, (1, 1, 2))


@pytest.fixture(scope="session")
def shallow_sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels of one layer, for tests that compile every block."""
    from .random_models import save_sdxl

    return save_sdxl(tmp_path_factory.mktemp("models") / "shallow-sdxl", (16, 32), 1, (1, 1))


@pytest.fixture(params=["sd", "sdxl"])
def model_folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two families in turn."""
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return folder


@pytest.fixture(scope="session")
def stock() -> Callable[[Path], StableDiffusionPipeline | StableDiffusionXLPipeline]:
    """stock(folder) -> the folder as stock diffusers loads it, quiet."""
    from .random_models import stock_pipeline

    return stock_pipeline


AdapterMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_lora(tmp_path_factory: pytest.TempPathFactory) -> AdapterMaker:
    """make_lora(folder, "fox", seed=1, rank=4, where="attn", text=True) -> a PEFT-named file for that model."""
    from .random_models import save_lora

    home = tmp_path_factory.mktemp("loras")

    @cache
    def make(
        folder: Path, name: str, *, seed: int = 0, rank: int = 4, where: str = "attn", text: bool = True
    ) -> Path:
        file = home / f"{folder.name}-{seed}-{rank}-{where}-{text}" / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_lora(folder, file, seed=seed, rank=rank, where=where, text=text)
        return file

    return make


@pytest.fixture(scope="session")
def make_flora() -> AdapterMaker:
    """make_flora(folder, file, rank=2, where="attn", text=True) -> a FLoRA for that model, around the identity."""
    from .random_models import save_flora

    def make(folder: Path, file: Path, *, rank: int, where: str, text: bool) -> Path:
        save_flora(folder, file, rank=rank, where=where, text=text)
        return file

    return make
