"""Lists of what is there: models, VAEs, LoRAs, embeddings, samplers, memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch

from pipelines.adapters.container import read_header
from pipelines.errors import StudioError
from pipelines.home.answers import answered
from pipelines.schedulers import SAMPLERS
from studio.jobs import Worker
from studio.library.scan import Library
from studio.web.sdapi.fields import OUR_SCRIPT

LONGEST_VALUE = 2_000
LONGEST_METADATA = 32_000
"""Most characters of a listed LoRA's metadata: of one value, and of all values with their names."""


SPACINGS = {
    "automatic": "Automatic",
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "normal": "Normal",
}
"""A1111's name of a spacing -> its label: those that a solver can be given here."""


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


def embeddings(worker: Worker) -> dict[str, Any]:
    """The embeddings in the folders. Those that are no embedding for the loaded model are listed as skipped."""
    width = worker.model_state().width_of_text
    loaded: dict[str, Any] = {}
    skipped: dict[str, Any] = {}
    for entry in worker.home.embeddings():
        vectors, shape, whole = _shape(entry.path)
        told = {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": shape,
            "vectors": vectors,
        }
        fits = bool(vectors) and width in (0, whole)
        (loaded if fits else skipped)[entry.name] = told
    return {"loaded": loaded, "skipped": skipped}


def _shape(path: Path) -> tuple[int, int, int]:
    """Vectors of an embedding's file, their width, and the widths of all text encoders together; zeros for a file that
    cannot be read."""
    try:
        stamp = answered(path, path.stat)
        return _shape_at(path, stamp.st_mtime_ns, stamp.st_size)
    except (OSError, StudioError):
        return 0, 0, 0


@lru_cache(maxsize=4096)
def _shape_at(path: Path, changed: int, size: int) -> tuple[int, int, int]:
    shapes = [tuple(entry.shape) for entry in read_header(path).tensors.values()]
    flat = [(1, *shape) if len(shape) == 1 else shape for shape in shapes]
    if not 1 <= len(flat) <= 2 or any(len(shape) != 2 for shape in flat):
        return 0, 0, 0
    return flat[0][0], flat[0][1], sum(shape[1] for shape in flat)


def samplers() -> list[dict[str, Any]]:
    return [{"name": row.name, "aliases": list(row.aliases), "options": {}} for row in SAMPLERS]


def schedulers() -> list[dict[str, Any]]:
    aliases = {"sgm_uniform": ["SGMUniform"]}
    return [
        {
            "name": name,
            "label": label,
            "aliases": aliases.get(name),
            "default_rho": 7.0 if name == "karras" else -1,
            "need_inner_model": name not in ("automatic", "karras", "exponential"),
        }
        for name, label in SPACINGS.items()
    ]


def scripts() -> dict[str, list[str]]:
    return {"txt2img": [OUR_SCRIPT.lower()], "img2img": [OUR_SCRIPT.lower()]}


def script_info() -> list[dict[str, Any]]:
    args = [{"label": label, "value": None} for label in ("method", "fields of a request")]
    return [
        {"name": OUR_SCRIPT.lower(), "is_alwayson": True, "is_img2img": with_image, "args": args}
        for with_image in (False, True)
    ]


def memory() -> dict[str, Any]:
    """Free, used and all bytes of the computer's memory, and of the GPU's where there is one."""
    ram = psutil.virtual_memory()
    found: dict[str, Any] = {"ram": _bytes(int(ram.available), int(ram.total))}
    if not torch.cuda.is_available():
        return {**found, "cuda": {"error": "unavailable"}}
    own = torch.cuda.memory_stats()
    used = {
        name: {"current": own.get(f"{key}_bytes.all.current", 0), "peak": own.get(f"{key}_bytes.all.peak", 0)}
        for name, key in (
            ("active", "active"),
            ("allocated", "allocated"),
            ("reserved", "reserved"),
            ("inactive", "inactive_split"),
        )
    }
    events = {"retries": own.get("num_alloc_retries", 0), "oom": own.get("num_ooms", 0)}
    return {**found, "cuda": {"system": _bytes(*torch.cuda.mem_get_info()), **used, "events": events}}


def _bytes(free: int, total: int) -> dict[str, int]:
    return {"free": free, "used": total - free, "total": total}
