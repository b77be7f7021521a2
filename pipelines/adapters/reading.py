"""File -> Adapter: every layer is read exactly, or an error names the file, the key and the remedy.

The model is not touched here, so a refused file leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipelines.adapters.adapter import Adapter
from pipelines.adapters.container import Header, adapter_path, read_header, read_tensors
from pipelines.adapters.factors import check_types, factors
from pipelines.adapters.keys import Contents, quoted, some, sort_keys
from pipelines.adapters.kinds import INTEGERS, OUTPUTS, RANKS, RawLayer
from pipelines.adapters.kinds.starts import Start
from pipelines.adapters.metadata import describe
from pipelines.adapters.origin import Origin, foreign, origin_of
from pipelines.adapters.peft_settings import PeftSettings, peft_settings
from pipelines.adapters.placing import Part, placed
from pipelines.adapters.reporting import Findings, Place, aside_notes, report
from pipelines.adapters.sidecars import read_sidecars
from pipelines.adapters.starts import changed, check_starts, start_folder, start_notes
from pipelines.adapters.stated_scales import Layer, settled
from pipelines.adapters.terms import ModelLayers, is_finite
from pipelines.errors import AdapterFileError, AdapterFormatError, AdapterMismatchError
from pipelines.families.family import FamilyName
from pipelines.home.lookup import note_on
from pipelines.home.plain import reading


def read_adapter(path: Path, model: ModelLayers, name: str, *, family: FamilyName | None = None) -> Adapter:
    """Read an adapter file for a model, all of it.

    path: a .safetensors file, or a folder that PEFT or diffusers wrote.
    name: the name that the adapter gets.
    family: what the file was made for by the user's word, where its metadata is wrong.
    Raises AdapterFileError, AdapterFormatError or AdapterMismatchError where any of it cannot be used, and NoAnswer.
    """
    path = adapter_path(path)
    with reading(f"{path.name}:", AdapterFileError, "fetch it again"):
        found = _findings(path, model, family)
        layers, kinds = factors(found.raw, model)
        check_types(found.own, kinds)
        metadata = describe(found.header.metadata, read_sidecars(path))
        return Adapter(
            name, layers, metadata, report(name, model, found, layers, kinds, metadata), found.bundled
        )


def read_findings(path: Path, model: ModelLayers, *, family: FamilyName | None = None) -> Findings:
    """What an adapter file holds for each layer of a model, before anything is made of it. Raises as `read_adapter`."""
    path = adapter_path(path)
    with reading(f"{path.name}:", AdapterFileError, "fetch it again"):
        return _findings(path, model, family)


def _findings(path: Path, model: ModelLayers, family: FamilyName | None) -> Findings:
    header = read_header(path)
    contents = sort_keys(header.tensors)
    if contents.foreign:  # a type that is not applied is no news about a file for another kind of model
        _refuse_foreign(path.name, contents, model)
    own = _settings(path, header, contents)
    _refuse_unsupported(path.name, contents)
    check_starts(path, own)
    origin = _checked_origin(path.name, contents, header, model, family)
    places, aside = placed(path.name, contents, header, model)
    tensors, digest = read_tensors(path, header)
    settings, scale_notes = settled(
        path, header.metadata, own, _lowrank(places, tensors), peft=any("lora_B" in key for key in tensors)
    )
    shared = {part: _checked(path.name, part, key, tensors[key]) for part, key in contents.shared.items()}
    starts = _starts(path, own, places, model)
    raw = {
        place: replace(
            _raw_layer(path.name, place, parts, tensors, settings, own, header.metadata, shared),
            start=starts.get(place),
        )
        for place, parts in places.items()
    }
    orphans = [place for place, layer in raw.items() if set(layer.parts) == {"alpha"}]
    for place in orphans:
        del raw[place]
    if not raw:
        raise AdapterFormatError(
            f"{path.name}: only alpha values, no factors: it would change nothing; fetch it again"
        )
    bundled, left_out = _bundled(contents, tensors)
    notes = (
        *filter(None, [note_on(path)]),
        *aside_notes(aside, contents),
        *scale_notes,
        *start_notes(own),
        *left_out,
    )
    return Findings(
        path.name, header, contents, origin, raw, settings, own, tuple(orphans), digest, bundled, notes
    )


MOST_BUNDLED = 64 * 2**20
"""Most bytes of the embeddings that come with an adapter; one of 75 vectors takes 600 kB."""


def _bundled(
    contents: Contents, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], tuple[str, ...]]:
    """(word -> name of a tensor -> tensor, a note on those left out): as many as take `MOST_BUNDLED` together."""
    found, left_out, size = dict[str, dict[str, Tensor]](), list[str](), 0
    for word, own in contents.bundled.items():
        needed = sum(tensors[key].nbytes for key in own.values())
        if size + needed > MOST_BUNDLED:
            left_out.append(word)
            continue
        size += needed
        found[word] = {part: tensors[key] for part, key in own.items()}
    if not left_out:
        return found, ()
    return found, (
        f"embeddings that come with it (bundle_emb) may take {MOST_BUNDLED >> 20} MiB together; left out, and drawn as "
        f"words: {some(left_out)}",
    )


def _settings(path: Path, header: Header, contents: Contents) -> dict[str, PeftSettings]:
    """PEFT's settings. A type that only they name is said with the key that shows it, where one does."""
    try:
        return peft_settings(path, header.metadata)
    except AdapterFormatError:
        if contents.unsupported is not None and not contents.foreign:
            _refuse_unsupported(path.name, contents)
        raise


def _refuse_foreign(file: str, contents: Contents, model: ModelLayers) -> None:
    """Raises AdapterMismatchError for a file of a kind of model that is not run here."""
    origin = foreign(contents.strangers)
    if origin is not None:
        raise AdapterMismatchError(_made_for(file, origin, model))


def _refuse_unsupported(file: str, contents: Contents) -> None:
    """Raises AdapterFormatError for a type that is recognised but not applied yet. This comes before other checks."""
    if contents.unsupported is not None:
        key, kind = contents.unsupported
        raise AdapterFormatError(
            f"{file}: {quoted(key)} makes it {kind.name}, which is not applied yet: {kind.refusal}"
        )


def _made_for(file: str, origin: Origin, model: ModelLayers) -> str:
    return (
        f"{file}: made for {origin.label} ({origin.detail}); this is {model.label}, {model.family.label}. "
        "Load it with a model of its own family"
    )


def _checked_origin(
    file: str, contents: Contents, header: Header, model: ModelLayers, family: FamilyName | None
) -> Origin:
    """The family that the file was made for. Raises AdapterMismatchError where it is known and not the model's."""
    width = model.unet_config.get("cross_attention_dim")
    # A small model may happen to have the width of another family, which then proves nothing.
    ambiguous = width if isinstance(width, int) and width != model.family.context_width else None
    origin = origin_of(contents, header.tensors, header.metadata, ambiguous_width=ambiguous)
    if family is not None:
        origin = Origin(family, "owner's word", "you say so")
    if origin.family in ("unknown", model.family.name):
        return origin
    metadata = f', or pass family="{model.family.name}" if its metadata is wrong'
    raise AdapterMismatchError(
        _made_for(file, origin, model) + (metadata if origin.evidence == "metadata" else "")
    )


def _lowrank(places: Mapping[Place, Mapping[str, Part]], tensors: Mapping[str, Tensor]) -> Iterator[Layer]:
    """What decides the scale of each layer that has a rank and may have an alpha."""
    for (component, module), parts in places.items():
        ranked = _ranked(parts)
        if ranked is None:
            continue
        shape = tensors[parts[ranked].key.text].shape
        kernel = any(length > 1 for length in shape[2:]) or "mid" in parts
        alpha = tensors[parts["alpha"].key.text] if "alpha" in parts else None
        value = None if alpha is None else float(alpha.flatten()[0].real) if alpha.numel() else 0.0
        yield Layer(component, module, shape[0] if shape else 0, value, kernel, frozenset(parts))


def _ranked(parts: Collection[str]) -> str | None:
    """The part of a layer that tells its rank; None for a type that has none."""
    return next((part for part in RANKS if part in parts), None)


_FINE = (torch.float32, torch.float16, torch.bfloat16)


def _raw_layer(
    file: str,
    place: Place,
    found: Mapping[str, Part],
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, PeftSettings],
    own: Mapping[str, PeftSettings],
    metadata: Mapping[str, str],
    shared: Mapping[str, Tensor],
) -> RawLayer:
    """One layer's tensors, and the scale by PEFT's settings. Raises AdapterError unless all are finite floats.

    own: the settings from their own place; other places tell of low-rank factors alone.
    """
    component, module = place
    texts = {part: one.key.text for part, one in found.items()}
    parts = {
        part: _checked(file, part, texts[part], _third(file, part, one, tensors[one.key.text]))
        for part, one in found.items()
    }
    ranked = _ranked(parts)
    scale = None
    if component in own and ranked != "down":
        scale = own[component].own_scale_of(module)
    elif ranked is not None and parts[ranked].ndim and component in settings:
        scale = settings[component].scale_of(module, int(parts[ranked].shape[0]))
    fields = own[component].fields if component in own else {}
    return RawLayer(file, f"{component}.{module}", parts, texts, scale, metadata, fields, shared)


def _starts(
    path: Path,
    own: Mapping[str, PeftSettings],
    places: Mapping[Place, Mapping[str, Part]],
    model: ModelLayers,
) -> dict[Place, Start]:
    """What the low-rank layers were trained from, where that changed the base. Raises AdapterError and NoAnswer."""
    found: dict[Place, Start] = {}
    stored: dict[Path, dict[Place, tuple[Tensor, Tensor]]] = {}
    for place, parts in places.items():
        start = own[place[0]].start if place[0] in own else ""
        if not changed(start) or "down" not in parts:
            continue
        folder = start_folder(path, start)
        if folder is None:
            found[place] = Start(start)
            continue
        if folder not in stored:
            stored[folder] = _stored_start(adapter_path(folder), model)
        if place not in stored[folder]:
            raise AdapterFormatError(
                f"{path.name}: {quoted(parts['down'].key.text)} is not in its start, {folder.name}, which is another "
                "file's; put the one beside it that it was trained from, or remove the folder"
            )
        found[place] = Start(start, *stored[folder][place])
    return found


def _stored_start(path: Path, model: ModelLayers) -> dict[Place, tuple[Tensor, Tensor]]:
    """(down, up) of each low-rank layer of a start's file. Raises AdapterError and NoAnswer."""
    header = read_header(path)
    file = f"{path.parent.name}/{path.name}"
    places, _ = placed(file, sort_keys(header.tensors), header, model)
    tensors, _ = read_tensors(path, header)

    def half(parts: Mapping[str, Part], part: str) -> Tensor:
        key = parts[part].key.text
        return _checked(file, part, key, _third(file, part, parts[part], tensors[key]))

    return {
        place: (half(parts, "down"), half(parts, "up"))
        for place, parts in places.items()
        if parts.keys() >= {"down", "up"}
    }


def _checked(file: str, part: str, key: str, tensor: Tensor) -> Tensor:
    """The tensor. Raises AdapterError unless it holds finite floats, or whole numbers where its part may."""
    if not tensor.is_floating_point() and (part not in INTEGERS or tensor.is_complex()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise AdapterFormatError(
            f"{file}: {key!r} holds {dtype} instead of floating-point weights; "
            "quantised adapters are not read, fetch the fp16 edition"
        )
    # fp8 has no arithmetic of its own, and what fp64 holds must be finite in fp32 too
    wide = tensor if tensor.dtype in _FINE else tensor.float()
    if tensor.is_floating_point() and not is_finite(wide):
        raise AdapterFileError(
            f"{file}: {key!r} holds NaN or infinity, which would ruin every picture; "
            "the training failed or the file is damaged, fetch another"
        )
    return tensor


def _third(file: str, part: str, found: Part, tensor: Tensor) -> Tensor:
    """The rows of a tensor that are this layer's, where it has those of three. Raises AdapterFormatError."""
    if found.third is None or part not in OUTPUTS:
        return tensor
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise AdapterFormatError(
            f"{file}: {quoted(found.key.text)} {list(tensor.shape)} joins a query, a key and a value, but its rows are "
            "not three times as many; fetch a sound file"
        )
    return tensor.chunk(3)[found.third].contiguous()
