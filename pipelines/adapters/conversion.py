"""An adapter file in the names and the form of another program's files: as plain LoRA, or as the type that it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipelines.adapters.adapter import span
from pipelines.adapters.container import adapter_path
from pipelines.adapters.factors import base_needed, check_types, factors, kinds_of, layer_terms
from pipelines.adapters.keys import COMPONENT, COMPONENTS, some
from pipelines.adapters.kinds import AdapterKind
from pipelines.adapters.kinds.full import DIFF_B, NORM_NAMES
from pipelines.adapters.kinds.kind import PLACES, Format, RawLayer, Written
from pipelines.adapters.kinds.lora import written
from pipelines.adapters.peft_settings import CONFIG_NAME, METADATA_KEY
from pipelines.adapters.plain import Plain, plain
from pipelines.adapters.reading import read_findings
from pipelines.adapters.reporting import Findings
from pipelines.adapters.stated_scales import is_setting
from pipelines.adapters.terms import LayerFactors, LowRank, ModelLayers, Target
from pipelines.adapters.writing import (
    WEIGHTS_NAME,
    file_bytes,
    file_tensors,
    is_numbered,
    packed_settings,
    peft_files,
    refuse_existing,
    shared_tensors,
)
from pipelines.errors import AdapterFormatError, BaseNeeded, RequestError, SetupError
from pipelines.families.family import SDXL
from pipelines.home.files import write_atomically, write_together

_NO_LONGER_TRUE = ("sshs_", "modelspec.hash", "flora.", "lora_studio.kind", COMPONENT, "format")
"""How metadata begin that speak of the file as it was."""


@dataclass(frozen=True)
class Conversion:
    """What was written. A layer's error is what its factors lack, as a part of its change (Frobenius norms).

    files: the files. kind: the types of the original. layers: how many were written. ranks: layer -> rank, where it has
    one. errors: layer -> error, of those that are approximated. error: of all layers together. left_out: what was not
    written, a sentence each. notes: what was said when the file was read.
    """

    files: tuple[Path, ...]
    kind: str
    layers: int
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """What was done, for people."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        exact = self.layers - len(self.errors)
        ranks = [rank for name, rank in self.ranks.items() if name not in self.errors]
        if exact:
            yield f"{_layers(exact, self.kind)} written exactly" + (
                f", rank {span((min(ranks), max(ranks)))}" if ranks else ""
            )
        if self.errors:
            worst, error = max(self.errors.items(), key=lambda item: item[1])
            ranks = [self.ranks[name] for name in self.errors]
            yield (
                f"{_layers(len(self.errors), self.kind)} approximated, rank {span((min(ranks), max(ranks)))}: "
                f"the relative error is {self.error:.2g} over all layers, and {error:.2g} in the worst one, {worst}"
            )
        yield from self.left_out
        yield from self.notes


def _layers(count: int, kind: str) -> str:
    return f"1 layer of {kind} is" if count == 1 else f"{count} layers of {kind} are"


def convert(
    path: Path,
    out: Path,
    model: ModelLayers,
    to: Format,
    *,
    rank: int | None = None,
    keep: bool = False,
    force: bool = False,
) -> Conversion:
    """Write an adapter file, or folder, as another program has it.

    out: a .safetensors file, or for PEFT a folder. model: the one that the file is for, with its weights where the
        change depends on them.
    rank: the highest rank, None to choose one for each layer (`pipelines.adapters.plain`). keep: write the types that
        the file has, not plain LoRA. force: overwrite files; the original never.
    Raises RequestError for an `out` that cannot be taken, AdapterError for a file that cannot be read or written so
    (BaseNeeded where the model's weights are missing), SetupError where the disk refuses, and NoAnswer.
    """
    path = adapter_path(path)
    _check_out(path, out, to, force=force)
    found = read_findings(path, model)
    work = _kept(found, model, to) if keep else _as_lora(found, model, to, rank)
    if not work.layers:
        raise AdapterFormatError(
            f"{path.name}: {PLACES[to]} can hold nothing of it: {'; '.join(work.left_out)}; choose another --to"
        )
    left_out = [*work.left_out]
    if found.bundled and to != "kohya":
        left_out.append(
            f"embeddings that come with it are left out, as {PLACES[to]} have none: {some(found.bundled)}"
        )
    if found.orphans:
        left_out.append(f"{len(found.orphans)} alpha values without factors are left out")
    total = sum(one.size**2 for one in work.plain.values()) ** 0.5
    lost = sum(one.lost**2 for one in work.plain.values()) ** 0.5
    done = Conversion(
        files=(),
        kind=" + ".join(sorted(work.kinds)),
        layers=len(work.layers),
        ranks={name: layer.change.rank for name, layer in work.plain.items() if layer.change is not None},
        errors={name: layer.error for name, layer in work.plain.items() if not layer.exact},
        error=lost / total if total else 0.0,
        left_out=tuple(left_out),
        notes=found.notes,
    )
    texts = _metadata(found, model, done, to)
    return replace(done, files=_write(out, work, found, texts, model, to, force=force))


@dataclass(frozen=True)
class _Work:
    """layers: what is written. plain: their factors, as plain LoRA. kinds: the names of the original's types."""

    layers: Mapping[str, Written]
    kinds: frozenset[str]
    plain: Mapping[str, Plain]
    shared: Mapping[str, Tensor]
    left_out: tuple[str, ...] = ()


# -- what is written -------------------------------------------------------------------------------------


def _as_lora(found: Findings, model: ModelLayers, to: Format, rank: int | None) -> _Work:
    read, kinds = factors(found.raw, model)
    check_types(found.own, kinds)
    layers, made, norms = {}, {}, []
    for component, module in found.raw:
        name = f"{component}.{module}"
        target, change = model.target(component, module), read.pop(name)
        if target.is_norm:
            if to == "kohya":
                layers[name] = _norm(change)
            else:
                norms.append(name)
            continue
        made[name] = plain(change, target, rank)
        layers[name] = _lora(made[name], target, to)
    left_out = (f"norms are left out, as {PLACES[to]} have none: {some(norms)}",) if norms else ()
    return _Work(layers, frozenset(kind.name for kind in kinds.values()), made, {}, left_out)


def _lora(layer: Plain, target: Target, to: Format) -> Written:
    if layer.change is not None:
        return written(layer.change, layer.shift, to)
    assert layer.shift is not None
    if to == "kohya":
        return Written({DIFF_B: layer.shift})
    out, width, *kernel = target.shape  # PEFT has biases of layers with factors only
    nothing = LowRank(torch.zeros(1, width, *kernel), torch.zeros(out, 1, *(1 for _ in kernel)), 1.0)
    return written(nothing, layer.shift, to)


def _norm(factors: LayerFactors) -> Written:
    weight, bias = NORM_NAMES
    whole = factors.whole
    found = {weight: whole, bias: factors.shift}
    return Written({end: tensor for end, tensor in found.items() if tensor is not None})


def _kept(found: Findings, model: ModelLayers, to: Format) -> _Work:
    layers, kinds, shared = {}, dict[str, AdapterKind](), dict[str, Tensor]()
    for (component, module), layer in found.raw.items():
        target = model.target(component, module)
        own = _checked(layer, target)
        parts = [_by_kind(kind, layer, target, to) for kind in own]
        layers[layer.name] = _joined(parts)
        kinds |= {f"{layer.name} {kind.name}": kind for kind in own}
        shared |= {part: layer.shared[part] for kind in own for part in kind.shared if part in layer.shared}
    check_types(found.own, kinds)
    return _Work(layers, frozenset(kind.name for kind in kinds.values()), {}, shared)


def _by_kind(kind: AdapterKind, layer: RawLayer, target: Target, to: Format) -> Written:
    try:
        return kind.write(layer, target, to)
    except BaseNeeded as error:
        raise base_needed(kind, layer) from error


def _checked(layer: RawLayer, target: Target) -> list[AdapterKind]:
    """A layer's types. Raises AdapterError where its tensors are not sound, as far as can be told without the base."""
    try:
        return layer_terms(layer, target)[0]
    except BaseNeeded:
        return kinds_of(layer)


def _joined(parts: list[Written]) -> Written:
    """What several types write of one layer."""
    first = next((part for part in parts if part.rank is not None), parts[0])
    return Written(
        {end: tensor for part in parts for end, tensor in part.tensors.items()},
        first.rank,
        first.alpha,
        {name: value for part in reversed(parts) for name, value in part.settings.items()},
    )


# -- files -----------------------------------------------------------------------------------------------


def _folder(out: Path, to: Format) -> Path | None:
    """PEFT's folder that is meant; None for a single file."""
    if to != "peft" or (out.suffix == ".safetensors" and out.name != WEIGHTS_NAME):
        return None
    return out.parent if out.name == WEIGHTS_NAME else out


def _check_out(path: Path, out: Path, to: Format, *, force: bool) -> None:
    """Raises RequestError where `out` cannot be taken, or is the original."""
    folder = _folder(out, to)
    if folder is None:
        refuse_existing(out, force)
        taken = [out]
    else:
        if not folder.parent.is_dir():
            raise RequestError(f"the folder {folder.parent} does not exist; make it, or choose another place")
        if os.path.lexists(folder) and not folder.is_dir():
            raise RequestError(f"{folder} is a file, but PEFT's adapters are folders; choose another name")
        folders = [folder, *(folder / component for component in COMPONENTS)]
        taken = [one / name for one in folders for name in (WEIGHTS_NAME, CONFIG_NAME)]
        if any(one.exists() and one.samefile(path.parent) for one in folders):
            raise RequestError(
                f"{folder} is the original's folder, and PEFT needs one of its own; choose another --output"
            )
        if not force and (there := [file for file in taken if os.path.lexists(file)]):
            raise RequestError(
                f"{there[0]} is already there; choose another name, or overwrite it with --overwrite"
            )
    for file in taken:
        if file.exists() and file.samefile(path):
            raise RequestError(f"{file} is the original, which is kept; choose another --output")


def _write(
    out: Path,
    work: _Work,
    found: Findings,
    texts: Mapping[str, str],
    model: ModelLayers,
    to: Format,
    *,
    force: bool,
) -> tuple[Path, ...]:
    folder = _folder(out, to)
    try:
        if folder is not None:
            contents = peft_files(work.layers, work.shared, texts)
            write_together(folder, contents, force=force)
            return tuple(folder / name for name in contents)
        components = {name.partition(".")[0] for name in work.layers}
        if to == "peft" and len(components) > 1:
            raise RequestError(
                f"{out} would hold {' and '.join(sorted(components))}, but a file of PEFT holds one model's layers; "
                "give a folder as --output"
            )
        numbered = model.family is SDXL or is_numbered(work.layers, texts)
        tensors = file_tensors(work.layers, to, numbered=numbered) | shared_tensors(work.shared)
        if to == "kohya":
            for word, keys in found.contents.bundled.items():
                tensors |= {keys[part]: one for part, one in found.bundled.get(word, {}).items()}
        else:
            texts = {**texts, METADATA_KEY: packed_settings(work.layers)}
        if to == "peft":
            texts = {**texts, COMPONENT: next(iter(components))}
        return (write_atomically(out, file_bytes(tensors, texts), force=force),)
    except OSError as error:
        raise SetupError(
            f"{out} cannot be written ({error.strerror or error}); choose another --output"
        ) from error


def _metadata(found: Findings, model: ModelLayers, done: Conversion, to: Format) -> dict[str, str]:
    """The original's metadata, without what no longer holds, and what was done."""
    kept = {
        key: text
        for key, text in found.header.metadata.items()
        if not key.startswith(_NO_LONGER_TRUE) and not is_setting(key)
    }
    return {
        "modelspec.architecture": model.family.architecture,
        **kept,
        "lora_studio.converted_from": f"{found.file} {found.sha256[:12]}",
        "lora_studio.conversion": "; ".join((f"to {to}", *done.lines)),
    }
