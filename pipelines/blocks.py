"""Strengths by block, for any adapter on any model: block lists, presets and vectors of numbers.

    up_blocks.1@0.5,mid_block@1     blocks by name; what is not listed is at 0
    content, style                  the model's own block map (see B-LoRA)
    ALL NONE INALL OUTALL           everything, nothing, all blocks on the way in, all on the way out
    INS IND MIDD OUTD OUTS          shallow or deep half of the way in; deep halves and middle; deep or shallow way out
    IN04, M00, OUT05                one block, by its number in the original code
    1,0,0,0,1,1,1,1,…               one number a block, as the LoRA Block Weight extension takes them

A vector has BASE, the factor on the text encoder, and then one number for each numbered block ("LoCon": 26 numbers
for SD1.x, 20 for SDXL) or for each block with attention and the middle ("LoRA": 17 and 12). In the shorter form, the
blocks without attention are at 0.

Presets and vectors leave the layers outside the numbered blocks (time embedding, output convolution) at 1. With NONE,
a single block, a block list, content and style, these layers are at 0. NONE, a single block, content and style also
switch the text encoder's part off (`pipelines.text.tags`).

INS … OUTS take the blocks without attention along with their neighbours, so that LoCon files are halved at the same
places. For adapters on attention alone, they are the extension's own presets. A block at 0 acts as if its keys were not
in the file.

Source: https://github.com/hako-mikan/sd-webui-lora-block-weight (block numbers, lengths, presets).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from composers.plan import Use
from composers.shown import shown
from pipelines.errors import PromptError, RequestError
from pipelines.families.unet_names import sgm_names
from pipelines.text.tags import PARTS, PRESETS

Blocks = tuple[tuple[str, float], ...]

_MEMBER = re.compile(
    r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.(?:attentions|resnets|downsamplers|upsamplers)\.\d+"
)


@dataclass(frozen=True)
class Layout:
    """What must be known of a model, and of the adapters loaded on it, to speak of blocks.

    label: what messages call the model. block_map: "@content" and "@style" -> the model's own block names.
    unet_layers: dotted names of the UNet's layers. adapter_layers: adapter -> the layers that it changes, as "unet.…".
    Where either is not known, it is left out, and nothing is checked against it.
    """

    label: str
    block_map: Mapping[str, tuple[str, ...]]
    unet_layers: Collection[str] = ()
    adapter_layers: Mapping[str, Collection[str]] | None = None

    @cached_property
    def numbered(self) -> dict[str, tuple[str, ...]]:
        """Block id ("IN00", "M00", "OUT11") -> the dotted names of its members. The ids are in the order they run."""
        found: dict[str, dict[str, None]] = {}
        names = sgm_names(self.unet_layers)
        for module, sgm in names.items():
            side, _, rest = sgm.partition(".")
            number = rest.partition(".")[0]
            if side == "middle_block":
                found.setdefault("M00", {})["mid_block"] = None
            elif side in ("input_blocks", "output_blocks"):
                block = f"{'IN' if side == 'input_blocks' else 'OUT'}{int(number):02d}"
                found.setdefault(block, {})[block_of(module)] = None
        order = {"I": 0, "M": 1, "O": 2}
        return {
            block: tuple(found[block]) for block in sorted(found, key=lambda block: (order[block[0]], block))
        }

    @property
    def attended(self) -> list[str]:
        """The ids of the middle and of the blocks that hold attention, in the order they run."""
        return [
            block
            for block, members in self.numbered.items()
            if block == "M00" or any(".attentions." in member for member in members)
        ]

    @property
    def loose(self) -> tuple[str, ...]:
        """Dotted names of the layers outside the numbered blocks."""
        inside = [member for members in self.numbered.values() for member in members]
        return tuple(name for name in self.unet_layers if not any(within(name, block) for block in inside))


def within(module: str, block: str) -> bool:
    """Whether a dotted module name lies in a block, on dotted boundaries."""
    return f"{module}.".startswith(f"{block}.")


def block_of(module: str) -> str:
    """The block that holds a layer, as "up_blocks.0.attentions.1"; the layer itself where no such block does."""
    found = _MEMBER.match(module)
    return found[0] if found else module


def blocks_of(layers: Iterable[str]) -> Counter[str]:
    """UNet block -> how many of the layers lie in it, in alphabetical order. Layers not named "unet.…" are left out."""
    inside = (layer.removeprefix("unet.") for layer in layers if layer.startswith("unet."))
    return Counter(dict(sorted(Counter(map(block_of, inside)).items())))


def preset_blocks(name: str, layout: Layout) -> Blocks:
    """The blocks that a preset, a numbered block or a vector means for the model; () is all of them.

    What it means for the text encoder is in the use already (`LoraTag.use`). Raises PromptError for a name that the
    model does not know, for a preset on a model without numbered blocks, and for a vector of another length or with
    anything but finite numbers.
    """
    if name in PRESETS:
        return _preset(name, layout)
    if name in layout.numbered:
        return tuple((member, 1.0) for member in layout.numbered[name])
    if "," in name:
        return _vector(name, layout)
    known = ", ".join([*PARTS, *PRESETS, *layout.numbered])
    raise PromptError(f"lbw={shown(name)} is no block preset of {layout.label}; it knows {known}")


def placed(use: Use, layout: Layout) -> Use:
    """The use with symbolic blocks replaced by the model's own, and every block looked up in the model.

    Raises RequestError for a block that the model lacks, for "@content" and "@style" where the model has no map, and
    for an adapter that changes nothing in the mapped blocks. Raises PromptError as `preset_blocks` does.
    """
    blocks: list[tuple[str, float]] = []
    for name, factor in use.blocks:
        if name.startswith("@") and name not in layout.block_map and name[1:] not in PARTS:
            blocks += [(own, factor * inner) for own, inner in preset_blocks(name[1:], layout)]
            continue
        if name.startswith("@") and name not in layout.block_map:
            raise RequestError(
                f"{layout.label} has no map of its {name[1:]} blocks, so {use.adapter!r} cannot be confined to them: "
                "the published map is SDXL's. `lora-studio probe-blocks` proposes one for any model; it goes "
                "into the model's studio.json"
            )
        own = layout.block_map.get(name, (name,))
        for block in own:
            if layout.unet_layers and not any(within(layer, block) for layer in layout.unet_layers):
                raise RequestError(
                    f"adapter {use.adapter!r}: {layout.label} has no block {block!r}; its blocks are "
                    f"{', '.join(_coarse(layout.unet_layers))}"
                )
        if name.startswith("@"):
            _refuse_empty(use, name, own, layout)
        blocks += [(block, factor) for block in own]
    return replace(use, blocks=tuple(blocks))


def _refuse_empty(use: Use, part: str, blocks: tuple[str, ...], layout: Layout) -> None:
    """Raises RequestError for an adapter without any layer in the blocks."""
    if layout.adapter_layers is None or use.adapter not in layout.adapter_layers:
        return
    has = blocks_of(layout.adapter_layers[use.adapter])
    if not any(within(name, block) for name in has for block in blocks):
        raise RequestError(
            f"adapter {use.adapter!r} changes nothing in the {part[1:]} blocks of {layout.label} "
            f"({', '.join(blocks)}); it has {listed(has)}. Take an adapter that was trained on those blocks"
        )


def listed(blocks: Mapping[str, int]) -> str:
    """Blocks with their numbers of layers, as "up_blocks.0.attentions.0 (80 layers), …". At most eight are named."""
    if not blocks:
        return "no UNet blocks at all"
    told = [f"{block} ({count} layers)" for block, count in list(blocks.items())[:8]]
    return ", ".join(told) + (f" and {len(blocks) - 8} more" if len(blocks) > 8 else "")


def _coarse(layers: Collection[str]) -> list[str]:
    """The names of the UNet's top-level blocks, in alphabetical order."""
    tops = (re.match(r"(down_blocks|up_blocks)\.\d+|mid_block", layer) for layer in layers)
    return sorted({top[0] for top in tops if top})


def _preset(name: str, layout: Layout) -> Blocks:
    if name in ("ALL", "NONE"):
        return PRESETS[name][0]
    ways_in = [block for block in layout.numbered if block.startswith("IN")]
    ways_out = [block for block in layout.numbered if block.startswith("OUT")]
    attended_in = [block for block in layout.attended if block in ways_in]
    attended_out = [block for block in layout.attended if block in ways_out]
    if not attended_in or not attended_out:
        raise PromptError(f"lbw={name}: {layout.label} has no numbered blocks; name the blocks instead")
    deep_in = [b for b in ways_in if b >= attended_in[len(attended_in) // 2]]
    deep_out = [b for b in ways_out if b < attended_out[len(attended_out) // 2]]
    chosen = {
        "INALL": ways_in,
        "INS": [block for block in ways_in if block not in deep_in],
        "IND": deep_in,
        "MIDD": [*deep_in, "M00", *deep_out],
        "OUTD": deep_out,
        "OUTS": [block for block in ways_out if block not in deep_out],
        "OUTALL": ways_out,
    }[name]
    members = [member for block in chosen for member in layout.numbered[block]]
    return tuple((name, 1.0) for name in (*members, *layout.loose))


def _vector(text: str, layout: Layout) -> Blocks:
    """The blocks of a vector: BASE, which is passed over, and one number a block. Raises PromptError."""
    pieces = [piece.strip() for piece in text.split(",")]
    shapes = {1 + len(ids): ids for ids in (list(layout.numbered), layout.attended)}
    if len(pieces) not in shapes:
        counts = " or ".join(map(str, sorted(shapes)))
        raise PromptError(
            f"lbw={shown(text)}: {len(pieces)} numbers, but {layout.label} takes {counts}: "
            f"BASE, {', '.join(shapes[min(shapes)])}"
            + ("" if len(shapes) == 1 else ", or all IN and OUT blocks")
        )
    try:
        _, *numbers = (float(piece) for piece in pieces)
    except ValueError as error:
        raise PromptError(
            f"lbw={shown(text)}: only numbers are read (R, U and X of the extension are random or inherited)"
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise PromptError(f"lbw={shown(text)}: every factor must be a finite number")
    blocks = [
        (member, number)
        for block, number in zip(shapes[len(pieces)], numbers, strict=True)
        for member in layout.numbered[block]
        if number != 0
    ]
    return (*blocks, *((name, 1.0) for name in layout.loose))
