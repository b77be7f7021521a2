"""The older block names, derived from a model's own layers, against the names that the original UNet code
gives and diffusers' own checkpoint converter."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from pipelines.families.unet_names import sgm_names


def original_parameters(config) -> list[str]:
    """The weights of the original UNetModel for a configuration, block by block as its constructor runs."""
    depths = config["transformer_layers_per_block"]
    levels = len(config["block_out_channels"])
    depths = [depths] * levels if isinstance(depths, int) else list(depths)
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]
    names = [f"time_embed.{i}" for i in (0, 2)] + ["input_blocks.0.0", "out.0", "out.2"]
    if config["addition_embed_type"]:
        names += ["label_emb.0.0", "label_emb.0.2"]

    def resnet(block, skip):
        parts = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
        return [f"{block}.{part}" for part in (*parts, *(["skip_connection"] if skip else []))]

    def attention(block, depth):
        own = [f"{block}.{part}" for part in ("norm", "proj_in", "proj_out")]
        for index in range(depth):
            inner = f"{block}.transformer_blocks.{index}"
            own += [
                f"{inner}.{attn}.{part}"
                for attn in ("attn1", "attn2")
                for part in ("to_q", "to_k", "to_v", "to_out.0")
            ]
            own += [f"{inner}.ff.net.0.proj", f"{inner}.ff.net.2", *(f"{inner}.norm{i}" for i in (1, 2, 3))]
        return own

    number, widths = 1, [config["block_out_channels"][0]]
    for level, width in enumerate(config["block_out_channels"]):
        for _ in range(config["layers_per_block"]):
            names += resnet(f"input_blocks.{number}.0", widths[-1] != width)
            names += attention(f"input_blocks.{number}.1", depths[level]) if attends[level] else []
            widths.append(width)
            number += 1
        if level != levels - 1:
            names.append(f"input_blocks.{number}.0.op")
            widths.append(width)
            number += 1
    names += (
        resnet("middle_block.0", False)
        + attention("middle_block.1", depths[-1])
        + resnet("middle_block.2", False)
    )
    number = 0
    for level in reversed(range(levels)):
        for index in range(config["layers_per_block"] + 1):
            names += resnet(f"output_blocks.{number}.0", True)
            names += attention(f"output_blocks.{number}.1", depths[level]) if attends[level] else []
            if level and index == config["layers_per_block"]:
                names.append(f"output_blocks.{number}.{2 if attends[level] else 1}.conv")
            number += 1
    return names


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_names_equal_those_of_the_original_code(family, request):
    unet: UNet2DConditionModel = request.getfixturevalue(family).unet
    originals = original_parameters(unet.config)
    prefix = "model.diffusion_model."
    tagged = {f"{prefix}{name}.weight": torch.tensor(float(tag)) for tag, name in enumerate(originals)}
    biases = {f"{prefix}{name}.bias": torch.zeros(()) for name in originals}
    config = {**unet.config, "class_embed_type": None}
    if config["addition_embed_type"]:
        config["num_class_embeds"] = "sequential"
    converted = convert_ldm_unet_checkpoint(tagged | biases, config)
    expected = {
        name.removesuffix(".weight"): originals[int(tag)]
        for name, tag in converted.items()
        if name.endswith(".weight") and "norm" not in name
    }

    derived = sgm_names(request.getfixturevalue(family).modules("unet"))

    assert derived == expected
    assert set(derived) == set(request.getfixturevalue(family).modules("unet"))


def test_a_published_sdxl_name_lands_where_everybody_knows_it(sdxl):
    names = sgm_names(sdxl.modules("unet"))
    assert names["down_blocks.1.attentions.0.proj_in"] == "input_blocks.4.1.proj_in"
    assert names["up_blocks.0.attentions.1.proj_in"] == "output_blocks.1.1.proj_in"
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.2.conv"
    assert names["add_embedding.linear_2"] == "label_emb.0.2"
