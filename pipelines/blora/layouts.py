"""The layers of models that are not loaded, so that adapter files can be read for them without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines import assets
from pipelines.adapters.adapter import model_layers
from pipelines.adapters.terms import ModelLayers
from pipelines.checkpoints.card import read_card
from pipelines.checkpoints.components import quietly, read_json
from pipelines.checkpoints.folders import folder_family
from pipelines.checkpoints.single_file import examine
from pipelines.errors import ModelError
from pipelines.families.family import SDXL, Family
from pipelines.home import Home

BlockMap = Mapping[str, tuple[str, ...]]


def published_layers(family: Family = SDXL) -> tuple[ModelLayers, BlockMap]:
    """(layers, block map) of a family at its published size, from the configurations that ship with the program."""
    return _layers(assets.root() / "configs" / family.name, family, family.label), family.block_map


def model_outline(source: str | Path, home: Home) -> tuple[ModelLayers, BlockMap]:
    """(layers, block map) of a model, by name or path. No weight is read.

    Raises ModelError for what is no model on this computer, one on the hub included; and NoAnswer.
    """
    entry = home.find_model(source)
    if entry is None:
        raise ModelError(f"{source} is a model on the hub; give a model's folder, file or name instead")
    if entry.path.is_file():
        family = examine(entry.path).family
        shipped = assets.root() / "configs" / family.name
        return _layers(shipped, family, entry.name, entry.path), family.block_map
    family = folder_family(entry.path, read_json(entry.path / "model_index.json"))
    card = read_card(entry.path)
    blocks = {**family.block_map, **(card.block_map if card else {})}
    return _layers(entry.path, family, entry.name), blocks


@cache
def _layers(folder: Path, family: Family, label: str, file: Path | None = None) -> ModelLayers:
    """The layers that the configurations in a diffusers folder describe. label: the model's name. file: a checkpoint,
    whose UNet may be smaller than the folder's."""
    import diffusers
    import transformers

    unet_class: Any = diffusers.UNet2DConditionModel
    components: dict[str, nn.Module] = {}
    with torch.device("meta"), quietly():
        config = read_json(folder / "unet" / "config.json") if file is None else examine(file).unet_config
        components["unet"] = unet_class.from_config(config)
        for name in family.text_encoders:
            config = read_json(folder / name / "config.json")
            projected = name.endswith("_2") or "WithProjection" in str(config.get("architectures"))
            kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
            components[name] = kind(transformers.CLIPTextConfig.from_dict(config))
    return model_layers(family, label, components)
