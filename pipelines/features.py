"""Deep-feature reuse: between two evaluations in full, a lane may run the UNet's outer blocks alone.

Features deep inside the UNet change slowly over the steps (DeepCache, Ma et al. 2023, arXiv 2312.00858). A full pass
leaves the output of one up block behind; a shallow pass runs the blocks outside of it, on the present latents,
timestep, text and adapters, and takes that output as it was:

    cut         a shallow pass runs                                              what is remembered
    published   conv_in, the first down block, the last up block, conv_out       the output of up_blocks[-2]
    deep        the same with the two outermost blocks on each side              the output of up_blocks[-3]

Which lane runs how at every step follows from the plans alone, before the first step: `schedule`. So the memory is
known when a picture is admitted, nothing is ever evicted, and no picture depends on its neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from composers.plan import Lane, Plan
from pipelines.families.family import Cut

Memory = tuple[object, ...]
"""`Lane.memory`: whose features they are."""
Shape = tuple[int, int, int]

LEVELS: Mapping[Cut, int] = {"published": 1, "deep": 2}
"""Cut -> how many of the outermost blocks on each side a shallow pass runs."""
MOST_MOVED = 0.1
"""By how much of itself a strength may have moved since the features were made."""


# -- which lane runs how ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """How one step's lanes run.

    shallow: for every lane of the plan, whether it runs on remembered features.
    kept: whose features are remembered beyond the step.
    """

    shallow: tuple[bool, ...]
    kept: frozenset[Memory]


def passes_of(plans: Sequence[Plan], *, remembering: bool) -> tuple[Passes, ...]:
    """One `Passes` a step; remembering: whether the run remembers features."""
    return schedule(plans) if remembering else all_full(plans)


def all_full(plans: Sequence[Plan]) -> tuple[Passes, ...]:
    """One `Passes` a step for a run that remembers nothing."""
    return tuple(Passes((False,) * len(plan.lanes), frozenset()) for plan in plans)


def schedule(plans: Sequence[Plan]) -> tuple[Passes, ...]:
    """One `Passes` a step. A lane runs shallow where it need not be fresh and its features are remembered, are at
    most `Plan.max_age` steps old, and were made at strengths within 10 % of the present ones."""
    shallow = tuple(_shallow(plans))
    kept: list[frozenset[Memory]] = []
    wanted: set[Memory] = set()
    for plan, flags in zip(reversed(plans), reversed(shallow), strict=True):
        kept.append(frozenset(wanted))
        for lane, on_memory in zip(plan.lanes, flags, strict=True):
            (wanted.add if on_memory else wanted.discard)(lane.memory)
    return tuple(Passes(flags, alive) for flags, alive in zip(shallow, reversed(kept), strict=True))


def most_kept(passes: Sequence[Passes]) -> int:
    """The largest number of features that are remembered at one time."""
    before: frozenset[Memory] = frozenset()
    most = 0
    for step in passes:
        most = max(most, len(before | step.kept))
        before = step.kept
    return most


def _shallow(plans: Sequence[Plan]) -> Iterator[tuple[bool, ...]]:
    remembered: dict[Memory, tuple[int, tuple[float, ...]]] = {}
    for index, plan in enumerate(plans):
        times = Counter(lane.memory for lane in plan.lanes)
        flags = []
        for lane in plan.lanes:
            born, strengths = remembered.get(lane.memory, (None, ()))
            on_memory = (
                not lane.fresh
                and born is not None
                and index - born <= plan.max_age
                and _near(strengths, _strengths(lane))
                and times[lane.memory] == 1  # two lanes that differ in strength alone would share one memory
            )
            if not on_memory:
                remembered[lane.memory] = index, _strengths(lane)
            flags.append(on_memory)
        yield tuple(flags)


def _strengths(lane: Lane) -> tuple[float, ...]:
    return tuple(value for use in lane.uses for value in (use.weight, *(factor for _, factor in use.blocks)))


def _near(then: tuple[float, ...], now: tuple[float, ...]) -> bool:
    return all(abs(b - a) <= MOST_MOVED * abs(a) + 1e-9 for a, b in zip(then, now, strict=True))


# -- what is remembered ----------------------------------------------------------------------------------


class Features:
    """One trajectory's remembered features, [channels, h, w] each, in the UNet's dtype.

    on_host: they wait in the host's memory and come to the device when they are used.
    """

    def __init__(self, *, on_host: bool = False) -> None:
        self.on_host = on_host
        self._kept: dict[Memory, Tensor] = {}

    def put(self, memory: Memory, feature: Tensor) -> None:
        # A copy in any case: a slice would keep the whole batch's tensor.
        self._kept[memory] = (
            feature.cpu() if self.on_host and feature.device.type != "cpu" else feature.clone()
        )

    def get(self, memory: Memory, device: torch.device) -> Tensor:
        return self._kept[memory].to(device)

    def move(self, device: torch.device) -> None:
        """All that is remembered, to a device; `on_host` says where what comes later goes."""
        self._kept = {memory: feature.to(device) for memory, feature in self._kept.items()}

    def keep_only(self, memories: frozenset[Memory]) -> None:
        self._kept = {memory: feature for memory, feature in self._kept.items() if memory in memories}

    @property
    def bytes(self) -> int:
        return sum(feature.nbytes for feature in self._kept.values())


def feature_shape(unet_config: Mapping[str, Any], shape: Shape, cut: Cut) -> Shape:
    """[channels, h, w] of what is remembered for latents of `shape`."""
    _, height, width = shape
    for _ in range(LEVELS[cut] - 1):
        height, width = -(-height // 2), -(-width // 2)
    return (int(unet_config["block_out_channels"][LEVELS[cut]]), height, width)


def cuts_of(unet_config: Mapping[str, Any], preferred: Cut) -> tuple[Cut, ...]:
    """The cuts that leave something out of this UNet, the preferred one first."""
    levels = len(unet_config["block_out_channels"])
    found = [cut for cut in LEVELS if LEVELS[cut] < levels]
    return tuple(sorted(found, key=lambda cut: cut != preferred))


# -- the two ways through the UNet -----------------------------------------------------------------------


@contextmanager
def captured(unet: nn.Module, cuts: Iterable[Cut]) -> Iterator[dict[Cut, Tensor]]:
    """Within: a call of `unet` leaves the features of these cuts behind, [rows, channels, h, w] each."""
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
    """The UNet's prediction, [rows, channels, h, w], from its outer blocks and the remembered features.

    deep: [rows, *feature_shape]. sample: [rows, channels, h, w]. timestep: [rows].
    encoder_hidden_states: [rows, tokens, width]; encoder_attention_mask: [rows, tokens], nonzero where a token counts.
    added_cond_kwargs: SDXL's pooled text and sizes, as diffusers' UNet2DConditionModel takes them.

    It is that class's own forward with the inner blocks left out, for the block types of SD1.x, SD2.x and SDXL.
    Where `deep` is what a full pass on these very inputs has left behind, the prediction is the full pass's.
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
    """A down block and the skips it leaves; the innermost one's downsampler feeds nothing that runs."""
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
