"""The place of every key of a file in a model, and what is done about keys that have none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.adapters.container import Header
from pipelines.adapters.keys import COMPONENT, UNET, Address, Contents, Key, is_handful, quoted, some
from pipelines.adapters.kinds import INPUTS, OUTPUTS
from pipelines.adapters.origin import something_else
from pipelines.adapters.reporting import Place
from pipelines.adapters.spellings import LayerNames, layer_names
from pipelines.adapters.terms import ModelLayers, Target
from pipelines.errors import AdapterFormatError, AdapterMismatchError


@dataclass(frozen=True)
class Part:
    """One tensor of one layer. third: which third of its rows, where the file joins a query, a key and a value."""

    key: Key
    third: int | None = None


def placed(
    file: str, contents: Contents, header: Header, model: ModelLayers
) -> tuple[dict[Place, dict[str, Part]], tuple[str, ...]]:
    """Every key at its place in the model: (component, module) -> part -> where it is; and the few that have none.

    Raises AdapterError where more than a handful have none.
    """
    if contents.unknown and contents.foreign:
        strange = dict.fromkeys((*contents.halves, *contents.unknown))
        raise AdapterFormatError(
            f"{file}: {some(strange)} of {len(header.tensors)} keys follow no adapter format known here; "
            + (something_else(contents.unknown) or "is it a LoRA for Stable Diffusion at all?")
        )
    if not contents.keys:
        extras = ", ".join((*contents.bundled, *contents.bookkeeping)[:3]) or "no tensors at all"
        raise AdapterFormatError(f"{file}: no adapter layers in it ({extras}), so it would change nothing")
    names = layer_names(model)
    by_address: dict[Address, list[Key]] = defaultdict(list)
    for key in contents.keys:
        by_address[key.address].append(key)
    places: dict[Place, dict[str, Part]] = defaultdict(dict)
    homeless: dict[str, bool] = {}  # key -> whether it is the UNet's
    for address, keys in by_address.items():
        found = _place_of(file, address, keys, names, header, model)
        if found is None:
            homeless |= {key.text: UNET in address.components for key in keys}
            continue
        component, modules = found
        for third, module in enumerate(modules):
            for key in keys:
                part = Part(key, third if len(modules) > 1 else None)
                if (other := places[component, module].setdefault(key.part, part)) is not part:
                    raise AdapterFormatError(
                        f"{file}: {quoted(other.key.text)} and {quoted(key.text)} are the same part of "
                        f"{component}.{module}; which one counts cannot be known, remove one of them"
                    )
    if not all(_is_handful(homeless, contents, unet=unet) for unet in (True, False)):
        missing = sorted(
            {part for address in by_address for part in address.components} - set(model.components)
        )
        raise AdapterMismatchError(
            f"{file}: {some(homeless)} of {len(contents.keys)} keys match no layer of {model.label}"
            + (f", which has no {' and no '.join(missing)}" if missing else "")
            + "; the file was made for a model of another layout, load it with that one"
        )
    return places, (*contents.unknown, *homeless)


def _is_handful(homeless: Mapping[str, bool], contents: Contents, *, unet: bool) -> bool:
    """Whether the UNet, or else the text encoders, are whole without their keys that have no place."""
    lost = sum(own == unet for own in homeless.values())
    return is_handful(lost, sum((UNET in key.address.components) == unet for key in contents.keys) - lost)


def _width(target: Target, axis: int) -> int:
    return target.shape[axis] if axis < len(target.shape) else 0


def _place_of(
    file: str, address: Address, keys: Iterable[Key], names: LayerNames, header: Header, model: ModelLayers
) -> tuple[str, tuple[str, ...]] | None:
    """(component, modules) of the layers that an address means, None where the model has none.

    Where the keys do not say which text encoder they mean, the widths decide, then our own metadata. Raises
    AdapterFormatError if both fit.
    """
    found = names.find(address)
    for key in keys:
        output, axis = key.part in OUTPUTS, (OUTPUTS | INPUTS).get(key.part)
        shape = header.tensors[key.text].shape
        if len(found) > 1 and axis is not None and len(shape) > axis:
            found = tuple(
                (component, modules)
                for component, modules in found
                if sum(
                    _width(model.target(component, module), axis)
                    for module in (modules if output else modules[:1])
                )
                == shape[axis]
            )
    if len(found) > 1:  # PEFT's files, one for each encoder, have no place for its name in their keys
        said = header.metadata.get(COMPONENT)
        found = tuple(one for one in found if one[0] == said) or found
    if len(found) > 1:
        raise AdapterFormatError(
            f"{file}: {quoted(next(iter(keys)).text)} does not say which text encoder it means and fits both; "
            "put `text_encoder.` or `text_encoder_2.` before such keys"
        )
    return found[0] if found else None
