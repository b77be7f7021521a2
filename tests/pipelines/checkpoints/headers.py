"""Checkpoints of the published sizes, as far as headers go: their data is a hole in the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from pipelines import assets
from pipelines.checkpoints.clip_layout import clip_shapes
from pipelines.checkpoints.components import read_json
from pipelines.checkpoints.unet_layout import Outline, original_names, outline_of, unet_shapes
from pipelines.checkpoints.vae_layout import vae_shapes
from pipelines.families.family import Family

Shapes = dict[str, tuple[int, ...]]
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "I64": 8}


def write_header(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str] | None = None,
    *,
    metadata: object = None,
) -> Path:
    """A safetensors file of these tensors, all zero. dtypes: of those that are not F16."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for key, shape in shapes.items():
        dtype = (dtypes or {}).get(key, "F16")
        start, end = end, end + prod(shape) * BYTES[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def published(family: Family, outline: Outline | None = None, *, vae: bool = True) -> Shapes:
    """Each key of a family's checkpoint -> its shape. outline: of a smaller UNet."""
    folder = assets.root() / "configs" / family.name
    unet = unet_shapes(outline or outline_of(read_json(folder / "unet" / "config.json")))
    shapes = {f"model.diffusion_model.{name}": unet[own] for own, name in original_names(unet).items()}
    for number, part in enumerate(family.text_encoders):
        root = f"conditioner.embedders.{number}." if len(family.text_encoders) > 1 else "cond_stage_model."
        encoder = clip_shapes(read_json(folder / part / "config.json"), projected=part == "text_encoder_2")
        for name, shape in encoder.items():
            inner = "" if name.startswith("text_projection") else "text_model."
            shapes[f"{root}transformer.{inner}{name}"] = shape
    if vae:
        for name, shape in vae_shapes(read_json(folder / "vae" / "config.json")).items():
            shapes[f"first_stage_model.{name}"] = shape
    return shapes
