"""The scale of layers without an alpha, where PEFT's settings are not in their own place.

Other writers put them elsewhere: PEFT's fields one by one into the safetensors metadata ("lora_alpha", "unet.r"), all
of them as JSON into one entry, or kohya's "ss_network_alpha" and "ss_network_dim". What they say is used if it is one
thing, and if the ranks that it gives are those of the tensors. Else the scale is 1, and a note gives both numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from composers.shown import shown
from pipelines.adapters.adapter import span
from pipelines.adapters.keys import COMPONENTS
from pipelines.adapters.kinds import FLAGGED, PEFT_DEFAULT
from pipelines.adapters.peft_settings import (
    CONFIG_NAME,
    LARGEST_ALPHA,
    METADATA_KEY,
    MalformedSettings,
    PeftSettings,
    by_component,
    config_beside,
    of_one_adapter,
    settings_object,
)
from pipelines.adapters.sidecars import MOST_SAID
from pipelines.adapters.starts import refuse_starts
from pipelines.errors import AdapterFormatError, StudioError
from pipelines.home.plain import read_json

_JSON_PLACES = ("peft_config", "lora_config", "adapter_config", "LoraConfig")
_LOOSE_PLACES = ("config", "training_args", "ot_config")
"""Entries that may hold anything: they count where they are JSON objects."""
_SCALES = ("lora_scale", "scaling")
_FIELDS: Mapping[str, str] = {
    **{name: name for name in ("lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora",
                               "init_lora_weights", "peft_type", *FLAGGED)},
    "alpha": "lora_alpha", "network_alpha": "lora_alpha",
    "lora_r": "r", "rank": "r", "lora_rank": "r", "network_dim": "r", "lora_dim": "r",
}  # fmt: skip
"""What metadata may call a field of a LoraConfig -> its name there."""


@dataclass(frozen=True)
class Layer:
    """One low-rank layer, for its scale. rank: of its tensors. alpha: the file's own, None where it has none.

    kernel: whether its kernel is larger than 1x1. parts: which it has.
    """

    component: str
    module: str
    rank: int
    alpha: float | None
    kernel: bool = False
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stated:
    """What one place says. place: its name, for notes.

    certain: whether it is about this file. kernels: whether it is about layers with larger kernels than 1x1.
    odd: why it cannot be used, "" where it can.
    """

    place: str
    settings: Mapping[str, PeftSettings] = field(default_factory=dict)
    certain: bool = True
    kernels: bool = True
    odd: str = ""

    def scale(self, layer: Layer) -> float | None:
        own = self.settings.get(layer.component)
        return None if own is None else own.scale_of(layer.module, layer.rank)

    def fits(self, layers: Iterable[Layer]) -> bool:
        """Whether the ranks that it gives, and the alphas, are those of the file; without a rank, all have one."""
        layers = [layer for layer in layers if layer.component in self.settings]
        for layer in layers:
            own = self.settings[layer.component]
            rank, alpha = own.rank_of(layer.module), own.alpha_of(layer.module)
            if rank is not None and rank != layer.rank:
                return False
            if layer.alpha is not None and alpha is not None and layer.alpha != alpha:
                return False
        unstated = {
            layer.rank for layer in layers if self.settings[layer.component].rank_of(layer.module) is None
        }
        kernels = self.kernels or not any(layer.kernel for layer in layers)
        return self.certain and kernels and len(unstated) < 2

    def said(self) -> str:
        """Its numbers, for notes: "lora_alpha 8, r 16"."""
        own = list(dict.fromkeys(_numbers(one) for one in self.settings.values()))
        return f"{self.place} says {' and '.join(own)}"


def _numbers(own: PeftSettings) -> str:
    words = ["no alpha" if own.alpha is None else f"alpha {own.alpha:g}"]
    words += [] if own.rank is None else [f"rank {own.rank}"]
    words += ["rsLoRA"] if own.rslora else []
    return ", ".join(words)


def stated_in(path: Path, metadata: Mapping[str, str]) -> tuple[Stated, ...]:
    """What the metadata of a file say of its scale in places other than PEFT's own.

    Raises AdapterFormatError for settings that call for something that is not applied.
    """
    found = [
        _stated(f"its {name}", partial(_json, path.name, name, metadata[name]))
        for name in _JSON_PLACES
        if name in metadata
    ]
    for name in _LOOSE_PLACES:
        if isinstance(fields := _value(metadata.get(name, "")), dict):
            found.append(_stated(f"its {name}", partial(_named, f"{path.name}: {name}", fields)))
    found.append(_stated("its header", partial(_flat, path.name, metadata)))
    found.append(Stated(_KOHYA, _kohya(metadata), kernels="conv_" not in metadata.get("ss_network_args", "")))
    for one in found:
        refuse_starts(one.settings)
    told = tuple(one for one in found if one.odd or any(_tells(own) for own in one.settings.values()))
    alpha = _number(metadata.get("ss_network_alpha", ""))
    if told or alpha is None:
        return told
    return (Stated(_KOHYA, dict.fromkeys(COMPONENTS, PeftSettings(alpha=alpha)), certain=False),)


def is_setting(name: str) -> bool:
    """Whether a name in the metadata of a file is that of a setting of PEFT, or of a place of such settings."""
    component, dot, field = name.rpartition(".")
    own = field in (*_FIELDS, *_SCALES) and (not dot or component in COMPONENTS)
    return own or name in (METADATA_KEY, *_JSON_PLACES)


def _beside(path: Path) -> tuple[Stated, ...]:
    """What an adapter_config.json says that may be this file's, or another's."""
    place = f"the {CONFIG_NAME} beside it"
    try:
        own = config_beside(path)
        refuse_starts(own)
    except AdapterFormatError as error:
        return (Stated(place, certain=False, odd=str(error)),)
    return (Stated(place, own, certain=False),) if any(_tells(one) for one in own.values()) else ()


def _stated(place: str, read: Callable[[], Mapping[str, PeftSettings]]) -> Stated:
    try:
        return Stated(place, read())
    except MalformedSettings as error:
        return Stated(place, odd=str(error))


def _json(file: str, name: str, text: str) -> dict[str, PeftSettings]:
    fields = settings_object(file, name, text)
    inner = fields.get("default")
    return _named(f"{file}: {name}", inner if isinstance(inner, dict) else fields)


def _named(where: str, fields: Mapping[str, Any]) -> dict[str, PeftSettings]:
    """By component, the fields under PEFT's names, whichever they have here."""
    fields = of_one_adapter(fields)
    named = _renamed(fields)
    for part in COMPONENTS:
        if isinstance(own := fields.get(part), dict):
            named[part] = _renamed(own)
    return by_component(where, named)


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    if str(fields.get("peft_type") or PEFT_DEFAULT).removeprefix("PeftType.").upper() != PEFT_DEFAULT:
        return dict(fields)
    named: dict[str, Any] = {}
    for key, value in fields.items():
        component, dot, name = key.rpartition(".")
        if name in _FIELDS and (not dot or component in COMPONENTS) and value is not None:
            if isinstance(value, str):
                value = _value(value)
            named.setdefault(f"{component}{dot}{_FIELDS[name]}", value)
    return named


def _scale_alone(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """A note on a scale that is stated without alpha and rank."""
    for name in _SCALES:
        scale = _number(metadata.get(name, ""))
        if scale is not None and scale != 1:
            return (
                f"layers without an alpha are used at scale 1, though its {name} says scale {scale:g}: it is not "
                "certain that this is about these layers",
            )
    return ()


_ALPHA = re.compile(
    r"(?:.{0,80}[._])?(?:lora|network|linear|adapter|peft|lokr|loha)[._]?alpha", re.IGNORECASE
)
"""What else an alpha may be called."""
_MOST_LOOKED_AT = 10_000
"""Most values among which alphas are looked for."""


def _hinted(metadata: Mapping[str, str]) -> dict[str, float]:
    """Alphas in places that are not known: name -> alpha. What they are about is not certain."""
    found: dict[str, float] = {}
    pending: list[tuple[str, Any]] = [
        (name, text if _ALPHA.fullmatch(name) else _value(text) if text.lstrip().startswith("{") else None)
        for name, text in metadata.items()
        if not name.startswith("ss_")
    ]
    for name, value in islice(_all_of(pending), _MOST_LOOKED_AT):
        if _ALPHA.fullmatch(name.rpartition(": ")[2]) and (alpha := _number(str(value)[:50])) is not None:
            found[name] = alpha
    return found


def _all_of(pending: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """All values with their names, those within objects too."""
    while pending:
        name, value = pending.pop()
        yield name, value
        if isinstance(value, dict):
            pending += [(f"{name}: {inner}", one) for inner, one in value.items()]


def _told(hinted: Mapping[str, float], bare: Sequence[Layer]) -> tuple[str, ...]:
    """A note on alphas in unknown places, where some would give another scale than 1."""
    ranks = {float(layer.rank) for layer in bare}
    said = [f"{shown(name)} says alpha {alpha:g}" for name, alpha in hinted.items() if {alpha} != ranks]
    if not said:
        return ()
    return (
        f"layers without an alpha are used at scale 1, though its {' and '.join(said[:3])} (their rank is "
        f"{_range(ranks)}): it is not certain that this is about these layers",
    )


_KOHYA = "its ss_network_alpha"


def _tells(own: PeftSettings) -> bool:
    return own.alpha is not None or bool(own.alpha_pattern) or own.rslora


def _flat(file: str, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """PEFT's fields that stand in the metadata one by one, perhaps with the component before each."""
    fields: dict[str, Any] = {}
    for key, text in metadata.items():
        component, dot, name = key.rpartition(".")
        if name in _FIELDS and (not dot or component in COMPONENTS):
            fields.setdefault(f"{component}{dot}{_FIELDS[name]}", _value(text))
    common = {name: value for name, value in fields.items() if "." not in name}
    if not common.keys() & {"lora_alpha", "r", "peft_type", "init_lora_weights"} and len(common) == len(
        fields
    ):
        return {}
    shared = {f"{component}.{name}": value for component in COMPONENTS for name, value in common.items()}
    return by_component(f"{file}: its header", shared | {k: v for k, v in fields.items() if "." in k})


def _value(text: str) -> Any:
    """A metadata's text as JSON, else as it stands."""
    try:
        return read_json(text, "", most=MOST_SAID, mended=True)
    except StudioError:
        return {"None": None, "True": True, "False": False}.get(text.strip(), text)


def _kohya(metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """sd-scripts' record of its training. It counts as nothing where it holds no numbers ("Dynamic", "None")."""
    alpha, rank = (_number(metadata.get(name, "")) for name in ("ss_network_alpha", "ss_network_dim"))
    if alpha is None or rank is None:
        return {}
    return dict.fromkeys(COMPONENTS, PeftSettings(alpha=alpha, rank=int(rank)))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= LARGEST_ALPHA else None


def settled(
    path: Path,
    metadata: Mapping[str, str],
    own: Mapping[str, PeftSettings],
    layers: Iterable[Layer],
    *,
    peft: bool,
) -> tuple[Mapping[str, PeftSettings], tuple[str, ...]]:
    """(component -> the settings that give the scale of layers without an alpha, notes on it).

    own: PEFT's settings from their own place, {} where there are none. peft: whether the file's keys are PEFT's.
    Raises AdapterFormatError for settings that call for something that is not applied.
    """
    layers = [layer for layer in layers if layer.rank]
    bare = [layer for layer in layers if layer.alpha is None]
    _check_flags(own, layers)
    if own and all(one.kind != PEFT_DEFAULT for one in own.values()):
        return own, ()  # their scales follow other rules
    if own:
        notes = (*_mismatched(own, layers), *_unstated("its settings", own, bare))
        return own, (*notes, *_contradicted([Stated("its settings", own)], layers))
    found = (*stated_in(path, metadata), *(_beside(path) if bare else ()))
    for one in found:
        if one.certain:
            _check_flags(one.settings, layers)
    odd = tuple(f"scale 1 is used: {one.odd}" for one in found if one.odd and bare)
    stated = [one for one in found if not one.odd]
    if odd or not stated:
        hinted = _hinted(metadata) if bare and not odd else {}
        alone = (_scale_alone(metadata) or _told(hinted, bare)) if bare else ()
        unseen = peft and bare and len(bare) == len(layers) and not hinted
        return {}, odd or alone or ((UNSEEN,) if unseen else ())
    if not bare:
        return {}, tuple(_contradicted(stated, layers))
    would = [{scale for one in stated if (scale := one.scale(layer)) is not None} for layer in bare]
    scales = set().union(*would)
    if scales <= {1.0}:
        return {}, tuple(note for one in stated for note in _unstated(one.place, one.settings, bare))
    said = "; ".join(one.said() for one in stated)
    if all(len(own) < 2 for own in would) and all(one.fits(layers) for one in stated):
        settings = {part: own for one in reversed(stated) for part, own in one.settings.items()}
        return settings, (f"layers without an alpha have scale {_range(scales)}: {said}",)
    return {}, (
        f"layers without an alpha are used at scale 1, though {said}, which would be scale {_range(scales)}: it is not "
        f"certain that this is about these layers (rank {_range({layer.rank for layer in bare})})",
    )


def _check_flags(settings: Mapping[str, PeftSettings], layers: Iterable[Layer]) -> None:
    """Raises AdapterFormatError where settings say that layers are of a type, and the file has none of its parts."""
    for layer in layers:
        own = settings.get(layer.component)
        for flag in () if own is None else own.flags:
            kind = FLAGGED[flag]
            if own is not None and not kind.claims(layer.parts):
                raise AdapterFormatError(
                    f"{own.where} says {kind.name} ({flag}), but {layer.component}.{layer.module} has no "
                    f"{' and no '.join(sorted({leaf.part for leaf in kind.leaves.values()}))}; fetch a whole file"
                )


UNREAD_SETTINGS = (
    "ComfyUI and A1111 do not read PEFT's settings, and draw it at scale 1; `lora-studio convert --to kohya` writes "
    "alphas that they read"
)
UNSEEN = (
    "no alpha and no settings come with it, so its scale is 1; whether it was trained as rsLoRA, or from a start that "
    "changed the base (PiSSA, OLoRA), cannot be seen: put its adapter_config.json beside it if it looks wrong"
)


def _unstated(place: str, own: Mapping[str, PeftSettings], bare: Iterable[Layer]) -> Iterable[str]:
    """A note where settings ask for rsLoRA, or leave PEFT's own default, without the alpha that gives the scale."""
    layers = list(bare)
    if layers and not any(layer.component in own for layer in layers):
        yield f"{place} say nothing of the {layers[0].component}: scale 1 is used there"
    for layer in layers:
        one = own.get(layer.component)
        if one is not None and one.alpha_of(layer.module) is None:
            rslora = "ask for rsLoRA but " if one.rslora else ""
            yield f"{place} {rslora}give no alpha for {layer.component}.{layer.module}: scale 1 is used there"
            return


def _mismatched(own: Mapping[str, PeftSettings], layers: Iterable[Layer]) -> Iterable[str]:
    """A note where the settings give other ranks than the tensors have."""
    for layer in layers:
        said = own[layer.component].rank_of(layer.module) if layer.component in own else None
        if said is not None and said != layer.rank:
            yield (
                f"its settings give rank {said:g} where the tensors of {layer.component}.{layer.module} have rank "
                f"{layer.rank}: the tensors' rank is used"
            )
            return


def _contradicted(stated: Iterable[Stated], layers: Iterable[Layer]) -> Iterable[str]:
    """A note for each place that gives other scales than the alphas of the file."""
    layers = list(layers)
    for one in stated:
        if one.place == _KOHYA or not one.certain:
            continue  # it tells of the training; a file may have been resized since
        for layer in layers:
            scale = one.scale(layer)
            if (
                scale is not None
                and layer.alpha is not None
                and not math.isclose(scale, layer.alpha / layer.rank)
            ):
                yield (
                    f"{one.said()}, but the file's own alphas are used: scale {layer.alpha / layer.rank:g}, not "
                    f"{scale:g}, in {layer.component}.{layer.module}"
                )
                break


def _range(values: set[float]) -> str:
    return span((min(values), max(values)))
