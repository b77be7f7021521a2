"""Settings that an owner makes for later calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool

from composers.shown import shown as short
from pipelines.errors import RequestError
from studio.jobs import Worker
from studio.web.sdapi.settings import CLIP_SKIP, MODEL, NO_VAE, VAE, read_settings
from studio.web.waiting import Waits, worker_result


@dataclass
class Options:
    """The settings that an owner has made for later calls."""

    values: dict[str, Any] = field(default_factory=dict)


def model_name(said: object) -> str:
    """The model's name. A1111 writes "name [hash]", "name.safetensors", or the name alone. Raises RequestError."""
    if not isinstance(said, str):
        raise RequestError(
            f"sd_model_checkpoint={short(said)} must be a name; /sdapi/v1/sd-models lists them"
        )
    return said.partition(" [")[0].strip()


def shown(worker: Worker, own: Options) -> dict[str, Any]:
    """The settings that clients look at. Those that cannot be changed stand at values that change nothing, so that a
    client may send all of them back."""
    return {
        MODEL: own.values.get(MODEL) or current_model(worker),
        "sd_checkpoint_hash": "",
        VAE: own.values.get(VAE, "Automatic"),
        CLIP_SKIP: own.values.get(CLIP_SKIP, 1),
        "eta_noise_seed_delta": 0,
        "samples_format": "png",
        "enable_pnginfo": True,
        "live_previews_enable": True,
        "show_progress_every_n_steps": 1,
    }


def current_model(worker: Worker) -> str:
    """The name of the model that a call without one gets."""
    state = worker.model_state()
    default = next((model.name for model in worker.models() if model.default), "")
    return state.label or state.source or default


def vae_of(settings: Mapping[str, Any]) -> str | None:
    """The VAE that settings choose; None for the model's own."""
    vae = settings.get(VAE)
    return None if vae is None or vae.strip().lower() in NO_VAE else vae


async def change(worker: Worker, own: Options, said: Mapping[str, Any], owner: str, waits: Waits) -> None:
    """Changes all these settings, or none. A new model is loaded first. waits: what owners wait for. Raises
    StudioError."""
    changed = read_settings(said)
    if (vae := vae_of(changed)) is not None:  # else every later call would fail for it
        await run_in_threadpool(worker.home.find_vae, vae, paths=False)
    if changed.get(MODEL):
        name = model_name(changed[MODEL])
        loading = partial(worker_result, partial(worker.load, name))
        await waits.of(owner, f"the model {short(name)}", loading)
        changed = {**changed, MODEL: name}
    own.values.update(changed)


async def reload(worker: Worker, own: Options, owner: str, waits: Waits) -> None:
    """Loads the owner's model, if it is not loaded. Raises StudioError."""
    name = own.values.get(MODEL) or None
    loading = partial(worker_result, partial(worker.load, name))
    await waits.of(owner, f"the model {short(name or 'of the studio')}", loading)
