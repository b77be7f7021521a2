"""What there is: models, VAEs, LoRAs."""

from __future__ import annotations

from typing import Any

from studio.jobs import Worker
from studio.library.scan import Library


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


def loras(worker: Worker) -> list[dict[str, Any]]:
    return [
        {
            "name": card.name,
            "alias": card.title or card.name,
            "path": worker.discreet(str(card.path)),
            "metadata": dict(metadata),
        }
        for card, metadata in worker.library.with_metadata()
    ]


def refresh(library: Library) -> None:
    """Looks at the folders again."""
    library.cards()
