"""A model made ready on a device: what the command line, the web app and the batch script have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipelines import StudioPipeline
from pipelines.checkpoints import load_checkpoint
from pipelines.checkpoints.hub import DownloadProgress
from pipelines.engine.backends import AttentionChoice
from pipelines.engine.residency.limits import Limits
from pipelines.errors import SetupError
from pipelines.home import Home
from pipelines.home.settings import DEVICE, DTYPES
from pipelines.model import Model
from studio.library.models import BUILT_IN

FULL_SIZE = 400_000_000
"""Parameters of the UNet from which a picture takes minutes on a CPU."""


@dataclass(frozen=True)
class Opening:
    """How to open a model; None means what config.toml says, else the default.

    source: name, path or hub id. device: auto, cpu, mps, cuda, cuda:1. dtype: float32, float16, bfloat16 or a
    short name of theirs. vae: another VAE. low_memory: parts visit the device only while they work, and
    large pictures are decoded tile by tile. row_limit: UNet rows a call may hold. lora_ram, lora_vram: GiB for
    adapters in memory and on the device. graphs, compile, attention, kernels: see `StudioPipeline.optimize`.
    """

    source: str | None = None
    device: str | None = None
    dtype: str | None = None
    vae: str | None = None
    low_memory: bool = False
    row_limit: int | None = None
    lora_ram: float | None = None
    lora_vram: float | None = None
    graphs: bool = True
    compile: bool = False
    attention: AttentionChoice = "auto"
    kernels: bool = False


def model_name(opening: Opening, home: Home) -> str:
    return opening.source or home.settings.model or BUILT_IN


def open_pipeline(
    opening: Opening,
    home: Home,
    notify: Callable[[str], None] | None = None,
    *,
    allow_downloads: bool = True,
    progress: DownloadProgress | None = None,
) -> StudioPipeline:
    """The model on its device. `notify` is told what a full-size model needs. allow_downloads: from the hub;
    `progress` is told how one goes, and may end it by raising.

    Raises ModelError and SetupError.
    """
    device = pick_device(opening.device or home.settings.device or "auto")
    dtype = pick_dtype(opening.dtype or home.settings.dtype, device)
    source = model_name(opening, home)
    checkpoint = load_checkpoint(
        source,
        dtype=dtype,
        vae=opening.vae,
        home=home,
        allow_downloads=allow_downloads,
        notify=notify,
        progress=progress,
    )
    pipe = StudioPipeline(Model(checkpoint), home=home)
    pipe.row_limit = opening.row_limit
    pipe.store.limits = Limits(
        host=_bytes(opening.lora_ram, home.settings.lora_ram),
        device=_bytes(opening.lora_vram, home.settings.lora_vram),
    )
    if opening.low_memory:
        pipe.enable_vae_tiling()
    if opening.low_memory and device.type != "cpu":
        pipe.enable_model_cpu_offload(device)
    else:
        pipe.to(device)
    pipe.optimize(
        graphs=opening.graphs,
        compile=opening.compile,
        attention=opening.attention,
        kernels=opening.kernels,
    )
    return pipe


def _bytes(asked: float | None, configured: float | None) -> int | None:
    """GiB -> bytes: as asked, else as configured, else None."""
    gigabytes = configured if asked is None else asked
    return None if gigabytes is None else int(gigabytes * 2**30)


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is cuda, mps or cpu. Raises SetupError for one that is not there."""
    name = name.strip().lower()
    if not DEVICE.fullmatch(name):
        raise SetupError(f"device {name!r} must be auto, cpu, cuda, cuda:<number> or mps")
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"this computer has {count}" if count else "torch sees no CUDA device here"
        raise SetupError(f"device {name!r} is not available ({there}); use --device auto or cpu")
    if device.type == "mps" and not mps:
        raise SetupError("device 'mps' is not available here; use --device auto or cpu")
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The precision of that name; by default half precision on a GPU, full on a CPU. Raises SetupError."""
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    known = DTYPES.get(name.strip().lower(), name.strip().lower())
    if known not in DTYPES.values():
        raise SetupError(f"dtype {name!r} must be one of {', '.join(DTYPES.values())} ({', '.join(DTYPES)})")
    dtype = getattr(torch, known)
    assert isinstance(dtype, torch.dtype)
    return dtype


def is_slow(pipe: StudioPipeline) -> bool:
    """Whether a step takes so long that a user wants to know how long the rest will take."""
    size = sum(weight.numel() for weight in pipe.model.unet.parameters())
    return pipe.model.device.type == "cpu" and size > FULL_SIZE
