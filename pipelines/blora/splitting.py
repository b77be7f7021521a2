"""Splits a LoRA into its content blocks and its style blocks, each in a file of its own.

The released B-LoRA code filters the keys of a state dict. It drops alphas, and silently matches nothing in files with
kohya's names. Here the file is read exactly, whatever its naming scheme, and its scales are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.adapters import Adapter, LayerFactors, ModelLayers, read_adapter, write_lora
from pipelines.adapters.peft_settings import METADATA_KEY
from pipelines.adapters.writing import Naming, refuse_existing
from pipelines.blocks import blocks_of, listed, within
from pipelines.errors import AdapterFormatError, AdapterMismatchError, BaseNeeded, RequestError

PARTS = ("content", "style")
_DROPPED = ("sshs_", "modelspec.hash", "modelspec.thumbnail", "ss_tag_frequency", METADATA_KEY, "format")


@dataclass(frozen=True)
class Split:
    """One adapter, split.

    parts: "content" and "style" -> the layers in their blocks. elsewhere: blocks and text encoders that belong to
    neither -> how many layers the adapter has there.
    """

    adapter: Adapter
    parts: Mapping[str, Mapping[str, LayerFactors]]
    elsewhere: Mapping[str, int]

    @property
    def warning(self) -> str:
        """Why the parts may not work as hoped; "" for an adapter that was trained on the two parts' blocks alone."""
        if not self.elsewhere:
            return ""
        return (
            f"{self.adapter.name} was not trained on the content and style blocks alone: {listed(self.elsewhere)} "
            "are left out. The method is shown to work for LoRAs trained on the two blocks jointly; with this one "
            "the parts may carry little, or each other's share"
        )


def split(adapter: Adapter, block_map: Mapping[str, tuple[str, ...]], label: str) -> Split:
    """The adapter's layers by part. block_map: "content" and "style" -> their blocks. label: the model's name.

    Raises RequestError where the map lacks a part, and AdapterMismatchError where the adapter changes none of its
    layers.
    """
    for part in PARTS:
        if not block_map.get(part):
            raise RequestError(
                f"{label} has no map of its {part} blocks, so nothing tells where to split: the published map is "
                "SDXL's. `lora-studio probe-blocks` proposes one for any model; it goes into the model's studio.json"
            )
    parts = {part: _inside(adapter, block_map[part]) for part in PARTS}
    for part, layers in parts.items():
        if not layers:
            raise AdapterMismatchError(
                f"{adapter.report.file} changes nothing in the {part} blocks of {label} "
                f"({', '.join(block_map[part])}); it has {listed(blocks_of(adapter.layers))}"
            )
    kept = {name for layers in parts.values() for name in layers}
    left = [name for name in adapter.layers if name not in kept]
    text = Counter(name.partition(".")[0] for name in left if not name.startswith("unet."))
    return Split(adapter, parts, {**dict(sorted(text.items())), **blocks_of(left)})


def split_file(
    file: Path,
    outs: Mapping[str, Path],
    model: ModelLayers,
    block_map: Mapping[str, tuple[str, ...]],
    *,
    naming: Naming = "peft",
    force: bool = False,
) -> Split:
    """Split a LoRA file for `model`, and write the parts. outs: "content", "style" or both -> the file to write.

    naming: "peft" (diffusers' own, alphas in its metadata) or "kohya" (alphas beside the layers). force: overwrite.
    Raises RequestError for a file that cannot be written or a map without a part, AdapterError for a LoRA that cannot
    be split, and NoAnswer.
    """
    for out in outs.values():
        refuse_existing(out, force)
    if len({out.absolute() for out in outs.values()}) < len(outs):
        raise RequestError(f"content and style would both be written to {next(iter(outs.values()))}")
    try:
        adapter = read_adapter(file, model, file.stem)
    except BaseNeeded as error:
        raise AdapterFormatError(
            f"{file.name}: what it changes depends on the base model's weights, which are not read here; make it a "
            "plain LoRA first, with `lora-studio convert`"
        ) from error
    found = split(adapter, block_map, model.label)
    for part, out in outs.items():
        write_lora(out, found.parts[part], naming=naming, metadata=_metadata(adapter, part, model))
    return found


def _inside(adapter: Adapter, blocks: Iterable[str]) -> dict[str, LayerFactors]:
    blocks = tuple(blocks)
    return {
        name: factors
        for name, factors in adapter.layers.items()
        if name.startswith("unet.") and any(within(name.removeprefix("unet."), block) for block in blocks)
    }


def _metadata(adapter: Adapter, part: str, model: ModelLayers) -> dict[str, str]:
    """The metadata of one part's file: the adapter's own, without what no longer holds, and which part it is."""
    kept = {key: text for key, text in adapter.metadata.raw.items() if not key.startswith(_DROPPED)}
    title = adapter.metadata.title or adapter.name
    category = "style" if part == "style" else (adapter.metadata.category or "concept")
    if part == "content" and category == "style":
        category = "concept"
    return {
        "modelspec.architecture": model.family.architecture,
        **kept,
        "modelspec.title": f"{title} ({part})",
        "lora_studio.category": category,
        "lora_studio.part": part,
        "lora_studio.split_from": f"{adapter.report.file} {adapter.report.short_hash}",
    }
