"""The VAE: what weights it must have, and how files spell them, in the original code's names and in diffusers'.

original        decoder.up.3.block.0.conv1.weight, decoder.mid.attn_1.q.weight
diffusers       decoder.up_blocks.0.resnets.0.conv1.weight, decoder.mid_block.attentions.0.to_q.weight (or `query`)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.checkpoints.stored import Turn

Shape = tuple[int, ...]

_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d{1,2})\.(block\.(\d{1,2})|downsample|upsample)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(.+)")
_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
_OLD = re.compile(
    r"((?:encoder|decoder)\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)"
)
_TURNED = re.compile(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight")
LEFT_OUT = re.compile(r"(loss|model_ema|discriminator|perceptual_loss|lpips)\..+")
"""What a VAE's file may also hold: parts of its training."""


def plain_name(name: str, levels: int) -> str:
    """diffusers' name of a VAE's weight. levels: how many the VAE has. A name that is not known comes out as it is."""
    if match := _LEVEL.fullmatch(name):
        side, level, what, layer, rest = match.groups()
        if side == "decoder.up":
            level = str(levels - 1 - int(level))
        block = f"{side}_blocks.{level}"
        if layer is None:
            return f"{block}.{what}rs.0.{rest}"
        return f"{block}.resnets.{layer}.{rest.replace('nin_shortcut.', 'conv_shortcut.')}"
    if match := _MIDDLE.fullmatch(name):
        half, what, rest = match.groups()
        if what != "attn_1":
            return f"{half}.mid_block.resnets.{int(what[-1]) - 1}.{rest}"
        module, _, kind = rest.rpartition(".")
        return f"{half}.mid_block.attentions.0.{_ATTENTION.get(module, module)}.{kind}"
    if match := _OLD.fullmatch(name):
        return f"{match[1]}.{_ATTENTION[match[2]]}.{match[3]}"
    return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)


def plain_names(name: str, shape: Shape, levels: int) -> Iterator[tuple[str, Shape, Turn]]:
    """A stored weight of any spelling -> (diffusers' name, shape, what is done to the tensor)."""
    plain = plain_name(name, levels)
    if (
        _TURNED.search(plain) and len(shape) == 4 and shape[2:] == (1, 1)
    ):  # the original code has 1x1 convolutions
        yield plain, shape[:2], "linear"
    else:
        yield plain, shape, ""


def levels_of(names: Iterable[str], config: Mapping[str, Any]) -> int:
    """How many levels a VAE has: as its names say in the original code's spelling, else its configuration."""
    found = [int(match[2]) for name in names if (match := _LEVEL.fullmatch(name))]
    return max(found) + 1 if found else len(config["block_out_channels"])


def vae_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Each weight that a VAE must have, under diffusers' name -> its shape. config: diffusers' configuration."""
    return dict(_weights(config))


def _weights(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    channels, latent = list(config["block_out_channels"]), int(config["latent_channels"])
    layers = int(config["layers_per_block"])
    yield from _layer("encoder.conv_in", (channels[0], int(config.get("in_channels", 3)), 3, 3))
    width = channels[0]
    for level, out in enumerate(channels):
        for layer in range(layers):
            yield from _resnet(f"encoder.down_blocks.{level}.resnets.{layer}", width, out)
            width = out
        if level < len(channels) - 1:
            yield from _layer(f"encoder.down_blocks.{level}.downsamplers.0.conv", (out, out, 3, 3))
    yield from _middle("encoder", width)
    yield from _layer("encoder.conv_norm_out", (width,))
    yield from _layer("encoder.conv_out", (2 * latent, width, 3, 3))
    if config.get("use_quant_conv", True):
        yield from _layer("quant_conv", (2 * latent, 2 * latent, 1, 1))
    if config.get("use_post_quant_conv", True):
        yield from _layer("post_quant_conv", (latent, latent, 1, 1))
    yield from _layer("decoder.conv_in", (width, latent, 3, 3))
    yield from _middle("decoder", width)
    for level, out in enumerate(reversed(channels)):
        for layer in range(layers + 1):
            yield from _resnet(f"decoder.up_blocks.{level}.resnets.{layer}", width, out)
            width = out
        if level < len(channels) - 1:
            yield from _layer(f"decoder.up_blocks.{level}.upsamplers.0.conv", (out, out, 3, 3))
    yield from _layer("decoder.conv_norm_out", (width,))
    yield from _layer("decoder.conv_out", (int(config.get("out_channels", 3)), width, 3, 3))


def _middle(half: str, width: int) -> Iterator[tuple[str, Shape]]:
    for number in range(2):
        yield from _resnet(f"{half}.mid_block.resnets.{number}", width, width)
    yield from _layer(f"{half}.mid_block.attentions.0.group_norm", (width,))
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _layer(f"{half}.mid_block.attentions.0.{name}", (width, width))


def _resnet(name: str, into: int, out: int) -> Iterator[tuple[str, Shape]]:
    yield from _layer(f"{name}.norm1", (into,))
    yield from _layer(f"{name}.conv1", (out, into, 3, 3))
    yield from _layer(f"{name}.norm2", (out,))
    yield from _layer(f"{name}.conv2", (out, out, 3, 3))
    if into != out:
        yield from _layer(f"{name}.conv_shortcut", (out, into, 1, 1))


def _layer(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
