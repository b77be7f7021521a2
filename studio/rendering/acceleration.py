"""Adapters that let a model draw in few steps, and the settings they need. The studio proposes these settings; it never
applies them by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines import Request
from pipelines.adapters import AdapterMetadata


@dataclass(frozen=True)
class Acceleration:
    """One family of such adapters: how its files are recognised, and its settings."""

    name: str
    pattern: re.Pattern[str]
    scheduler: str
    steps: tuple[int, int]
    guidance: float


KINDS = (
    Acceleration("LCM", re.compile(r"(?<![a-z])lcm(?![a-z])", re.IGNORECASE), "LCM", (4, 8), 1.0),
    Acceleration("Lightning", re.compile(r"lightning", re.IGNORECASE), "Euler trailing", (4, 8), 1.0),
    Acceleration("Hyper", re.compile(r"hyper[-_ ]?sd", re.IGNORECASE), "Euler trailing", (4, 8), 1.0),
)
"""LCM-LoRA (arXiv 2311.05556), SDXL-Lightning (arXiv 2402.13929), Hyper-SD (arXiv 2404.13686)."""
MOST_GUIDANCE = 1.5


def kind_of(name: str, metadata: AdapterMetadata) -> Acceleration | None:
    """The family that the file's name, title or tags point to; None for an ordinary adapter."""
    said = (name, metadata.title, metadata.base_model, *metadata.tags, metadata.raw.get("ss_output_name", ""))
    return next((kind for kind in KINDS if any(kind.pattern.search(text) for text in said)), None)


def proposals(loaded: Mapping[str, AdapterMetadata], requests: Sequence[Request]) -> list[str]:
    """One line for each such adapter that a request uses with other settings than it needs.

    loaded: name -> metadata of the loaded adapters. requests: resolved requests.
    """
    found = []
    for name, metadata in loaded.items():
        kind = kind_of(name, metadata)
        if kind is not None and any(_misused(kind, name, request) for request in requests):
            low, high = kind.steps
            found.append(
                f"{name} is made to draw in few steps ({kind.name}): try --pin {name} --scheduler "
                f'"{kind.scheduler}" --steps {high} --guidance {kind.guidance:g} ({low} to {high} steps)'
            )
    return found


def _misused(kind: Acceleration, name: str, request: Request) -> bool:
    use = next((use for use in request.uses if use.adapter == name), None)
    if use is None:
        return False
    settings = (
        use.pinned,
        request.scheduler == kind.scheduler,
        request.steps is not None and request.steps <= 2 * kind.steps[1],
        request.guidance_scale is not None and request.guidance_scale <= MOST_GUIDANCE,
    )
    return not all(settings)
