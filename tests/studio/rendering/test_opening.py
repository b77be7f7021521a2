"""A model is opened as asked, else as configured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.engine.residency.limits import Limits
from pipelines.errors import SetupError
from pipelines.home import Home
from studio.rendering.opening import Opening, open_pipeline, pick_device, pick_dtype


def test_devices_and_precisions() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_dtype(None, torch.device("cpu")) is torch.float32
    assert pick_dtype(None, torch.device("cuda")) is torch.float16
    assert pick_dtype("BF16", torch.device("cpu")) is torch.bfloat16
    for name in ("gpu", "cuda:99"):
        with pytest.raises(SetupError, match=name):
            pick_device(name)


def test_low_memory_tiles_the_decoding(sdxl_folder: Path, home: Path) -> None:
    pipe = open_pipeline(Opening(str(sdxl_folder), low_memory=True, row_limit=4), Home.resolve())
    assert pipe.model.vae.use_tiling
    assert pipe.row_limit == 4


def test_memory_for_adapters_is_as_asked_else_as_configured(
    sdxl_folder: Path, home: Path, run: Callable[..., Any]
) -> None:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text("lora_ram = 3\nlora_vram = 0.5\n")
    asked = Opening(str(sdxl_folder), lora_vram=0.25)
    store = open_pipeline(asked, Home.resolve(home)).store
    assert store.limits == Limits(host=3 * 2**30, device=2**28)
    assert store.stats.host.limit == 3 * 2**30
    assert "must be a number of GiB" in run("render", "--lora-vram", "-1").err
