"""Rendering many mixes of LoRAs in one pass: models, adapters, requests and sessions.

A name is imported when it is first asked for. So a request alone does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.adapters.adapter import LoadReport
    from pipelines.errors import StudioError
    from pipelines.events import Cancelled, Event, Failed, Finished, Started, Stepped
    from pipelines.flight import Ticket
    from pipelines.pipeline import Result, StudioPipeline
    from pipelines.record import Record
    from pipelines.request import Request
    from pipelines.session import Session

__all__ = [
    "Cancelled",
    "Event",
    "Failed",
    "Finished",
    "LoadReport",
    "Record",
    "Request",
    "Result",
    "Session",
    "Started",
    "Stepped",
    "StudioError",
    "StudioPipeline",
    "Ticket",
]

_MODULES = {
    "pipelines.adapters.adapter": ("LoadReport",),
    "pipelines.errors": ("StudioError",),
    "pipelines.events": ("Cancelled", "Event", "Failed", "Finished", "Started", "Stepped"),
    "pipelines.flight": ("Ticket",),
    "pipelines.pipeline": ("Result", "StudioPipeline"),
    "pipelines.record": ("Record",),
    "pipelines.request": ("Request",),
    "pipelines.session": ("Session",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = getattr(importlib.import_module(module), name)
            return globals()[name]
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
