"""What a file is, from its header alone: no tensor is loaded and no model is needed, so that a library of
thousands of files is listed in seconds."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.adapters.adapter import AdapterMetadata, span
from pipelines.adapters.container import WEIGHT_DTYPES, Header, adapter_path, read_header
from pipelines.adapters.keys import COMPONENTS, Address, Contents, sort_keys
from pipelines.adapters.kinds import KINDS, Kind, flora
from pipelines.adapters.metadata import describe
from pipelines.adapters.origin import Origin, origin_of, something_else, text_width
from pipelines.adapters.peft_settings import peft_settings
from pipelines.adapters.sidecars import Sidecars, read_sidecars
from pipelines.errors import AdapterFormatError

_EITHER_TEXT = "text_encoder?"


@dataclass(frozen=True)
class Inspection:
    """What one adapter file is.

    kinds: its types; refused: why it cannot be applied, "" where nothing speaks against it.
    namings: naming schemes. modules: component -> layers; a component that the file leaves open between
        two text encoders is called "text_encoder?".
    ranks: lowest and highest, None where the type has none.
    dtypes: of the weights, the most frequent first.
    origin: the family it was made for, and how that is known.
    text_width: numbers in the text embeddings that it reads, None where none of its layers tells.
    metadata: the file's own and that of the notes beside it; sidecars: those notes, and the preview.
    """

    path: Path
    size: int
    kinds: tuple[str, ...]
    refused: str
    namings: tuple[str, ...]
    modules: Mapping[str, int]
    ranks: tuple[int, int] | None
    dtypes: tuple[str, ...]
    origin: Origin
    text_width: int | None
    metadata: AdapterMetadata
    sidecars: Sidecars

    @property
    def family(self) -> str:
        """ "sd1", "sd2", "sdxl", another family's name, or "unknown"."""
        return self.origin.family

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        metadata = dataclasses.asdict(self.metadata)
        return {
            "path": str(self.path),
            "size": self.size,
            "kinds": list(self.kinds),
            "refused": self.refused,
            "namings": list(self.namings),
            "modules": dict(self.modules),
            "ranks": None if self.ranks is None else list(self.ranks),
            "dtypes": list(self.dtypes),
            "family": self.origin.family,
            "family_label": self.origin.label,
            "evidence": self.origin.evidence,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in metadata.items()},
            "preview": None if self.sidecars.preview is None else str(self.sidecars.preview),
            "sidecars": list(self.sidecars.files),
        }

    def __str__(self) -> str:
        modules = ", ".join(f"{component} {count}" for component, count in self.modules.items()) or "none"
        rank = "" if self.ranks is None else f", rank {span(self.ranks)}"
        rows = {
            "type": f"{' + '.join(self.kinds) or 'unknown'}{rank}, {', '.join(self.dtypes) or 'no weights'}",
            "layers": modules,
            "naming": " + ".join(self.namings),
            "made for": str(self.origin),
            "title": self.metadata.title,
            "triggers": ", ".join(self.metadata.triggers)
            + (f"  (from {self.metadata.trigger_source})" if self.metadata.triggers else ""),
            "category": self.metadata.category,
            "weight": "" if self.metadata.preferred_weight is None else f"{self.metadata.preferred_weight:g}",
            "refused": self.refused,
        }
        lines = [f"{self.path.name}  ({self.size / 2**20:.1f} MB)"]
        return "\n".join([*lines, *(f"  {name:<9} {value}" for name, value in rows.items() if value)])


def inspect_file(path: Path) -> Inspection:
    """Look at one file. Raises AdapterFileError where it is no readable safetensors file at all."""
    path = adapter_path(path)
    header = read_header(path)
    contents = sort_keys(header.tensors)
    layers: dict[Address, dict[str, str]] = defaultdict(dict)
    for key in contents.keys:
        layers[key.address][key.part] = key.text
    kinds = {
        address: kind for address, parts in layers.items() if (kind := _kind_of(frozenset(parts))) is not None
    }
    beside = read_sidecars(path)
    counts = Counter(_component(address) for address in kinds)
    weights = Counter(header.tensors[key.text].dtype for key in contents.keys if key.part != "alpha")
    return Inspection(
        path=path,
        size=header.size,
        kinds=_kind_names(kinds, layers, header),
        refused=_refusal(path, header, contents, kinds),
        namings=contents.namings,
        modules={part: counts[part] for part in (*COMPONENTS, _EITHER_TEXT) if counts[part]},
        ranks=_ranks(layers, header),
        dtypes=tuple(WEIGHT_DTYPES.get(dtype, dtype) for dtype, _ in weights.most_common()),
        origin=origin_of(contents, header.tensors, header.metadata),
        text_width=text_width(contents, header.tensors),
        metadata=describe(header.metadata, beside),
        sidecars=beside,
    )


@functools.cache  # a handful of combinations, asked for every layer of every file
def _kind_of(parts: frozenset[str]) -> Kind | None:
    return next((kind for kind in KINDS if kind.claims(parts)), None)


def _kind_names(
    kinds: Mapping[Address, Kind], layers: Mapping[Address, Mapping[str, str]], header: Header
) -> tuple[str, ...]:
    """The types in the file, the most frequent first; LoRA with kernels larger than 1x1 is called LoCon."""
    counts = Counter(kind.name for kind in kinds.values())
    kernels = [header.tensors[parts["down"]].shape[2:] for parts in layers.values() if "down" in parts]
    convolutional = any(kernel not in ((), (1, 1)) for kernel in kernels) or any(
        "mid" in p for p in layers.values()
    )
    return tuple("LoCon" if name == "LoRA" and convolutional else name for name, _ in counts.most_common())


def _refusal(path: Path, header: Header, contents: Contents, kinds: Mapping[Address, Kind]) -> str:
    """Why no model of ours could take the file, as far as the header tells; "" where one might."""
    refused = {kind.name: kind.refusal for kind in kinds.values() if kind.refusal}
    if refused:
        return f"{' and '.join(refused)} not applied yet: {next(iter(refused.values()))}"
    if contents.unknown:
        first = contents.unknown[0]
        what = something_else(contents.unknown) or "no adapter format known here"
        return f"{len(contents.unknown)} keys not understood ({first!r}): {what}"
    if not kinds:
        return "no adapter layers in it"
    try:
        peft_settings(path, header.metadata)
        if any(kind.name == "FLoRA" for kind in kinds.values()):
            flora.mean_of(path.name, header.metadata)
    except AdapterFormatError as error:
        return str(error)
    return ""


def _component(address: Address) -> str:
    return address.components[0] if len(address.components) == 1 else _EITHER_TEXT


def _ranks(layers: Mapping[Address, Mapping[str, str]], header: Header) -> tuple[int, int] | None:
    shapes = [
        header.tensors[parts[half]].shape
        for parts in layers.values()
        for half in ("down", "inner")  # their first axis is the rank
        if half in parts
    ]
    ranks = [shape[0] for shape in shapes if shape]
    return (min(ranks), max(ranks)) if ranks else None
