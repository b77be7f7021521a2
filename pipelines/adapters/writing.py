"""Factors -> file, the inverse of reading. What is written here, this program and other tools read back exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipelines.adapters.container import safetensors_bytes
from pipelines.adapters.keys import COMPONENTS, TEXT, TEXT_2, UNET
from pipelines.adapters.kinds import flora
from pipelines.adapters.origin import origin_by_metadata
from pipelines.adapters.peft_settings import METADATA_KEY
from pipelines.adapters.terms import Hadamard, LayerFactors, LowRank
from pipelines.errors import RequestError
from pipelines.families.family import SDXL
from pipelines.home.files import write_atomically

Naming = Literal["kohya", "peft"]


def refuse_existing(out: Path, force: bool) -> None:
    """Raises RequestError where no adapter file can be written at `out`. force: overwrite a file that is there."""
    if out.suffix != ".safetensors":
        raise RequestError(f"{out} must end in .safetensors")
    if not out.parent.is_dir():
        raise RequestError(f"the folder {out.parent} does not exist; make it, or choose another place")
    if out.exists() and not force:
        raise RequestError(f"{out} is already there; choose another name, or overwrite it with --force")


def write_lora(
    path: Path,
    layers: Mapping[str, LayerFactors],
    *,
    naming: Naming = "kohya",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write layers ("unet.down_blocks.0…to_q" -> factors) as one safetensors file. Raises OSError, and writes nothing.

    The same layers and metadata give the same bytes.

    naming: "kohya" (sd-scripts' names with diffusers' block names, and alpha = scale * rank beside every layer) or
        "peft" (diffusers' own names, with the alphas in the `lora_adapter_metadata` that diffusers reads). FLoRA layers
        have their own names (`kinds/flora.py`) in either case.
    metadata: modelspec.* and the like.
    """
    assert layers, "an adapter without layers is none"
    texts = dict(metadata or {})
    lowrank = {name: one for name, factors in layers.items() for one in factors.low_rank}
    multiplied = {
        name: factors.multiplier for name, factors in layers.items() if factors.multiplier is not None
    }
    written = [*_kohya(lowrank, texts)] if naming == "kohya" else [*_peft(lowrank)]
    if lowrank and naming == "peft":
        texts[METADATA_KEY] = json.dumps(_peft_settings(lowrank), indent=2, sort_keys=True)
    if multiplied:
        written += _flora(multiplied)
        texts |= flora.METADATA
    texts.setdefault("format", "pt")
    tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in written}
    write_atomically(path, safetensors_bytes(tensors, texts))


def _kohya(layers: Mapping[str, LowRank], metadata: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) pairs under kohya's names: `lora_unet_…` and `lora_te_…`, or `lora_te1_…` in files for SDXL."""
    origin = origin_by_metadata(metadata)
    sdxl = origin is not None and origin.family == SDXL.name
    numbered = sdxl or any(_split(name)[0] == TEXT_2 for name in layers)
    prefixes = {UNET: "lora_unet_", TEXT: "lora_te1_" if numbered else "lora_te_", TEXT_2: "lora_te2_"}
    for name, factors in sorted(layers.items()):
        component, module = _split(name)
        stem = prefixes[component] + _written(component, module).replace(".", "_")
        yield f"{stem}.lora_up.weight", factors.up
        yield f"{stem}.lora_down.weight", factors.down
        yield f"{stem}.alpha", torch.tensor(factors.scale * factors.rank, dtype=torch.float32)


def _peft(layers: Mapping[str, LowRank]) -> Iterator[tuple[str, Tensor]]:
    for name, factors in sorted(layers.items()):
        component, module = _split(name)
        stem = f"{component}.{_written(component, module)}"
        yield f"{stem}.lora_B.weight", factors.up
        yield f"{stem}.lora_A.weight", factors.down


def _flora(layers: Mapping[str, Hadamard]) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) pairs `unet.….flora_in.weight` and `….flora_out.weight`. The scale goes into the latter."""
    for name, factors in sorted(layers.items()):
        component, module = _split(name)
        stem = f"{component}.{_written(component, module)}"
        outer = (
            factors.outer if factors.scale == 1 else (factors.outer.float() * factors.scale).to(factors.outer)
        )
        yield f"{stem}.flora_in.weight", factors.inner
        yield f"{stem}.flora_out.weight", outer


def _peft_settings(layers: Mapping[str, LowRank]) -> dict[str, object]:
    """A LoraConfig's fields for each component, as diffusers packs them: the ranks and alphas of the layers by name."""
    settings: dict[str, object] = {}
    for component in COMPONENTS:
        own = {
            _written(component, module): factors
            for name, factors in sorted(layers.items())
            for part, module in (_split(name),)
            if part == component
        }
        if not own:
            continue
        first = next(iter(own.values()))
        fields = {
            "r": first.rank,
            "lora_alpha": first.scale * first.rank,
            "rank_pattern": {module: f.rank for module, f in own.items() if f.rank != first.rank},
            "alpha_pattern": {
                module: f.scale * f.rank
                for module, f in own.items()
                if f.scale * f.rank != first.scale * first.rank
            },
            "target_modules": list(own),
            "use_rslora": False,
        }
        settings |= {f"{component}.{field}": value for field, value in fields.items()}
    return settings


def _split(name: str) -> tuple[str, str]:
    component, _, module = name.partition(".")
    assert component in COMPONENTS, f"{name!r} does not begin with a component"
    return component, module


def _written(component: str, module: str) -> str:
    """A layer's name as files write it: CLIP layers always under `text_model.`, even if the model has no such part."""
    if component == UNET or module.startswith(("text_model.", "text_projection")):
        return module
    return f"text_model.{module}"
