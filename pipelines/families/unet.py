"""A UNet of SD1.x, SD2.x or SDXL: its levels, its cuts, and the two ways through it.

A full pass runs all blocks, and can leave the outputs of some up blocks behind as deep features. A shallow pass runs
the outer blocks alone, on the present latents, timestep, text and adapters. It takes such an output as it was:

    cut         a shallow pass runs                                              what is remembered
    published   conv_in, the first down block, the last up block, conv_out       the output of up_blocks[-2]
    deep        the same with the two outermost blocks on each side              the output of up_blocks[-3]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from pipelines.families.family import Cut

Shape = tuple[int, int, int]
"""[channels, h, w] of latents or of features."""

LEVELS: Mapping[Cut, int] = {"published": 1, "deep": 2}
"""Cut -> how many of the outermost blocks on each side a shallow pass runs."""


# -- levels and cuts -----------------------------------------------------------------------------------


def level_of(name: str, model: nn.Module) -> int | None:
    """How often the input of a layer has been halved in size. 0 for all layers of a model that is no UNet.

    None for layers whose input has no positions (embeddings of the timestep).
    """
    if "emb" in name:
        return None
    levels = len(getattr(model, "down_blocks", ()))
    block, _, rest = name.partition(".")
    if block == "mid_block":
        return levels - 1
    number = rest.partition(".")[0]
    if block == "down_blocks":
        return int(number)
    return levels - 1 - int(number) if block == "up_blocks" else 0


def feature_shape(unet_config: Mapping[str, Any], shape: Shape, cut: Cut) -> Shape:
    """[channels, h, w] of the features at a cut, for latents of `shape`."""
    _, height, width = shape
    for _ in range(LEVELS[cut] - 1):
        height, width = -(-height // 2), -(-width // 2)
    return (int(unet_config["block_out_channels"][LEVELS[cut]]), height, width)


def cuts_of(unet_config: Mapping[str, Any], preferred: Cut) -> tuple[Cut, ...]:
    """The cuts at which a shallow pass leaves out some of this UNet, the preferred one first."""
    levels = len(unet_config["block_out_channels"])
    found = [cut for cut in LEVELS if LEVELS[cut] < levels]
    return tuple(sorted(found, key=lambda cut: cut != preferred))


# -- the two ways through the UNet -----------------------------------------------------------------------


def conditions(
    text: Tensor, mask: Tensor | None, pooled: Tensor | None, sizes: Tensor | None
) -> dict[str, Any]:
    """What a UNet reads besides latents and timesteps, under diffusers' names.

    text: [rows, tokens, width]. mask: [rows, tokens], nonzero where a token counts; None where all do.
    pooled: [rows, width] and sizes: [rows, 6] for SDXL, None for others.
    """
    added = None
    if pooled is not None:
        assert sizes is not None
        added = {"text_embeds": pooled, "time_ids": sizes}
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask, "added_cond_kwargs": added}


def full_pass(
    unet: Any, leaves: Iterable[Cut], sample: Tensor, timestep: Tensor, reads: Mapping[str, Any]
) -> tuple[Tensor, dict[Cut, Tensor]]:
    """Run all blocks: the prediction, [rows, channels, h, w], and cut -> features, [rows, *feature_shape].

    leaves: the cuts whose features are wanted. sample: [rows, channels, h, w]. timestep: [rows]. reads: `conditions`.
    """
    with captured(unet, leaves) as features:
        prediction: Tensor = unet(sample, timestep, **reads, return_dict=False)[0]
    return prediction, features


@contextmanager
def captured(unet: nn.Module, cuts: Iterable[Cut]) -> Iterator[dict[Cut, Tensor]]:
    """Within: a call of `unet` puts the features at these cuts, [rows, channels, h, w], into the dict it yields."""
    found: dict[Cut, Tensor] = {}

    def catch(cut: Cut, module: nn.Module, inputs: object, output: Tensor) -> None:
        found[cut] = output

    blocks: Any = unet.up_blocks
    hooks = [blocks[-1 - LEVELS[cut]].register_forward_hook(partial(catch, cut)) for cut in cuts]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def shallow_modules(unet: Any, cut: Cut) -> tuple[str, ...]:
    """The dotted names of the modules that a shallow pass runs."""
    last = len(unet.up_blocks)
    return (
        *("time_embedding", "add_embedding", "conv_in", "conv_norm_out", "conv_out"),
        *(f"down_blocks.{level}" for level in range(LEVELS[cut])),
        *(f"up_blocks.{last - 1 - level}" for level in range(LEVELS[cut])),
    )


def shallow_pass(
    unet: Any,
    cut: Cut,
    deep: Tensor,
    sample: Tensor,
    timestep: Tensor,
    *,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
) -> Tensor:
    """Run the outer blocks alone, on remembered features: the prediction, [rows, channels, h, w].

    deep: the features, [rows, *feature_shape]. sample: [rows, channels, h, w]. timestep: [rows].
    encoder_hidden_states: [rows, tokens, width]. encoder_attention_mask: [rows, tokens], nonzero where a token counts.
    added_cond_kwargs: SDXL's pooled text and sizes, as diffusers' UNet2DConditionModel takes them.

    This is the forward of that class without the inner blocks, for the block types of SD1.x, SD2.x and SDXL. Where a
    full pass on the same inputs has left `deep` behind, the prediction equals the full pass's.
    """
    levels = LEVELS[cut]
    emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))  # [rows, emb]
    added = unet.get_aug_embed(
        emb=emb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
    )
    emb = emb if added is None else emb + added
    text: dict[str, Any] = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": None}
    if encoder_attention_mask is not None:
        bias = (1 - encoder_attention_mask.to(sample.dtype)) * -10000.0
        text["encoder_attention_mask"] = bias.unsqueeze(1)  # [rows, 1, tokens]

    hidden = unet.conv_in(sample)
    skips = [hidden]
    for level in range(levels):
        block = unet.down_blocks[level]
        hidden, found = _down(block, hidden, emb, text, downsample=level < levels - 1)
        skips += found

    hidden = deep
    for block in unet.up_blocks[-levels:]:
        taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
        attending = text if getattr(block, "has_cross_attention", False) else {}
        hidden = block(
            hidden_states=hidden,
            temb=emb,
            res_hidden_states_tuple=tuple(taken),
            upsample_size=skips[-1].shape[2:] if skips else None,
            **attending,
        )
    prediction: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return prediction


def _down(
    block: Any, hidden: Tensor, emb: Tensor, text: Mapping[str, Any], *, downsample: bool
) -> tuple[Tensor, list[Tensor]]:
    """Run a down block: its output and its skips. The innermost block runs without its downsampler, whose output
    nothing would read."""
    skips: list[Tensor] = []
    attentions = (
        block.attentions if getattr(block, "has_cross_attention", False) else [None] * len(block.resnets)
    )
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        hidden = resnet(hidden, emb)
        if attention is not None:
            hidden = attention(hidden, return_dict=False, **text)[0]
        skips.append(hidden)
    if downsample:
        for downsampler in block.downsamplers:
            hidden = downsampler(hidden)
        skips.append(hidden)
    return hidden, skips
