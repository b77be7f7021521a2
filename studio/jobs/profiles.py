"""Frequency profiles of LoRAs, measured on the worker's thread between two rounds."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from pipelines import StudioPipeline
from pipelines.spectrum import Profile
from studio.jobs.worker import Worker

_NAME = "to be profiled"


def profile(worker: Worker, lora: str, *, model: str | None = None) -> Future[Profile]:
    """The profile of a LoRA on a model (see `pipelines.spectrum`); from the home's cache where it was measured before.

    Raises StudioError for an unknown LoRA or model. For a LoRA that does not fit the model, the future fails with an
    AdapterError.
    """
    entry = worker.home.find_lora(lora, model)
    return worker.call(lambda pipe: _profiled(pipe, entry.path), model=model)


def _profiled(pipe: StudioPipeline, file: Path) -> Profile:
    pipe.load_lora_weights(file, adapter_name=_NAME)
    try:
        return pipe.profile(_NAME)
    finally:
        pipe.unload_lora_weights(_NAME)
