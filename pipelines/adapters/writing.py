"""Layers -> file, the inverse of reading. What is written here, this program and other tools read back exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from pipelines.adapters.container import safetensors_bytes
from pipelines.adapters.keys import COMPONENT, COMPONENTS, TEXT, TEXT_2, UNET, quoted
from pipelines.adapters.kinds import flora
from pipelines.adapters.kinds.full import DIFF, DIFF_B
from pipelines.adapters.kinds.kind import Format, Written
from pipelines.adapters.kinds.lora import written
from pipelines.adapters.origin import origin_by_metadata
from pipelines.adapters.peft_settings import CONFIG_NAME, METADATA_KEY
from pipelines.adapters.plain import exact
from pipelines.adapters.terms import Hadamard, LayerFactors, Several
from pipelines.errors import AdapterFormatError, RequestError
from pipelines.families.family import SDXL
from pipelines.home.files import write_atomically
from pipelines.home.headers import LONGEST_HEADER

Naming = Literal["kohya", "peft"]
"""What users call the formats of single files: "peft" is diffusers'."""
WEIGHTS_NAME = "adapter_model.safetensors"
"""The weights in a folder of PEFT."""


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
    Raises AdapterFormatError for a layer that such a file cannot hold.
    """
    assert layers, "an adapter without layers is none"
    texts = dict(metadata or {})
    to: Format = "kohya" if naming == "kohya" else "diffusers"
    multiplied = {
        name: own
        for name, factors in layers.items()
        if (own := factors.multiplier) is not None and own is factors
    }
    rest = {
        name: _written(path, name, factors, to) for name, factors in layers.items() if name not in multiplied
    }
    tensors = file_tensors(rest, to, numbered=is_numbered(layers, texts))
    if rest and to == "diffusers":
        texts[METADATA_KEY] = packed_settings(rest)
    if multiplied:
        tensors |= dict(_flora(multiplied))
        texts |= flora.METADATA
    write_atomically(path, file_bytes(tensors, texts))


def _written(path: Path, name: str, factors: LayerFactors, to: Format) -> Written:
    change = exact(factors)
    if change is not None:
        return written(change, factors.shift, to)
    if to != "kohya" or factors.multiplier is not None:
        raise AdapterFormatError(
            f"{path.name}: what is done to {name} is not low rank, so this file cannot hold it; make the LoRA a plain "
            "one first, with `lora-studio convert`"
        )
    change = exact(Several(factors.low_rank)) if factors.low_rank else None
    found = dict(written(change, None, to).tensors) if change is not None else {}
    if factors.whole is not None:
        found[DIFF] = factors.whole
    return Written(found if factors.shift is None else found | {DIFF_B: factors.shift})


# -- files -----------------------------------------------------------------------------------------------


def file_tensors(layers: Mapping[str, Written], to: Format, *, numbered: bool) -> dict[str, Tensor]:
    """Key -> tensor. layers: by component and the model's own module name. numbered: whether the text encoders of
    kohya's names have numbers, as in files for SDXL."""
    prefixes = {UNET: "lora_unet_", TEXT: "lora_te1_" if numbered else "lora_te_", TEXT_2: "lora_te2_"}
    found: dict[str, Tensor] = {}
    for name, layer in sorted(layers.items()):
        component, module = split_name(name)
        if to == "kohya":
            stem = prefixes[component] + _spelled(component, module).replace(".", "_")
        elif to == "diffusers":
            stem = f"{component}.{_spelled(component, module)}"
        else:
            stem = f"base_model.model.{module}"
        found |= {f"{stem}.{end}": tensor for end, tensor in layer.tensors.items()}
    return found


def is_numbered(layers: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Whether a file of these layers is for a model with two text encoders."""
    origin = origin_by_metadata(metadata)
    sdxl = origin is not None and origin.family == SDXL.name
    return sdxl or any(split_name(name)[0] == TEXT_2 for name in layers)


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. Raises AdapterFormatError where its header would be larger than any that is read."""
    copies = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    data = safetensors_bytes(copies, {"format": "pt", **metadata})
    if int.from_bytes(data[:8], "little") > LONGEST_HEADER:
        largest = max(metadata, key=lambda key: len(metadata[key]), default="")
        raise AdapterFormatError(
            f"its names and metadata take more than the {LONGEST_HEADER:,} bytes that a header may have; remove some "
            f"of the original's metadata ({quoted(largest)} is the largest)"
        )
    return data


def by_component(layers: Mapping[str, Written]) -> dict[str, dict[str, Written]]:
    """Component -> the model's own module name -> layer."""
    found: dict[str, dict[str, Written]] = {}
    for component in COMPONENTS:
        for name, layer in sorted(layers.items()):
            part, module = split_name(name)
            if part == component:
                found.setdefault(component, {})[module] = layer
    return found


def packed_settings(layers: Mapping[str, Written]) -> str:
    """PEFT's settings of all components, as diffusers packs them into the metadata `lora_adapter_metadata`."""
    fields = {
        f"{component}.{field}": value
        for component, own in by_component(layers).items()
        for field, value in component_settings(own).items()
        if (field, value) != ("peft_type", "LORA")  # diffusers takes this for granted
    }
    return json.dumps(fields, indent=2, sort_keys=True)


def component_settings(layers: Mapping[str, Written]) -> dict[str, object]:
    """The settings of one model's adapter (module -> layer), under PEFT's names.

    Raises AdapterFormatError where the layers need different settings.
    """
    settings: dict[str, object] = {}
    for module, layer in layers.items():
        for field, value in layer.settings.items():
            known = settings.setdefault(field, value)
            if isinstance(known, frozenset) and isinstance(value, frozenset):
                settings[field] = value = known & value
            if settings[field] != value or value == frozenset():
                raise AdapterFormatError(
                    f"{module} needs another value of PEFT's setting {field} than other layers, but it holds for all; "
                    "write the file as plain LoRA, without --keep"
                )
    settings = {
        field: min(value) if isinstance(value, frozenset) else value for field, value in settings.items()
    }
    ranked = {_bare(module): layer for module, layer in layers.items() if layer.rank is not None}
    if ranked:
        lora = settings.get("peft_type") == "LORA"
        first = next(iter(ranked.values()))
        alphas = {module: _alpha(layer) for module, layer in ranked.items()}
        settings |= {
            "r": first.rank,
            "lora_alpha" if lora else "alpha": _alpha(first),
            "rank_pattern": {
                module: layer.rank for module, layer in ranked.items() if layer.rank != first.rank
            },
            "alpha_pattern": {module: alpha for module, alpha in alphas.items() if alpha != _alpha(first)},
        }
        if lora:
            biased = any("lora_B.bias" in layer.tensors for layer in ranked.values())
            settings |= {"use_rslora": False, **({"lora_bias": True} if biased else {})}
    settings.setdefault("target_modules", [_bare(module) for module in layers])
    return settings


def _alpha(layer: Written) -> float:
    return float(
        f"{0.0 if layer.alpha is None else layer.alpha:.15g}"
    )  # without the last bits of scale * rank


def peft_files(
    layers: Mapping[str, Written], shared: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, str | bytes]:
    """Relative path -> content of PEFT's folder, or of one such folder for each component where there are several."""
    parts = by_component(layers)
    files: dict[str, str | bytes] = {}
    for component, own in parts.items():
        folder = "" if len(parts) == 1 else f"{component}/"
        named = {f"{component}.{module}": layer for module, layer in own.items()}
        tensors = file_tensors(named, "peft", numbered=False) | shared_tensors(shared)
        settings = {"base_model_name_or_path": None, "inference_mode": True, **component_settings(own)}
        files[f"{folder}{WEIGHTS_NAME}"] = file_bytes(tensors, {**metadata, COMPONENT: component})
        files[f"{folder}{CONFIG_NAME}"] = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    return files


def shared_tensors(shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Key -> tensor of what all layers of a file share, as PEFT names it."""
    return {f"base_model.{part}": tensor for part, tensor in shared.items()}


def _flora(layers: Mapping[str, Hadamard]) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) pairs `unet.….flora_in.weight` and `….flora_out.weight`. The scale goes into the latter."""
    for name, factors in sorted(layers.items()):
        component, module = split_name(name)
        stem = f"{component}.{_spelled(component, module)}"
        outer = (
            factors.outer if factors.scale == 1 else (factors.outer.float() * factors.scale).to(factors.outer)
        )
        yield f"{stem}.flora_in.weight", factors.inner
        yield f"{stem}.flora_out.weight", outer


def split_name(name: str) -> tuple[str, str]:
    """(component, module) of a layer."""
    component, _, module = name.partition(".")
    assert component in COMPONENTS, f"{name!r} does not begin with a component"
    return component, module


def _spelled(component: str, module: str) -> str:
    """A layer's name as files write it: CLIP layers always under `text_model.`, even if the model has no such part."""
    if component == UNET or module.startswith(("text_model.", "text_projection")):
        return module
    return f"text_model.{module}"


def _bare(module: str) -> str:
    """A layer's name as settings write it, which match the ends of names: models have `text_model` or not."""
    return module.removeprefix("text_model.")
