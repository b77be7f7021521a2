"""Which blocks of a model carry content and which carry style: the paper's analysis, for any checkpoint.

The cross-attention of one block gets another prompt, while all other blocks keep theirs. What then changes in the
picture is what the block carries (Frenkel et al. 2024, arXiv 2403.14572, section 3, for SDXL). SD1.x, SD2.x, and whole
levels of blocks are not in the paper; the procedure for them is the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.blocks import within
from pipelines.blora.scoring import Part, Scorer
from pipelines.errors import RequestError
from pipelines.model import Model
from pipelines.pipeline import StudioPipeline
from pipelines.request import Request
from pipelines.text.encoder import TextAsk

Swap = Callable[[Tensor], Tensor]

_BLOCK = re.compile(r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.attentions\.\d+")
CLEAR = 0.25
"""The least fraction of the way from one prompt's picture to the other's that counts as an answer."""
GAIN = 0.15
"""How much more a whole level must carry than its best block, to be proposed instead of that block."""


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in content alone, or in style alone."""

    part: Part
    first: str
    second: str


PAIRS = (
    Pair("content", "a photo of a cat in a garden", "a photo of a red car in a garden"),
    Pair("content", "a painting of a woman on a street", "a painting of a wooden chair on a street"),
    Pair("style", "a photo of a house by a lake", "a pencil sketch of a house by a lake"),
    Pair("style", "a photo of a cat in a garden", "a neon cyberpunk picture of a cat in a garden"),
)
"""Pairs for models of the published sizes. They are ours: the paper's prompts are not published."""


def pairs_for(vocabulary: Mapping[str, Mapping[str, tuple[str, ...]]]) -> tuple[Pair, ...]:
    """Pairs in the words of a model's card; `PAIRS` where it has fewer than four characters or two styles.

    vocabulary: category -> word -> its synonyms.
    """
    things, styles = list(vocabulary.get("character", {})), list(vocabulary.get("style", {}))
    if len(things) < 4 or len(styles) < 2:
        return PAIRS
    apart, places = len(things) // 2, list(vocabulary.get("background", {})) or ["garden"]
    scenes = [f"in the {place}" for place in (places[0], places[-len(places) // 2])]
    content = [
        Pair("content", f"a {things[k]} {scene}", f"a {things[k + apart]} {scene}")
        for k, scene in enumerate(scenes)
    ]
    style = [
        Pair("style", f"a {things[k]} {scene}", f"a {things[k]} {scene}, {styles[-1 - k]} style")
        for k, scene in enumerate(scenes)
    ]
    colours, clothes = list(vocabulary.get("color", {})), list(vocabulary.get("clothing", {}))
    if len(colours) > 1 and clothes:  # the paper counts an object's colour as style
        worn = [f"a {things[0]} wearing a {colour} {clothes[0]} {scenes[0]}" for colour in colours[:2]]
        style.append(Pair("style", *worn))
    return (*content, *style)


@dataclass(frozen=True)
class Effect:
    """The effect of injecting the other prompt into one block, or into one level of blocks.

    block: its dotted name. content, style: how far the picture moves for pairs that differ in content, or in style: 0
    not at all, 1 all the way, the mean over pairs and seeds. None where no pair of that kind could be scored.
    """

    block: str
    content: float | None
    style: float | None


@dataclass(frozen=True)
class SheetRow:
    """One pair's pictures of one seed, a row of the contact sheet.

    pictures: "A" and "B" (the two prompts), and each block or level -> [3, height, width] in 0 … 1.
    """

    pair: Pair
    seed: int
    pictures: Mapping[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """The outcome of a probe.

    block_map: the map that is proposed for the model's card; {} where no blocks answer clearly. scorer: its name.
    published: whether the family has a published map (SDXL has), which this one then checks.
    """

    effects: tuple[Effect, ...]
    rows: tuple[SheetRow, ...]
    block_map: Mapping[str, tuple[str, ...]]
    scorer: str
    published: bool


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe. None takes the model's default. width, height: in pixels."""

    seeds: tuple[int, ...] = (1, 2)
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None


def attention_blocks(unet: nn.Module) -> tuple[str, ...]:
    """The blocks that read the prompt, in the order in which they run: "down_blocks.1.attentions.0", …"""
    found = (_BLOCK.match(name) for name, _ in unet.named_modules() if name.endswith("attn2"))
    names = dict.fromkeys(match[0] for match in found if match)
    order = {"down": 0, "mid_": 1, "up_b": 2}
    return tuple(sorted(names, key=lambda name: order[name[:4]]))


def levels(blocks: Iterable[str]) -> tuple[str, ...]:
    """The levels that hold more than one of the blocks: "up_blocks.0", …"""
    tops = [block.partition(".attentions")[0] for block in blocks]
    return tuple(dict.fromkeys(top for top in tops if tops.count(top) > 1))


@contextmanager
def injected(unet: nn.Module, block: str, swap: Swap) -> Iterator[None]:
    """Within: the cross-attentions in `block`, and no others, read swap(context) in place of their context.

    block: the dotted name of a block, or of a level with all its blocks. swap: [rows, tokens, width] -> the same shape.
    """

    def exchange(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": swap(kwargs["encoder_hidden_states"])}

    modules = [m for name, m in unet.named_modules() if name.endswith("attn2") and within(name, block)]
    assert modules, f"{block} holds no cross-attention"
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(exchange, with_kwargs=True).remove)
        yield


def prompt_swap(model: Model, first: str, second: str) -> Swap:
    """A swap that turns the context of `first` into that of `second`, and leaves other rows alone.

    Rows are recognised by their context, so it does not matter how calls are packed. Raises RequestError for a prompt
    of more than one chunk.
    """
    asks = model.text.level([TextAsk(first), TextAsk(second)])
    if asks[0].chunks > 1:
        raise RequestError("prompts to probe with must fit into 75 tokens; shorten them")
    mine, other = (embedding.tokens.to(model.dtype) for embedding in model.encode_text(asks))
    nearest = float((mine - other).abs().mean()) / 10

    def swap(context: Tensor) -> Tensor:
        same = (context - mine).abs().mean(dim=(1, 2)) <= nearest  # [rows]
        return torch.where(same[:, None, None], other, context)

    return swap


def probe(
    pipe: StudioPipeline,
    pairs: Sequence[Pair],
    scorer: Scorer,
    settings: ProbeSettings | None = None,
    *,
    progress: Callable[[int], None] = lambda pictures: None,
) -> Probe:
    """Render every pair plain and with the other prompt in each block, score the pictures, and propose a map.

    progress: is told how many more pictures are done. Raises the StudioError that a picture fails with.
    """
    settings = settings or ProbeSettings()
    unet = pipe.model.unet
    blocks = attention_blocks(unet)
    places = (*blocks, *levels(blocks))
    found: dict[str, dict[str, list[float]]] = {place: {"content": [], "style": []} for place in places}
    rows: list[SheetRow] = []
    for pair in pairs:
        swap = prompt_swap(pipe.model, pair.first, pair.second)
        pictures = {
            "A": _render(pipe, pair.first, settings, progress),
            "B": _render(pipe, pair.second, settings, progress),
        }
        for place in places:
            with injected(unet, place, swap):
                pictures[place] = _render(pipe, pair.first, settings, progress)
            moved = scorer.positions(
                pictures[place], pictures["A"], pictures["B"], (pair.first, pair.second), pair.part
            )
            found[place][pair.part] += moved or []
        for index, seed in enumerate(settings.seeds):
            rows.append(SheetRow(pair, seed, {name: some[index] for name, some in pictures.items()}))
    effects = tuple(
        Effect(place, _mean(moved["content"]), _mean(moved["style"])) for place, moved in found.items()
    )
    published = bool(pipe.model.checkpoint.family.block_map)
    return Probe(effects, tuple(rows), propose(effects), scorer.name, published)


def picture_count(pipe: StudioPipeline, pairs: Sequence[Pair], settings: ProbeSettings) -> int:
    """How many pictures a probe renders."""
    blocks = attention_blocks(pipe.model.unet)
    return len(pairs) * len(settings.seeds) * (2 + len(blocks) + len(levels(blocks)))


def propose(effects: Sequence[Effect]) -> dict[str, tuple[str, ...]]:
    """A block map: for each part, the place that moves it most and the other part least.

    The worth of a place is what it moves of its own part, less half of what it moves of the other part, less `GAIN` if
    it is a whole level. The two places must not overlap, and each must move its part by at least `CLEAR`. {} where no
    two places do. The rule is ours.
    """
    known = [effect for effect in effects if effect.content is not None and effect.style is not None]
    best: tuple[float, Effect, Effect] | None = None
    for content in known:
        for style in known:
            if within(content.block, style.block) or within(style.block, content.block):
                continue
            (carried, stray), (other, styled) = _of(content), _of(style)
            if carried < CLEAR or styled < CLEAR:
                continue
            size = sum(GAIN for effect in (content, style) if ".attentions." not in effect.block)
            worth = carried - stray / 2 + styled - other / 2 - size
            if best is None or worth > best[0]:
                best = (worth, content, style)
    return {} if best is None else {"content": (best[1].block,), "style": (best[2].block,)}


def _of(effect: Effect) -> tuple[float, float]:
    """(content, style) of an effect, each bounded to 0 … 1, and 0 where it is not known."""
    return min(max(effect.content or 0.0, 0.0), 1.0), min(max(effect.style or 0.0, 0.0), 1.0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _render(
    pipe: StudioPipeline, prompt: str, settings: ProbeSettings, progress: Callable[[int], None]
) -> Tensor:
    """The pictures of a prompt, one for each seed: [seeds, 3, height, width] in 0 … 1."""
    requests = [
        Request(
            prompt,
            seed=seed,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            width=settings.width,
            height=settings.height,
        )
        for seed in settings.seeds
    ]
    pictures = torch.stack([image.cpu() for image in pipe(requests, output_type="pt").images])
    progress(len(requests))
    return pictures
