"""Layouts read from keys: the published UNets, and those that were made smaller; each is built as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipelines import Request, StudioPipeline, assets
from pipelines.adapters.adapter import model_layers
from pipelines.blora.layouts import model_outline
from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.clip_layout import clip_shapes
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.single_file import examine
from pipelines.checkpoints.unet_layout import (
    Outline,
    config_of,
    original_names,
    outline,
    outline_of,
    unet_shapes,
)
from pipelines.checkpoints.vae_layout import vae_shapes
from pipelines.errors import ModelError
from pipelines.families.family import FAMILIES, SD1, SDXL, Family
from pipelines.home import Home
from pipelines.model import Model

from ...random_models import save_sdxl
from .headers import published, write_header
from .written import same, single_file_tensors

XL = outline_of(read_json(assets.root() / "configs" / "sdxl" / "unet" / "config.json"))
ONE = outline_of(read_json(assets.root() / "configs" / "sd1" / "unet" / "config.json"))
SSD_1B = replace(XL, down=((0, 0), (2, 2), (4, 4)), mid=(), up=((4, 4, 10), (2, 1, 1), (0, 0, 0)))
VEGA = replace(XL, down=((0, 0), (1, 1), (2, 2)), mid=(), up=((2, 2, 2), (1, 1, 1), (0, 0, 0)))
KOALA_700M = replace(XL, down=((0,), (2,), (5,)), mid=None, up=((5, 5), (2, 2), (0, 0)))
KOALA_1B = replace(XL, down=((0,), (2,), (6,)), mid=(6,), up=((6, 6), (2, 2), (0, 0)))
BK_BASE = replace(ONE, down=((1,), (1,), (1,), (0,)), up=((0, 0), (1, 1), (1, 1), (1, 1)))
BK_SMALL = replace(BK_BASE, mid=None)
BK_TINY = replace(
    ONE, channels=(320, 640, 1280), down=((1,), (1,), (1,)), mid=None, up=((1, 1), (1, 1), (1, 1))
)
SMALLER: list[tuple[str, Family, Outline, int]] = [
    ("SSD-1B", SDXL, SSD_1B, 1_331_000_000),
    ("Segmind-Vega", SDXL, VEGA, 745_000_000),
    ("KOALA-700M", SDXL, KOALA_700M, 782_000_000),
    ("KOALA-1B", SDXL, KOALA_1B, 1_161_000_000),
    ("BK-SDM-Base", SD1, BK_BASE, 579_000_000),
    ("BK-SDM-Small", SD1, BK_SMALL, 482_000_000),
    ("BK-SDM-Tiny", SD1, BK_TINY, 323_000_000),
]
"""(name, family, outline, the UNet's parameters as they were published, in millions)."""


def built(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(config)


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in module.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_the_expected_weights_are_those_of_the_published_models(family: Family) -> None:
    folder = assets.root() / "configs" / family.name
    config = read_json(folder / "unet" / "config.json")
    seen = outline_of(config)
    unet = shapes_of(built(config))
    assert unet_shapes(seen) == unet
    assert outline(unet) == seen
    names = original_names(unet)
    assert outline({names[name]: shape for name, shape in unet.items()}) == seen
    assert shapes_of(built(config_of(seen, config))) == unet
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL.from_config(read_json(folder / "vae" / "config.json"))
        assert vae_shapes(vae.config) == shapes_of(vae)
        for part in family.text_encoders:
            said = CLIPTextConfig.from_pretrained(folder / part)
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            encoder = shapes_of(kind(said))
            found = clip_shapes(said.to_dict(), projected=part == "text_encoder_2")
            assert found == {name.removeprefix("text_model."): shape for name, shape in encoder.items()}


@pytest.mark.parametrize(("name", "family", "seen", "size"), SMALLER, ids=[row[0] for row in SMALLER])
def test_a_smaller_unet_is_named_and_built_as_it_is(
    tmp_path: Path, name: str, family: Family, seen: Outline, size: int
) -> None:
    facts = examine(write_header(tmp_path / "small.safetensors", published(family, seen)))
    assert facts.family is family
    assert facts.line == f"{family.label} ({name})"
    unet = built(dict(facts.unet_config))
    assert shapes_of(unet) == unet_shapes(seen)
    assert sum(weight.numel() for weight in unet.parameters()) == pytest.approx(size, rel=0.01)


def test_layers_of_a_smaller_unet_are_those_that_adapters_are_read_for(tmp_path: Path) -> None:
    file = write_header(tmp_path / "small.safetensors", published(SDXL, SSD_1B))
    layers, _ = model_outline(file, Home.resolve(tmp_path))
    found = layers.components["unet"]
    assert "up_blocks.0.attentions.2.transformer_blocks.9.attn1.to_q" in found
    assert "down_blocks.2.attentions.0.transformer_blocks.4.attn1.to_q" not in found
    assert (
        found.keys()
        == model_layers(SDXL, "", {"unet": built(dict(examine(file).unet_config))}).components["unet"].keys()
    )


@pytest.mark.parametrize(
    ("changes", "mid", "transformers"),
    [
        (
            {"reverse_transformer_layers_per_block": [[2, 1, 3], [1, 2, 1], 1]},
            "UNetMidBlock2D",
            [1, [1, 2], [2, 1]],
        ),
        ({"layers_per_block": 1}, None, [1, 1, 2]),
        ({"layers_per_block": 1}, "UNetMidBlock2DCrossAttn", [1, 2, 3]),
    ],
    ids=["like SSD-1B", "like KOALA-700M", "like KOALA-1B"],
)
def test_a_smaller_unet_draws_what_its_folder_draws(
    tmp_path: Path,
    sdxl_folder: Path,
    tiny_configs: Path,
    stock: Callable[[Path], Any],
    make_lora: Callable[..., Path],
    changes: dict[str, Any],
    mid: str | None,
    transformers: list[Any],
) -> None:
    folder = save_sdxl(tmp_path / "whole", (16, 32, 32), 2, (1, 1, 2))
    config = {**read_json(folder / "unet" / "config.json"), **changes}
    config |= {"mid_block_type": mid, "transformer_layers_per_block": transformers}
    torch.manual_seed(5)
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    file = tmp_path / "small.safetensors"
    save_file(single_file_tensors(stock(folder)), file)
    lora = make_lora(folder, "fox", seed=1, rank=2)
    drawn = []
    for source in (folder, file):
        pipe = StudioPipeline(Model(load_checkpoint(source)), home=Home.resolve(tmp_path))
        pipe.load_lora_weights(lora, adapter_name="fox")
        requests = [
            Request("a fox", seed=3, steps=2, width=32, height=32, adapters=use, scheduler="Euler")
            for use in ({}, {"fox": 0.8})
        ]
        requests.append(Request("a fox", seed=3, steps=3, width=32, height=32, reuse=2, scheduler="Euler"))
        drawn.append(pipe(requests, output_type="latent").images)
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)
    assert same(load_checkpoint(file).unet, load_checkpoint(folder).unet)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (
            replace(XL, channels=(384, 640, 1280)),
            "its levels have 384, 640, 1280 channels, the published ones 320",
        ),
        (replace(XL, up=((10, 10), (2, 2), (0, 0))), "its up blocks do not have one layer more"),
        (replace(XL, mid=(3,)), "its middle block is deeper or flatter"),
    ],
)
def test_a_unet_that_cannot_be_built_is_refused(tmp_path: Path, seen: Outline, message: str) -> None:
    shapes = published(SDXL)
    if seen.up != XL.up:  # no such UNet can be written down; its weights are left out
        kept = {f"model.diffusion_model.output_blocks.{number}." for number in (2, 5, 8)}
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith(tuple(kept))}
        message = "its up blocks do not have one layer more"
    else:
        unet = unet_shapes(seen)
        shapes = {key: shape for key, shape in shapes.items() if "diffusion_model." not in key}
        shapes |= {f"model.diffusion_model.{name}": unet[own] for own, name in original_names(unet).items()}
    with pytest.raises(ModelError, match=message):
        examine(write_header(tmp_path / "odd.safetensors", shapes))
