"""Lists of what is there: models, VAEs, LoRAs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from studio.jobs import Worker
from studio.library.scan import Library

LONGEST_VALUE = 2_000
LONGEST_METADATA = 32_000
"""Most characters of a listed LoRA's metadata: of one value, and of all values with their names."""


def models(worker: Worker) -> list[dict[str, Any]]:
    return [
        {
            "title": model.name,
            "model_name": model.name,
            "hash": None,
            "sha256": None,
            "filename": worker.discreet(str(model.path)),
            "config": None,
        }
        for model in worker.models()
        if model.usable
    ]


def vaes(worker: Worker) -> list[dict[str, Any]]:
    return [
        {"model_name": vae.name, "filename": worker.discreet(str(vae.path))} for vae in worker.home.vaes()
    ]


def loras(worker: Worker) -> bytes:
    """The LoRAs as JSON. With thousands of them it is long, so it is encoded here, in the caller's thread."""
    listed = [
        {
            "name": card.name,
            "alias": card.title or card.name,
            "path": worker.discreet(str(card.path)),
            "metadata": shortened(metadata),
        }
        for card, metadata in worker.library.with_metadata()
    ]
    return json.dumps(listed, ensure_ascii=False).encode("utf-8", "backslashreplace")


def shortened(metadata: Mapping[str, str]) -> dict[str, str]:
    """A file's metadata with every value shortened. Values are left out once all together are too long."""
    kept: dict[str, str] = {}
    left = LONGEST_METADATA
    for name, value in metadata.items():
        short = value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 1]}…"
        if len(name) + len(short) <= left:
            left -= len(name) + len(short)
            kept[name] = short
    return kept


def refresh(library: Library) -> None:
    """Looks at the folders again."""
    library.cards()
