"""The names of a UNet's layers: diffusers' names, the original code's (SGM), and those of old attention processors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = re.compile(r"(.+\.attn\d+)\.(to_q|to_k|to_v|to_out\.0)")


def unet_spellings(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """All spellings of all layers, as pairs of (spelling, the layer's diffusers name)."""
    modules = list(modules)
    sgm = sgm_names(modules)
    for module in modules:
        for spelling in (module, sgm.get(module)):
            if spelling is None:
                continue
            yield spelling, module
            # Old attention processors held their own LoRA layers: attn1.processor.to_q_lora, …to_out_lora.
            if attention := _ATTENTION.fullmatch(spelling):
                projection = attention[2].removesuffix(".0")
                yield f"{attention[1]}.processor.{projection}", module
                if projection == "to_out":
                    yield f"{attention[1]}.to_out", module


def sgm_names(modules: Iterable[str]) -> dict[str, str]:
    """diffusers name -> SGM name, for the layers of a UNet that have one.

    The original code numbers its blocks without regard to levels. `input_blocks.0` is conv_in. Then each resnet of each
    level takes one number (its attention, if any, is the block's second member), and so does each downsampler.
    `output_blocks` are numbered likewise; an upsampler is the last member of its level's last block. The numbers of
    resnets, attentions and samplers are read off the model's own layers, which is exact for every layout, small ones
    included.
    """
    modules = list(modules)
    blocks = {**_numbered(modules, "down_blocks"), **_numbered(modules, "up_blocks"), **_middle(modules)}
    names = {module: _SINGLE[module] for module in modules if module in _SINGLE}
    for module in modules:
        part = re.match(
            r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.\d+",
            module,
        )
        if part is None or part[0] not in blocks:
            continue
        rest = module.removeprefix(f"{part[0]}.")
        if part[2] == "resnets":
            rest = _RESNET.get(rest, rest)
        elif part[2] == "downsamplers":
            rest = "op"
        names[module] = f"{blocks[part[0]]}.{rest}"
    return names


def _numbered(modules: list[str], side: str) -> dict[str, str]:
    """Member of a down or up block ("up_blocks.0.resnets.1") -> its SGM name ("output_blocks.1.0")."""
    members = _members(modules, side)
    levels = sorted({level for level, _, _ in members})
    number, prefix = (1, "input_blocks") if side == "down_blocks" else (0, "output_blocks")
    places = {}
    for level in levels:
        resnets = sorted(index for at, what, index in members if (at, what) == (level, "resnets"))
        for index in resnets:
            places[f"{side}.{level}.resnets.{index}"] = f"{prefix}.{number}.0"
            attends = (level, "attentions", index) in members
            if attends:
                places[f"{side}.{level}.attentions.{index}"] = f"{prefix}.{number}.1"
            if index == resnets[-1] and (level, "upsamplers", 0) in members:
                places[f"{side}.{level}.upsamplers.0"] = f"{prefix}.{number}.{2 if attends else 1}"
            number += 1
        if (level, "downsamplers", 0) in members:
            places[f"{side}.{level}.downsamplers.0"] = f"{prefix}.{number}.0"
            number += 1
    return places


def _members(modules: list[str], side: str) -> set[tuple[int, str, int]]:
    """(level, "resnets" | "attentions" | …, index) of every member of the down blocks, or of the up blocks."""
    found = (re.match(rf"{side}\.(\d+)\.(\w+)\.(\d+)\.", module) for module in modules)
    return {(int(match[1]), match[2], int(match[3])) for match in found if match}


def _middle(modules: list[str]) -> dict[str, str]:
    """Member of the middle block -> its SGM name, numbered in the order they run: resnet, attention, resnet."""
    found = (re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.", module) for module in modules)
    members = {(int(match[2]), match[1] == "attentions", match[0]) for match in found if match}
    # Each attention follows the resnet of its own number.
    return {
        name.removesuffix("."): f"middle_block.{place}" for place, (_, _, name) in enumerate(sorted(members))
    }
