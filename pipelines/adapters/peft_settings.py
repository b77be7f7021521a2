"""The settings that PEFT keeps beside the weights. They decide every layer's scale, and how most types are read.

They are found in two places that are relied on: in `adapter_config.json` in a folder that PEFT wrote, and in the
safetensors metadata `lora_adapter_metadata`. There diffusers puts the same fields, with the component before each name
({"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.r": …}). Other places are in `pipelines.adapters.stated_scales`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from composers.shown import shown
from pipelines.adapters.keys import COMPONENTS
from pipelines.adapters.kinds import FLAGGED, PEFT_APPLIED, PEFT_DEFAULT
from pipelines.adapters.kinds.unsupported import PEFT_TYPES
from pipelines.adapters.sidecars import MOST_SAID
from pipelines.errors import AdapterFormatError
from pipelines.home.files import is_regular, read_text
from pipelines.home.plain import read_json, reading

METADATA_KEY = "lora_adapter_metadata"
CONFIG_NAME = "adapter_config.json"

LARGEST_ALPHA = 1e30
"""What is larger is no alpha: in float32, in which layers are scaled, it soon becomes infinite."""
MOST_PATTERNS = 3_000
"""Most entries of an alpha_pattern; there is one for each layer at most."""
MOST_WILD = 10
"""Most of these that hold `.*`, each twice at most: they are slow to compare."""


class MalformedSettings(AdapterFormatError):
    """Settings that cannot be read, other than such as call for something that is not applied."""


_PLAIN_STARTS = ("", "true", "false", "none", "default", "gaussian", "eva", "orthogonal", "mica")
_STRANGE_MATHEMATICS = (
    "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config", "alora_invocation_tokens"
)  # fmt: skip
"""Fields of a LoraConfig that make something else of it than LoRA or DoRA."""

# Patterns are regular expressions from an untrusted file. Only those that cannot take forever are run.
_HARMLESS = re.compile(r"\^?(?:[\w-]|\\\.|\.\*|\.|\\d\+?|\[0-9\]\+?)*\$?")


@dataclass(frozen=True)
class PeftSettings:
    """What PEFT's configuration says of one component.

    kind: its `peft_type`; stated: whether it is written. flags: those of other types that its layers are of too.
    start: the start that it was trained from, where it is not one that leaves the base as it is ("pissa", "olora").
    fields: all that it says, by PEFT's names. where: the file and the place of the settings, for messages.
    alpha: None where it says nothing, which means scale 1. alpha_pattern: regular expression -> alpha of the layers
    whose names end so. rank, rank_pattern: likewise. rslora: whether the scale is that of rsLoRA.
    """

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    rank: int | None = None
    rank_pattern: Mapping[str, float] = field(default_factory=dict)
    kind: str = PEFT_DEFAULT
    stated: bool = False
    flags: frozenset[str] = frozenset()
    start: str = ""
    fields: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)
    where: str = field(default="", compare=False)

    def alpha_of(self, module: str) -> float | None:
        """The layer's alpha: that of the first pattern that matches the end of its name, else the common one."""
        return _first_of(self.alpha_pattern, module, self.alpha)

    def rank_of(self, module: str) -> float | None:
        """The layer's rank, likewise; None where nothing is said of it."""
        return _first_of(self.rank_pattern, module, self.rank)

    def own_scale_of(self, module: str) -> float | None:
        """`scale_of` by the rank that is stated here. None without one."""
        rank = self.rank_of(module)
        return None if rank is None else self.scale_of(module, int(rank))

    def scale_of(self, module: str, rank: int) -> float | None:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

        None without an alpha, and for rank 0.
        """
        alpha = self.alpha_of(module)
        if alpha is None or rank == 0:
            return None
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _first_of(patterns: Mapping[str, float], module: str, common: float | None) -> float | None:
    bare = module.removeprefix("text_model.")  # files write text layers with or without it
    for pattern, value in patterns.items():
        if any(map(_ending(pattern).match, (bare, f"text_model.{bare}"))):
            return value
    return common


@lru_cache(4 * MOST_PATTERNS)
def _ending(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """Component -> its settings, for a file at `path` with this metadata; {} where there are none.

    Settings in the metadata win over an `adapter_config.json`. Raises AdapterFormatError for settings that are broken
    or call for something that is not applied, and NoAnswer.
    """
    if METADATA_KEY in metadata:
        return by_component(
            f"{path.name}: {METADATA_KEY}", settings_object(path.name, METADATA_KEY, metadata[METADATA_KEY])
        )
    config = path.parent / CONFIG_NAME
    if path.name.startswith(_NAMED_BY_WRITERS) and is_regular(config):
        return by_component(f"{path.name}: {CONFIG_NAME}", _config_beside(path.name, config))
    return {}


def config_beside(path: Path) -> dict[str, PeftSettings]:
    """What an `adapter_config.json` says that stands beside a file of another name; {} where there is none.

    Raises AdapterFormatError as `peft_settings` does, though it may be another file's.
    """
    config = path.parent / CONFIG_NAME
    if path.name.startswith(_NAMED_BY_WRITERS) or not is_regular(config):
        return {}
    return by_component(f"{path.name}: {CONFIG_NAME}", _config_beside(path.name, config))


_NAMED_BY_WRITERS = ("adapter_model", "pytorch_lora_weights")


def _config_beside(file: str, config: Path) -> dict[str, Any]:
    with reading(f"{file}: {CONFIG_NAME} beside it", MalformedSettings, "repair it"):
        text = read_text(config)
    return settings_object(file, CONFIG_NAME, text)


def by_component(where: str, fields: Mapping[str, Any]) -> dict[str, PeftSettings]:
    """Component -> its settings, from the fields of a LoraConfig.

    The component stands before each name ("unet.r"), or holds an object of its own, or the fields are everybody's.
    Raises AdapterFormatError.
    """
    found = {}
    fields = of_one_adapter(fields)
    for component in COMPONENTS:
        start = f"{component}."
        own = {name.removeprefix(start): value for name, value in fields.items() if name.startswith(start)}
        if isinstance(nested := fields.get(component), dict):
            own |= nested
        if own:
            found[component] = _settings(where, own)
    if not found and not any("." in name for name in fields):
        return dict.fromkeys(COMPONENTS, _settings(where, fields)) if fields else {}
    return found


_SAID_OF_ALL = {"peft_type", "r", "lora_alpha", "target_modules"}
"""Settings of which those of any adapter have some."""


def of_one_adapter(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields within, where there is nothing but one object under an adapter's name, as PEFT's `peft_config` has."""
    if len(fields) == 1:
        [(name, inner)] = fields.items()
        if name not in COMPONENTS and isinstance(inner, dict) and inner.keys() & _SAID_OF_ALL:
            return inner
    return fields


def settings_object(file: str, what: str, text: str) -> dict[str, Any]:
    where = f"{file}: {what}, which decides every layer's scale,"
    remedy = "repair or remove it"
    fields = read_json(
        text, where, error=MalformedSettings, remedy=remedy, most=MOST_SAID, finite=False, mended=True
    )
    if not isinstance(fields, dict):
        raise MalformedSettings(f"{where} is not a JSON object; {remedy}")
    return fields


def _settings(where: str, fields: Mapping[str, Any]) -> PeftSettings:
    """The fields of a LoraConfig that change the mathematics. Raises AdapterFormatError if one cannot be applied."""
    kind = fields.get("peft_type") or PEFT_DEFAULT
    word = kind.removeprefix("PeftType.").upper() if isinstance(kind, str) else ""
    if word not in PEFT_APPLIED:
        name = PEFT_TYPES.get(word)
        raise AdapterFormatError(
            f"{where}: the PEFT type {shown(kind)}{f', {name},' if name else ''} is not applied yet; "
            "look for a plain LoRA"
        )
    if strange := [
        name for name in _STRANGE_MATHEMATICS if word == PEFT_DEFAULT and _is_set(fields.get(name))
    ]:
        raise AdapterFormatError(
            f"{where}: {strange[0]} is set, with which it is no plain LoRA, and that is not applied; look for another "
            "edition"
        )
    said = fields.get("init_lora_weights")
    start = said.strip().lower() if isinstance(said, str) else ""
    alpha: Any = fields.get(PEFT_APPLIED[word])
    rank: Any = fields.get("r")
    if alpha is not None and not _is_number(alpha):
        raise MalformedSettings(
            f"{where}: lora_alpha and alpha_pattern must be finite numbers, not {shown(alpha)}; repair the settings"
        )
    return PeftSettings(
        alpha=None if alpha is None else float(alpha),
        alpha_pattern=_pattern(where, "alpha_pattern", fields.get("alpha_pattern") or {}),
        rslora=_flag(where, fields, "use_rslora"),
        rank=int(rank) if _is_number(rank) else None,
        rank_pattern=_ranks(fields.get("rank_pattern")),
        kind=word,
        where=where,
        stated=bool(fields.get("peft_type")),
        flags=frozenset(name for name in FLAGGED if _flag(where, fields, name)),
        start="" if start in _PLAIN_STARTS else start,
        fields=dict(fields) | {name: _flag(where, fields, name) for name in _FLAGS if name in fields},
    )


_FLAGS = ("use_cayley_neumann", "block_share", "coft", "apply_GS")
"""Yes or no, in the configurations of the types."""


def _ranks(pattern: object) -> dict[str, float]:
    """A rank_pattern. One that is odd counts as none: the ranks that are used are the tensors'."""
    try:
        return _pattern("", "", pattern or {})
    except AdapterFormatError:
        return {}


def _pattern(where: str, name: str, pattern: object) -> dict[str, float]:
    """A mapping of patterns to numbers. Raises AdapterFormatError."""
    if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
        raise MalformedSettings(f"{where}: the values of {name} must be finite numbers; repair the settings")
    if len(pattern) > MOST_PATTERNS or sum(".*" in piece for piece in pattern) > MOST_WILD:
        raise MalformedSettings(
            f"{where}: {name} has {len(pattern)} entries, more than {MOST_PATTERNS}, or more than {MOST_WILD} "
            "with .* in them; write names"
        )
    for piece in pattern:
        if len(piece) > 300 or not _HARMLESS.fullmatch(piece) or piece.count(".*") > 2:
            raise MalformedSettings(
                f"{where}: the {name} {shown(piece)} is more than a layer name; write names"
            )
    return {piece: float(value) for piece, value in pattern.items()}


def _flag(where: str, fields: Mapping[str, Any], name: str) -> bool:
    """A yes or no, which some files write as a text. Raises AdapterFormatError for anything else."""
    said = fields.get(name)
    if said is None or isinstance(said, bool | int | float):
        return bool(said)
    if isinstance(said, str) and said.strip().lower() in _WORDS:
        return _WORDS[said.strip().lower()]
    raise MalformedSettings(
        f"{where}: {name} is {shown(said)}; it must be true or false, repair the settings"
    )


_WORDS = {
    "true": True,
    "1": True,
    "yes": True,
    "false": False,
    "0": False,
    "no": False,
    "none": False,
    "": False,
}


def _is_set(value: object) -> bool:
    """Whether a setting that may be anything is there, and is no no."""
    return bool(_WORDS.get(value.strip().lower(), True) if isinstance(value, str) else value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_ALPHA
