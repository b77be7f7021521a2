"""Fixtures for checkpoints: shipped configurations that are those of tiny models."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from pipelines import assets


@pytest.fixture(scope="module")
def sdxl(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL with a second text encoder wider than the first: by its width diffusers' loading tells it."""
    folder = tmp_path_factory.mktemp("wide") / "wide-sdxl"
    shutil.copytree(sdxl_folder, folder)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder_2")
    config.update({"hidden_size": 48, "num_attention_heads": 3})
    torch.manual_seed(13)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder_2")
    return folder


@pytest.fixture
def sd(sd_folder: Path) -> Path:
    return sd_folder


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sd: Path, sdxl: Path) -> Path:
    """Shipped data whose configurations are the tiny models', so that tiny files are what it expects."""
    return ship(tmp_path, monkeypatch, sd, sdxl)


@pytest.fixture
def tiny_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sd_folder: Path, sdxl_folder: Path) -> Path:
    """The same for the tiny models of all tests, which can draw."""
    return ship(tmp_path, monkeypatch, sd_folder, sdxl_folder)


def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sd: Path, sdxl: Path) -> Path:
    data = tmp_path / "data"
    for family, folder in (("sd1", sd), ("sd2", sd), ("sdxl", sdxl)):
        shutil.copytree(folder, data / "configs" / family, ignore=shutil.ignore_patterns("*.safetensors"))
        for part in ("tokenizer", "tokenizer_2"):
            shutil.rmtree(data / "configs" / family / part, ignore_errors=True)
    shutil.copytree(assets.root() / "configs" / "tokenizer", data / "configs" / "tokenizer")
    monkeypatch.setattr(assets, "root", lambda: data)
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))

    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return data
