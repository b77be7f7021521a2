"""Settings that an owner makes for later calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from composers.shown import shown as short
from pipelines.errors import RequestError
from studio.jobs import Worker
from studio.web.sdapi.fields import check_options
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
    state = worker.model_state()
    chosen = own.values.get("sd_model_checkpoint") or state.label or state.source
    default = next((model.name for model in worker.models() if model.default), "")
    return {
        "sd_model_checkpoint": chosen or default,
        "sd_vae": own.values.get("sd_vae", "Automatic"),
        "CLIP_stop_at_last_layers": own.values.get("CLIP_stop_at_last_layers", 1),
        "samples_format": "png",
    }


async def change(worker: Worker, own: Options, changed: Mapping[str, Any], owner: str, waits: Waits) -> None:
    """Changes all these settings, or none. A new model is loaded first. waits: what owners wait for. Raises
    StudioError."""
    changed = {name: value for name, value in changed.items() if name != "samples_format" or value != "png"}
    check_options(changed)
    model = changed.get("sd_model_checkpoint")
    if model:
        name = model_name(model)
        loading = partial(worker_result, partial(worker.load, name))
        await waits.of(owner, f"the model {short(name)}", loading)
        changed = {**changed, "sd_model_checkpoint": name}
    own.values.update(changed)
