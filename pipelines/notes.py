"""The notes in a picture's record, its cost in UNet calls, and the error for a picture that is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.errors import RenderError
from pipelines.flight import Flight
from pipelines.model import Model
from pipelines.record import Cost
from pipelines.request import Request


def notes_on(model: Model, flight: Flight, *, tiled: bool) -> tuple[str, ...]:
    """The notes for a finished picture's record: what slowed it down, or made it differ. Empty where nothing did.

    tiled: it was decoded tile by tile.
    """
    notes = list(model.checkpoint.notes)
    notes += [
        f"LoRA {name!r}: {doubt}"
        for name in flight.adapters
        for doubt in model.store.known[name].report.doubts
    ]
    limit = model.found_limits.get(flight.shape)
    if limit is not None:
        notes.append(f"device memory holds {limit} UNet rows a call at this size; larger batches are split")
    if model.store.exceeds(flight.adapters):
        notes.append("its adapters alone are more than the device memory set aside for adapters")
    if flight.features.on_host and model.device.type != "cpu":
        notes.append(
            "remembered features were kept in the host's memory, the device's being too small for them"
        )
    if tiled:
        notes.append(
            "the picture was decoded tile by tile, the device's memory being too small for all of it; "
            "seams can show, very faintly"
        )
    return (*notes, *sorted(flight.cost.reasons))


def charge(cost: Cost, first: int, last: int, calls: Sequence[int], *, shallow: bool) -> None:
    """Add one round's UNet calls to a picture's cost.

    The round's rows are numbered through all its calls; the picture's are first … last - 1. calls: the rows of each
    call. shallow: whether the calls ran shallow or in full.
    """
    if shallow:
        cost.shallow_rows += last - first
    else:
        cost.rows += last - first
    start = 0
    for size in calls:
        inside = min(last, start + size) - max(first, start)
        if inside > 0:
            if shallow:
                cost.shallow_calls += 1
            else:
                cost.calls += 1
            cost.largest_call = max(cost.largest_call, size)
            cost.shared = cost.shared or inside < size
        start += size


def not_finite(model: Model, request: Request) -> RenderError:
    """The error for a picture with NaN or infinity in it."""
    strengths = ", ".join(f"{use.adapter} at {use.weight:g}" for use in request.uses)
    remedy = "lower the adapters' strengths" if strengths else "try another scheduler or dtype"
    if model.dtype == torch.float16:
        remedy += " or render in bfloat16 or float32"
    return RenderError(
        f"seed {request.seed}: the picture is not finite ({strengths or 'no adapters'}, {model.dtype}); {remedy}"
    )
