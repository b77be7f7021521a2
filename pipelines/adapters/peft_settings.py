"""The settings that PEFT keeps beside the weights. They decide every layer's scale.

They are found in two places: in `adapter_config.json` in a folder that PEFT wrote, and in the safetensors metadata
`lora_adapter_metadata`. There diffusers puts the same fields, with the component before each name
({"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.r": …}). Ranks are read off the tensors instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from composers.shown import shown
from pipelines.adapters.keys import COMPONENTS
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

_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")

# Patterns are regular expressions from an untrusted file. Only those that cannot take forever are run.
_HARMLESS = re.compile(r"\^?(?:[\w-]|\\\.|\.\*|\.|\\d\+?|\[0-9\]\+?)*\$?")


@dataclass(frozen=True)
class PeftSettings:
    """What PEFT's LoraConfig says of one component.

    alpha: None where it says nothing, which means scale 1. alpha_pattern: regular expression -> alpha of the layers
    whose names end so. rslora: whether the scale is that of rsLoRA.
    """

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False

    def alpha_of(self, module: str) -> float | None:
        """The layer's alpha: that of the first pattern that matches the end of its name, else the common one."""
        bare = module.removeprefix("text_model.")  # files write text layers with or without it
        for pattern, alpha in self.alpha_pattern.items():
            if any(map(_ending(pattern).match, (bare, f"text_model.{bare}"))):
                return alpha
        return self.alpha

    def scale_of(self, module: str, rank: int) -> float | None:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

        None without an alpha, and for rank 0.
        """
        alpha = self.alpha_of(module)
        if alpha is None or rank == 0:
            return None
        return alpha / (math.sqrt(rank) if self.rslora else rank)


@lru_cache(2 * MOST_PATTERNS)
def _ending(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """Component -> its settings, for a file at `path` with this metadata; {} where there are none.

    Settings in the metadata win over an `adapter_config.json`. Raises AdapterFormatError for settings that are broken
    or call for something that is not applied, and NoAnswer.
    """
    if METADATA_KEY in metadata:
        fields = _object(path.name, METADATA_KEY, metadata[METADATA_KEY])
        return {
            component: _settings(f"{path.name}: {METADATA_KEY}", own)
            for component in COMPONENTS
            if (
                own := {
                    k.removeprefix(f"{component}."): v
                    for k, v in fields.items()
                    if k.startswith(f"{component}.")
                }
            )
        }
    config = path.parent / CONFIG_NAME
    if path.name.startswith("adapter_model") and is_regular(config):
        with reading(f"{path.name}: {CONFIG_NAME} beside it", AdapterFormatError, "repair it"):
            text = read_text(config)
        settings = _settings(f"{path.name}: {CONFIG_NAME}", _object(path.name, CONFIG_NAME, text))
        return dict.fromkeys(COMPONENTS, settings)
    return {}


def _object(file: str, what: str, text: str) -> dict[str, Any]:
    where = f"{file}: {what}, which decides every layer's scale,"
    remedy = "repair or remove it"
    fields = read_json(
        text, where, error=AdapterFormatError, remedy=remedy, most=MOST_SAID, finite=False, mended=True
    )
    if not isinstance(fields, dict):
        raise AdapterFormatError(f"{where} is not a JSON object; {remedy}")
    return fields


def _settings(where: str, fields: Mapping[str, Any]) -> PeftSettings:
    """The fields of a LoraConfig that change the mathematics. Raises AdapterFormatError if one cannot be applied."""
    if (kind := fields.get("peft_type", "LORA")) != "LORA":
        raise AdapterFormatError(
            f"{where}: the PEFT type {shown(kind)} is not applied yet; look for a plain LoRA"
        )
    if fields.get("use_dora"):
        raise AdapterFormatError(
            f"{where}: DoRA is not applied yet; look for a plain LoRA of the same subject"
        )
    start = fields.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        raise AdapterFormatError(
            f"{where}: init_lora_weights={shown(start)} trained against a changed base model, so these factors "
            "alone are not the difference; save it again with PEFT's path_initial_model_for_weight_conversion"
        )
    pattern = fields.get("alpha_pattern") or {}
    alpha = fields.get("lora_alpha")
    if not isinstance(pattern, dict) or not all(
        _is_number(value) for value in (*pattern.values(), 0 if alpha is None else alpha)
    ):
        raise AdapterFormatError(
            f"{where}: lora_alpha and alpha_pattern must be finite numbers; repair the settings"
        )
    if len(pattern) > MOST_PATTERNS or sum(".*" in piece for piece in pattern) > MOST_WILD:
        raise AdapterFormatError(
            f"{where}: alpha_pattern has {len(pattern)} entries, more than {MOST_PATTERNS}, or more than {MOST_WILD} "
            "with .* in them; write names"
        )
    for piece in pattern:
        if len(piece) > 300 or not _HARMLESS.fullmatch(piece) or piece.count(".*") > 2:
            raise AdapterFormatError(
                f"{where}: the alpha_pattern {shown(piece)} is more than a layer name; write names"
            )
    return PeftSettings(
        alpha=None if alpha is None else float(alpha),
        alpha_pattern={piece: float(value) for piece, value in pattern.items()},
        rslora=bool(fields.get("use_rslora")),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_ALPHA
