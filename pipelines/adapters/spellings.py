"""From the names files use to the names of one model's layers.

Kohya's flattened names cannot be taken apart by rule ("_" stands for "." and for itself), so every name a
file might use is listed beforehand from the model's own layers, and looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipelines.adapters.adapter import ModelLayers
from pipelines.adapters.keys import UNET, Address

_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_ATTENTION = re.compile(r"(.+\.attn\d+)\.(to_q|to_k|to_v|to_out\.0)")
_SELF_ATTENTION = re.compile(r"(.+\.self_attn)\.(q|k|v|out)_proj")


@dataclass(frozen=True)
class LayerNames:
    """Every spelling of every layer: component -> spelling -> the model's own name."""

    dotted: Mapping[str, Mapping[str, str]]
    flat: Mapping[str, Mapping[str, str]]

    def find(self, address: Address) -> tuple[tuple[str, str], ...]:
        """The (component, module) pairs an address may mean; empty where the model has no such layer."""
        table = self.flat if address.flat else self.dotted
        found = ((component, table.get(component, {}).get(address.path)) for component in address.components)
        return tuple((component, module) for component, module in found if module is not None)


def layer_names(model: ModelLayers) -> LayerNames:
    """All spellings of a model's layers."""
    dotted, flat = {}, {}
    for component, targets in model.components.items():
        spellings = _unet_spellings(targets) if component == UNET else _text_spellings(targets)
        dotted[component] = dict(spellings)
        flat[component] = {
            spelling.replace(".", "_"): module for spelling, module in dotted[component].items()
        }
        assert len(flat[component]) == len(dotted[component]), "two layers share one flattened name"
    return LayerNames(dotted, flat)


def _unet_spellings(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
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


def _text_spellings(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Text encoder layers with and without `text_model.`: transformers has used both, files carry either."""
    for module in modules:
        bare = module.removeprefix("text_model.")
        for spelling in (bare, f"text_model.{bare}"):
            yield spelling, module
            if attention := _SELF_ATTENTION.fullmatch(spelling):
                yield f"{attention[1]}.to_{attention[2]}", module


def sgm_names(modules: Iterable[str]) -> dict[str, str]:
    """diffusers name -> SGM name for every layer of a UNet.

    The original code numbers blocks through: `input_blocks.0` is conv_in, then each level gives one number
    per resnet (with its attention, if any, as second member) and one to its downsampler; `output_blocks`
    likewise upwards, the upsampler being the last member of its level's last block. How many resnets,
    attentions and samplers there are is read off the model's own layers, which is exact for every layout,
    the small ones included.
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
    """Members of the down or up blocks ("up_blocks.0.resnets.1") -> SGM places ("output_blocks.1.0")."""
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
    """(level, "resnets" | "attentions" | …, index) of everything that stands in the down or up blocks."""
    found = (re.match(rf"{side}\.(\d+)\.(\w+)\.(\d+)\.", module) for module in modules)
    return {(int(match[1]), match[2], int(match[3])) for match in found if match}


def _middle(modules: list[str]) -> dict[str, str]:
    """The middle block's members in the order they run: resnet, attention, resnet."""
    found = (re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.", module) for module in modules)
    members = {(int(match[2]), match[1] == "attentions", match[0]) for match in found if match}
    # Each attention follows the resnet of its own number.
    return {
        name.removesuffix("."): f"middle_block.{place}" for place, (_, _, name) in enumerate(sorted(members))
    }
