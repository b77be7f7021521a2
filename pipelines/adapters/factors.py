"""A layer's tensors -> its factors, by the types that claim it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.adapters.keys import quoted
from pipelines.adapters.kinds import AdapterKind, RawLayer, claimants
from pipelines.adapters.kinds.papers import check_header
from pipelines.adapters.peft_settings import PeftSettings
from pipelines.adapters.reporting import Place
from pipelines.adapters.terms import LayerFactors, ModelLayers, Target, Term, is_finite, terms_of, together
from pipelines.errors import AdapterFileError, AdapterFormatError, BaseNeeded, StudioError


def factors(
    raw: Mapping[Place, RawLayer], model: ModelLayers
) -> tuple[dict[str, LayerFactors], dict[str, AdapterKind]]:
    """(layer name -> factors, layer name -> the first of its adapter types). Raises AdapterError."""
    layers, kinds = {}, {}
    for (component, module), layer in raw.items():
        found, terms = layer_terms(layer, model.target(component, module))
        layers[layer.name], kinds[layer.name] = together(terms), found[0]
    first = next(iter(raw.values()))
    check_header(first.file, first.metadata, sorted({kind.name for kind in kinds.values()}))
    if all(one.scale == 0 for one in layers.values()):
        raise AdapterFormatError(
            f"{first.file}: alpha is 0 in every layer, so it would change nothing; fetch a sound file"
        )
    return layers, kinds


def layer_terms(layer: RawLayer, target: Target) -> tuple[list[AdapterKind], list[Term]]:
    """(the types of a layer, what they make of it). Raises AdapterError."""
    found = kinds_of(layer)
    if target.is_norm and (strange := [kind.name for kind in found if not kind.on_norms]):
        raise AdapterFormatError(
            f"{layer.file}: {next(iter(layer.keys.values()))!r} is {strange[0]} on a norm, which has no meaning; "
            "fetch another edition"
        )
    return found, [term for kind in found for term in _terms(kind, layer, target)]


def _terms(kind: AdapterKind, layer: RawLayer, target: Target) -> tuple[Term, ...]:
    """What a type makes of a layer. Raises AdapterError, also for shapes and numbers that no trainer writes."""
    key = next(iter(layer.keys.values()))
    try:
        terms = terms_of(kind.read(layer, target))
    except BaseNeeded as error:
        raise base_needed(kind, layer) from error
    except StudioError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        raise AdapterFormatError(
            f"{layer.file}: {quoted(key)} and the rest of its layer are no {kind.name}; fetch a sound file"
        ) from error
    made = [value for term in terms for value in vars(term).values() if isinstance(value, Tensor)]
    if not all(is_finite(value) for value in made if value.dtype == torch.float32):
        raise AdapterFileError(
            f"{layer.file}: {quoted(key)} and the rest of its layer hold numbers so large that their product has none; "
            "the training failed or the file is damaged, fetch another"
        )
    return terms


def base_needed(kind: AdapterKind, layer: RawLayer) -> BaseNeeded:
    """The error for a layer whose change cannot be known without the base model's weights."""
    return BaseNeeded(
        f"{layer.file}: {quoted(next(iter(layer.keys.values())))} makes it {kind.name}, whose change depends on the "
        "base model's weights; name the model with --model"
    )


def kinds_of(layer: RawLayer) -> list[AdapterKind]:
    """The types of a layer, in order. Raises AdapterFormatError."""
    found = list(claimants(layer.parts))
    if not found:
        part = next(iter(layer.parts))
        raise AdapterFormatError(
            f"{layer.file}: {layer.keys[part]!r} stands alone, without the rest of its layer; fetch it again"
        )
    return found


def check_types(own: Mapping[str, PeftSettings], kinds: Mapping[str, AdapterKind]) -> None:
    """Raises AdapterFormatError where PEFT's settings name another type than the keys show."""
    for component, settings in own.items():
        found = [kind for layer, kind in kinds.items() if layer.startswith(f"{component}.")]
        if found and settings.stated and not any(settings.kind in kind.peft_types for kind in found):
            raise AdapterFormatError(
                f"{settings.where} says that it is PEFT's {settings.kind}, but the keys are those of "
                f"{found[0].name}; put the settings beside it that belong to it"
            )
