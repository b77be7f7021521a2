"""Opening a model on a device, for the command line, the web app and batches alike."""

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
"""From this many UNet parameters on, a picture takes minutes on a CPU."""


@dataclass(frozen=True)
class Opening:
    """How to open a model. None stands for the value in config.toml, or for the default where that has none.

    source: name, path or hub id. device: auto, cpu, mps, cuda, cuda:1. dtype: float32, float16, bfloat16 or a
    short name of theirs. vae: another VAE. low_memory: parts are on the device only while they work, and
    large pictures are decoded tile by tile. row_limit: most rows of one UNet call. lora_ram, lora_vram: GiB for
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
    """The model, loaded on its device.

    notify: called with remarks, such as what a full-size model needs. allow_downloads: whether models may be fetched
    from the hub. progress: called while one is fetched; it may end the download by raising.
    Raises ModelError for a model that cannot be loaded, and SetupError for a device or precision that is not there.
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
    """The asked or else the configured GiB, in bytes; None where neither is given."""
    gigabytes = configured if asked is None else asked
    return None if gigabytes is None else int(gigabytes * 2**30)


def pick_device(name: str) -> torch.device:
    """The device of that name. "auto" takes the first of cuda, mps and cpu that is there. Raises SetupError for a name
    that is none, and for a device that is not there."""
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
    """The precision of that name. None: half precision on a GPU, full on a CPU. Raises SetupError for others."""
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    known = DTYPES.get(name.strip().lower(), name.strip().lower())
    if known not in DTYPES.values():
        raise SetupError(f"dtype {name!r} must be one of {', '.join(DTYPES.values())} ({', '.join(DTYPES)})")
    dtype = getattr(torch, known)
    assert isinstance(dtype, torch.dtype)
    return dtype


def is_slow(pipe: StudioPipeline) -> bool:
    """Whether steps are so slow that a user wants to know how long the rest will take."""
    size = sum(weight.numel() for weight in pipe.model.unet.parameters())
    return pipe.model.device.type == "cpu" and size > FULL_SIZE
