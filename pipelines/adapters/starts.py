"""The start that PEFT's settings name (`init_lora_weights`), where it changed the base: whether it can be taken out.

A stored start is what PEFT saved before the training, as its guides have it: a folder "pissa_init" (or "olora_init",
"corda_init", "lora_ga_init") beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from composers.shown import shown
from pipelines.adapters.keys import quoted
from pipelines.adapters.kinds.starts import CHANGES_THE_BASE, RECOMPUTED
from pipelines.adapters.peft_settings import PeftSettings
from pipelines.errors import AdapterFormatError
from pipelines.home.files import is_folder

REMEDY = "save it again with PEFT's path_initial_model_for_weight_conversion"


def changed(start: str) -> bool:
    """Whether a start is one that changed the base weights."""
    return start.startswith(CHANGES_THE_BASE)


def start_folder(path: Path, start: str) -> Path | None:
    """The folder of a stored start beside the weights at `path`, None where there is none. Raises NoAnswer."""
    if start.startswith("loftq"):
        return None  # its base was rounded too, which no start tells
    found = next(name for name in CHANGES_THE_BASE if start.startswith(name))
    folders = (path.parent / f"{name}_init" for name in dict.fromkeys((found, found.replace("_", ""))))
    return next((folder for folder in folders if is_folder(folder)), None)


def check_starts(path: Path, own: Mapping[str, PeftSettings]) -> None:
    """Raises AdapterFormatError for a start that cannot be taken out again. own: PEFT's settings, by component."""
    for settings in own.values():
        start = settings.start
        if not changed(start) or start in RECOMPUTED or start_folder(path, start) is not None:
            continue
        reason, remedy = (
            "follows from its training data",
            f"{REMEDY}, or put the folder with its start beside it",
        )
        if start.startswith("pissa"):
            reason = "was found by a few random steps"
        if start.startswith("loftq"):
            reason, remedy = (
                "rounded the base weights",
                "merge it into its base, and extract the difference from that",
            )
        raise AdapterFormatError(
            f"{settings.where}: init_lora_weights={shown(start)} trained against a changed base model, and that start "
            f"{reason}, so the difference is not known; {remedy}"
        )


def refuse_starts(own: Mapping[str, PeftSettings]) -> None:
    """Raises AdapterFormatError for a start that changed the base, in settings that may be another file's."""
    for settings in own.values():
        if changed(settings.start):
            raise AdapterFormatError(
                f"{settings.where}: init_lora_weights={shown(settings.start)} trained against a changed base model, so "
                f"these factors alone are not the difference; {REMEDY}, or put its adapter_config.json beside it and "
                "call the file adapter_model.safetensors"
            )


def start_notes(own: Mapping[str, PeftSettings]) -> list[str]:
    """What a user should know of the starts, once for each."""
    notes = []
    for start in dict.fromkeys(settings.start for settings in own.values() if settings.start):
        if start in RECOMPUTED:
            notes.append(
                f"its start (init_lora_weights={quoted(start)}) is taken out with this model's own weights, which is "
                "right for the checkpoint that it was trained on"
            )
        elif not changed(start):
            notes.append(
                f"its start (init_lora_weights={quoted(start)}) is not known here: it is taken as one that leaves the "
                "base as it is"
            )
    return notes
