"""CLIP's text encoder: what weights it must have, and how files spell them.

    transformers    text_model.encoder.layers.0.self_attn.q_proj.weight; older files lack `text_model.`
    open_clip       transformer.resblocks.0.attn.in_proj_weight: query, key and value in one; the projection transposed

The names here are transformers', without `text_model.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.checkpoints.stored import Turn

Shape = tuple[int, ...]

_RESBLOCK = re.compile(
    r"transformer\.resblocks\.(\d{1,3})\.(ln_1|ln_2|attn\.in_proj|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)[._](weight|bias)"
)
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ENDS = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
LEFT_OUT = re.compile(
    r"(.*\.)?(position_ids|logit_scale|attn_mask|text_projection(\.weight)?)|(visual|vision_model|visual_projection)\..*"
)
"""What a text encoder may also hold, and no picture needs: positions that are counted anyway, CLIP's other half, and a
projection that SD1.x and SD2.x do not use."""


def is_open_clip(names: Mapping[str, Shape]) -> bool:
    """Whether a text encoder's names are open_clip's."""
    return any("resblocks." in name or name.startswith("model.ln_final") for name in names)


def plain_names(name: str, shape: Shape) -> Iterator[tuple[str, Shape, Turn]]:
    """A stored weight of any spelling -> (transformers' name, shape, what is done to the tensor), once or three times.

    A name that is not known comes out as it is.
    """
    name = name.removeprefix("model.")
    block = _RESBLOCK.fullmatch(name)
    if block is not None and block[2] == "attn.in_proj":
        third = (shape[0] // 3, *shape[1:]) if shape and shape[0] % 3 == 0 else (0,)
        turns: tuple[Turn, ...] = ("first", "second", "third")
        for part, turn in zip("qkv", turns, strict=True):
            yield f"encoder.layers.{block[1]}.self_attn.{part}_proj.{block[3]}", third, turn
    elif block is not None:
        yield f"encoder.layers.{block[1]}.{_INNER[block[2]]}.{block[3]}", shape, ""
    elif name in _ENDS:
        yield _ENDS[name], shape, ""
    elif name == "text_projection":
        yield "text_projection.weight", shape[::-1], "transposed"
    else:
        yield name.removeprefix("transformer.").removeprefix("text_model."), shape, ""


def clip_shapes(config: Mapping[str, Any], *, projected: bool) -> dict[str, Shape]:
    """Each weight that a text encoder must have -> its shape. config: transformers' configuration."""
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    shapes: dict[str, Shape] = {
        "embeddings.token_embedding.weight": (int(config["vocab_size"]), width),
        "embeddings.position_embedding.weight": (int(config["max_position_embeddings"]), width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    for layer in range(int(config["num_hidden_layers"])):
        for name, shape in {
            "layer_norm1": (width,),
            "layer_norm2": (width,),
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
            **{f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")},
        }.items():
            shapes[f"encoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layers.{layer}.{name}.bias"] = shape[:1]
    if projected:
        shapes["text_projection.weight"] = (int(config["projection_dim"]), width)
    return shapes


def last_layer(names: Mapping[str, Shape], config: Mapping[str, Any]) -> str:
    """The prefix of the one layer that SD2.x's encoder has and does not run; "" where the file lacks it too."""
    layer = int(config["num_hidden_layers"])
    found = f"encoder.layers.{layer}."
    beyond = f"encoder.layers.{layer + 1}."
    return found if not any(name.startswith(beyond) for name in names) else ""
