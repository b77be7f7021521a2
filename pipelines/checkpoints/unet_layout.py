"""A UNet's layout, read from the names and shapes of its weights: its configuration, and what weights it must have.

A file spells the layers as the original code does (`input_blocks.1.0`), or as diffusers (`down_blocks.0.resnets.0`).
Both give the same configuration. So a UNet that was made smaller (SSD-1B, Segmind-Vega, KOALA, BK-SDM) is built as it
is. What no weight tells (heads, norms) is that of the family's published UNet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.families.unet_names import sgm_names

Shapes = Mapping[str, tuple[int, ...]]
Depths = tuple[int, ...]
"""For each resnet of a level: how many transformer blocks follow it, 0 for none."""

MOST_LEVELS = 8
MOST_LAYERS = 16
"""Most levels, and most resnets of a level, that are looked for."""

SMALLER: Mapping[tuple[tuple[Depths, ...], Depths | None], str] = {
    (((0, 0), (2, 2), (4, 4)), ()): "SSD-1B",
    (((0, 0), (1, 1), (2, 2)), ()): "Segmind-Vega",
    (((0,), (2,), (5,)), None): "KOALA-700M",
    (((0,), (2,), (6,)), (6,)): "KOALA-1B",
    (((1,), (1,), (1,), (0,)), (1,)): "BK-SDM-Base",
    (((1,), (1,), (1,), (0,)), None): "BK-SDM-Small",
    (((1,), (1,), (1,)), None): "BK-SDM-Tiny",
}
"""(depths of the down blocks, of the middle block) -> the published name of a smaller UNet. A middle block is None
where there is none, () where it is one resnet."""


class UnknownLayout(ValueError):
    """The weights are no UNet that can be built; the message says why."""


@dataclass(frozen=True)
class Outline:
    """What the weights tell.

    channels: of each level. down, up: the depths of each level, `up` from the innermost. mid: of the middle block.
    context: width of the text embeddings. linear: whether transformers are entered by a linear layer. added: width of
    SDXL's additional input, None where there is none.
    """

    channels: tuple[int, ...]
    down: tuple[Depths, ...]
    mid: Depths | None
    up: tuple[Depths, ...]
    context: int
    linear: bool
    added: int | None

    @property
    def name(self) -> str:
        """The published name of a smaller UNet, else ""."""
        return SMALLER.get((self.down, self.mid), "")


@dataclass(frozen=True)
class _Block:
    """Where one level's layers are: the prefixes of its resnets, each with that of the transformer behind it."""

    resnets: tuple[tuple[str, str], ...]


def is_diffusers(shapes: Shapes) -> bool:
    """Whether a UNet's names are diffusers', the original code's otherwise."""
    return "conv_in.weight" in shapes


def first_conv(shapes: Shapes) -> tuple[int, ...] | None:
    """The shape of the convolution that takes the latents; None where there is none, so that this is no UNet."""
    return shapes.get("conv_in.weight", shapes.get("input_blocks.0.0.weight"))


def outline(shapes: Shapes) -> Outline:
    """What a UNet's names and shapes tell. Raises UnknownLayout."""
    first = "conv1" if is_diffusers(shapes) else "in_layers.2"
    down, up = _diffusers_blocks(shapes) if is_diffusers(shapes) else _original_blocks(shapes)
    middle = ("mid_block.resnets.0", "mid_block.attentions.0")
    if not is_diffusers(shapes):
        middle = ("middle_block.0", "middle_block.1")
    depths = _counted(shapes)
    if not down or not up:
        raise UnknownLayout("it has no down blocks or no up blocks")

    def of(blocks: Iterable[_Block]) -> tuple[Depths, ...]:
        return tuple(_whole([depths.get(inner, 0) for _, inner in block.resnets]) for block in blocks)

    channels = tuple(_length(shapes, f"{block.resnets[0][0]}.{first}.weight", 0) for block in down)
    mid: Depths | None = None
    if f"{middle[0]}.{first}.weight" in shapes:
        mid = (depths[middle[1]],) if middle[1] in depths else ()
    texts = {shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight") and shape[1:]}
    if len(texts) != 1:
        raise UnknownLayout("its attention layers take text of no width, or of several")
    added = "add_embedding.linear_1.weight" if is_diffusers(shapes) else "label_emb.0.0.weight"
    return Outline(
        channels=channels,
        down=of(down),
        mid=mid,
        up=of(up),
        context=texts.pop(),
        linear=any(len(shapes.get(f"{inner}.proj_in.weight", ())) == 2 for inner in depths),
        added=_length(shapes, added, 1) if added in shapes else None,
    )


def config_of(seen: Outline, published: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' configuration of a UNet. published: the configuration of its family's own.

    Raises UnknownLayout for one that diffusers cannot build, and for one whose heads and norms nothing tells.
    """
    own = tuple(published["block_out_channels"])
    if seen.channels != own[: len(seen.channels)]:
        raise UnknownLayout(
            f"its levels have {_listed(seen.channels)} channels, the published ones {_listed(own)}"
        )
    layers = [len(level) for level in seen.down]
    if len(seen.up) != len(layers) or [len(level) - 1 for level in seen.up] != layers[::-1]:
        raise UnknownLayout("its up blocks do not have one layer more than its down blocks")
    inner = seen.mid[0] if seen.mid else 1
    down: list[Any] = [_shortest(level) if any(level) else 1 for level in seen.down]
    if not any(seen.down[-1]):
        down[-1] = inner
    elif seen.mid and seen.down[-1][0] != inner:
        raise UnknownLayout("its middle block is deeper or flatter than its last down block")
    up: list[Any] = [_shortest(level) if any(level) else 1 for level in seen.up]
    mirrored = all(
        not any(level) or (isinstance(one, int) and one == down[-1 - place])
        for place, (level, one) in enumerate(zip(seen.up, up, strict=True))
    ) and all(isinstance(one, int) for one in down)
    heads = published["attention_head_dim"]
    return {
        **published,
        "block_out_channels": list(seen.channels),
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": ["CrossAttnDownBlock2D" if any(level) else "DownBlock2D" for level in seen.down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(level) else "UpBlock2D" for level in seen.up],
        "mid_block_type": _middle_type(seen.mid),
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": None if mirrored else up,
        "cross_attention_dim": seen.context,
        "use_linear_projection": seen.linear,
        "attention_head_dim": heads if isinstance(heads, int) else list(heads[: len(layers)]),
        **({} if seen.added is None else {"projection_class_embeddings_input_dim": seen.added}),
    }


def outline_of(config: Mapping[str, Any]) -> Outline:
    """The outline of one of the UNets whose configurations ship with the program."""
    channels, layers = tuple(config["block_out_channels"]), int(config["layers_per_block"])
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * len(channels) if isinstance(depths, int) else depths
    down = tuple(
        (depth if "CrossAttn" in kind else 0,) * layers
        for kind, depth in zip(config["down_block_types"], depths, strict=True)
    )
    return Outline(
        channels=channels,
        down=down,
        mid=(depths[-1],),
        up=tuple((*level, level[0]) for level in reversed(down)),
        context=int(config["cross_attention_dim"]),
        linear=bool(config.get("use_linear_projection", False)),
        added=config.get("projection_class_embeddings_input_dim"),
    )


def unet_shapes(seen: Outline) -> dict[str, tuple[int, ...]]:
    """Each weight that a UNet of SD1.x, SD2.x or SDXL must have, under diffusers' name -> its shape."""
    return dict(_weights(seen))


def original_names(names: Iterable[str]) -> dict[str, str]:
    """diffusers' name of each weight of a UNet -> the original code's."""
    names = list(names)
    spelled = sgm_names(dict.fromkeys(name.rpartition(".")[0] for name in names))
    found = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        found[name] = f"{spelled[module]}.{kind}"
    return found


# -- what is where ----------------------------------------------------------------------------------------


def _original_blocks(shapes: Shapes) -> tuple[list[_Block], list[_Block]]:
    """The down blocks and the up blocks of a UNet in the original code's names."""
    down: list[list[tuple[str, str]]] = [[]]
    for number in range(1, MOST_LEVELS * MOST_LAYERS):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            down.append([])
        elif f"input_blocks.{number}.0.in_layers.2.weight" in shapes:
            down[-1].append((f"input_blocks.{number}.0", f"input_blocks.{number}.1"))
        else:
            break
    up: list[list[tuple[str, str]]] = [[]]
    for number in range(MOST_LEVELS * MOST_LAYERS):
        block = f"output_blocks.{number}"
        if f"{block}.0.in_layers.2.weight" not in shapes:
            break
        up[-1].append((f"{block}.0", f"{block}.1"))
        if f"{block}.1.conv.weight" in shapes or f"{block}.2.conv.weight" in shapes:
            up.append([])
    return _blocks(down), _blocks(up)


def _diffusers_blocks(shapes: Shapes) -> tuple[list[_Block], list[_Block]]:
    sides = []
    for side in ("down_blocks", "up_blocks"):
        levels = []
        for level in range(MOST_LEVELS):
            block = f"{side}.{level}"
            resnets = [
                (f"{block}.resnets.{layer}", f"{block}.attentions.{layer}")
                for layer in range(MOST_LAYERS)
                if f"{block}.resnets.{layer}.conv1.weight" in shapes
            ]
            if not resnets:
                break
            levels.append(resnets)
        sides.append(_blocks(levels))
    return sides[0], sides[1]


def _blocks(levels: Iterable[list[tuple[str, str]]]) -> list[_Block]:
    levels = list(levels)
    if not all(levels):
        raise UnknownLayout("a level of it has no layers")
    return [_Block(tuple(level)) for level in levels]


_TRANSFORMER = re.compile(r"(.+)\.transformer_blocks\.(\d{1,3})\.")


def _counted(shapes: Shapes) -> dict[str, int]:
    """Prefix of a transformer -> how many blocks it has."""
    found: dict[str, set[int]] = {}
    for name in shapes:
        if ".transformer_blocks." in name and (match := _TRANSFORMER.match(name)):
            found.setdefault(match[1], set()).add(int(match[2]))
    return {inner: len(numbers) for inner, numbers in found.items()}


def _length(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis:
        raise UnknownLayout(f"{name} has no such axis")
    return shape[axis]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _whole(level: list[int]) -> Depths:
    """A level's depths. All its resnets have a transformer if one has, and those of a damaged file lack theirs."""
    return tuple(depth or max(level) for depth in level)


def _middle_type(mid: Depths | None) -> str | None:
    if mid is None:
        return None
    return "UNetMidBlock2DCrossAttn" if mid else "UNetMidBlock2D"


def _shortest(level: Depths) -> int | list[int]:
    return level[0] if len(set(level)) == 1 else list(level)


# -- what must be there -----------------------------------------------------------------------------------


def _weights(seen: Outline) -> Iterator[tuple[str, tuple[int, ...]]]:
    channels, first, last = seen.channels, seen.channels[0], seen.channels[-1]
    time = 4 * first
    yield from _layer("conv_in", (first, 4, 3, 3))
    yield from _layer("time_embedding.linear_1", (time, first))
    yield from _layer("time_embedding.linear_2", (time, time))
    if seen.added is not None:
        yield from _layer("add_embedding.linear_1", (time, seen.added))
        yield from _layer("add_embedding.linear_2", (time, time))
    skips = [first]
    width = first
    for level, (depths, out) in enumerate(zip(seen.down, channels, strict=True)):
        block = f"down_blocks.{level}"
        for layer, depth in enumerate(depths):
            yield from _resnet(f"{block}.resnets.{layer}", width, out, time)
            yield from _transformer(f"{block}.attentions.{layer}", out, depth, seen)
            width = out
            skips.append(out)
        if level < len(channels) - 1:
            yield from _layer(f"{block}.downsamplers.0.conv", (out, out, 3, 3))
            skips.append(out)
    if seen.mid is not None:
        yield from _resnet("mid_block.resnets.0", last, last, time)
    if seen.mid:
        yield from _transformer("mid_block.attentions.0", last, seen.mid[0], seen)
        yield from _resnet("mid_block.resnets.1", last, last, time)
    for level, (depths, out) in enumerate(zip(seen.up, reversed(channels), strict=True)):
        block = f"up_blocks.{level}"
        for layer, depth in enumerate(depths):
            yield from _resnet(f"{block}.resnets.{layer}", width + skips.pop(), out, time)
            yield from _transformer(f"{block}.attentions.{layer}", out, depth, seen)
            width = out
        if level < len(channels) - 1:
            yield from _layer(f"{block}.upsamplers.0.conv", (out, out, 3, 3))
    yield from _layer("conv_norm_out", (first,))
    yield from _layer("conv_out", (4, first, 3, 3))


def _layer(name: str, shape: tuple[int, ...], *, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def _resnet(name: str, into: int, out: int, time: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _layer(f"{name}.norm1", (into,))
    yield from _layer(f"{name}.conv1", (out, into, 3, 3))
    yield from _layer(f"{name}.time_emb_proj", (out, time))
    yield from _layer(f"{name}.norm2", (out,))
    yield from _layer(f"{name}.conv2", (out, out, 3, 3))
    if into != out:
        yield from _layer(f"{name}.conv_shortcut", (out, into, 1, 1))


def _transformer(name: str, width: int, depth: int, seen: Outline) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not depth:
        return
    projection = (width, width) if seen.linear else (width, width, 1, 1)
    yield from _layer(f"{name}.norm", (width,))
    yield from _layer(f"{name}.proj_in", projection)
    yield from _layer(f"{name}.proj_out", projection)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for norm in ("norm1", "norm2", "norm3"):
            yield from _layer(f"{block}.{norm}", (width,))
        for attention, source in (("attn1", width), ("attn2", seen.context)):
            yield from _layer(f"{block}.{attention}.to_q", (width, width), bias=False)
            yield from _layer(f"{block}.{attention}.to_k", (width, source), bias=False)
            yield from _layer(f"{block}.{attention}.to_v", (width, source), bias=False)
            yield from _layer(f"{block}.{attention}.to_out.0", (width, width))
        yield from _layer(f"{block}.ff.net.0.proj", (8 * width, width))
        yield from _layer(f"{block}.ff.net.2", (width, 4 * width))
