"""The least memory that a picture of some size needs, and how much there is, so that what cannot fit is refused early.

On a CPU there is no error to catch: the system ends the process, and with it everybody's pictures. The needs are lower
bounds, so that nothing is refused that would have worked. They count the tensors that one UNet row, or the VAE, holds
at once at its largest level, and only four fifths of those. Attention is left out, because torch computes it block by
block, on CPUs too.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from pipelines.errors import RenderError, RequestError

SURE = 0.8
"""The fraction of the counted bytes that is needed in any case."""
TRIM_EVERY = 16
"""Pictures between two calls of `give_back`, each of which takes some milliseconds."""
SMALL = 256 * 2**20
"""Needs of at most so many bytes are not worth asking the system about."""
_CGROUP = Path("/sys/fs/cgroup")
_made = itertools.count(1)


@dataclass(frozen=True)
class Needs:
    """The least memory that one model's pictures need.

    cell: bytes for each latent cell of one UNet row. decoded, encoded: bytes for each pixel that the VAE decodes or
    encodes, 0 where that is unknown, and on CUDA devices. scale: pixels along a latent cell's side. unit: pixels that
    widths and heights are multiples of.
    """

    device: torch.device
    cell: float
    decoded: float
    encoded: float
    scale: int
    unit: int

    def row(self, cells: int) -> int:
        """Bytes for one UNet row of so many latent cells."""
        return int(self.cell * cells)

    def picture(self, width: int, height: int, *, encoding: bool = False) -> int:
        """Bytes for a picture of this size in pixels, its rows one at a time. encoding: it has an initial image."""
        pixels = width * height
        own = (self.row(pixels // self.scale**2), self.decoded * pixels, self.encoded * pixels * encoding)
        return int(max(own))

    def refuse(self, width: int, height: int, *, encoding: bool = False) -> None:
        """Raises RequestError for a size, in pixels, that this computer's memory does not hold."""
        need = self.picture(width, height, encoding=encoding)
        have = limit(self.device) if self.device.type == "cuda" else free(self.device, need)
        if need <= have:
            return
        shrink = math.sqrt(have / need / 2)  # twice the least is enough
        near = [max(int(side * shrink) // self.unit, 1) * self.unit for side in (width, height)]
        raise RequestError(
            f"{width} x {height} pixels need {need / 1e9:.1f} GB of memory at the least, and {have / 1e9:.1f} GB are "
            f"there ({self.device}); {near[0]} x {near[1]} would fit"
        )

    def require(self, need: float) -> None:
        """Raises RenderError where so many bytes are not free now. On a CUDA device the allocator raises instead."""
        if self.device.type == "cuda":
            return
        have = free(self.device, int(need))
        if int(need) > have:
            raise RenderError(
                f"{need / 1e9:.1f} GB of memory are needed at the least, and only {have / 1e9:.1f} GB are free now; "
                "make the picture smaller, or ask for it again when the computer has less to do"
            )

    def rows(self, cells: int, asked: int) -> int:
        """How many UNet rows of so many latent cells have room in one call: at least 1, at most `asked`.

        Checked on the CPU only.
        """
        need = 2 * self.row(cells)  # a row takes more than the least
        if self.device.type != "cpu" or asked * need <= SMALL:
            return asked
        return max(min(asked, free(self.device, asked * need) // need), 1)


def needs(unet: Any, vae: Any, scale: int, device: torch.device, dtype: torch.dtype) -> Needs:
    """The needs of a model, from its parts' configurations. scale: pixels along a latent cell's side."""
    tiled = bool(getattr(vae, "use_tiling", False))
    pixel = {"decode": 0.0, "encode": 0.0} if tiled or device.type == "cuda" else _vae_values(vae.config)
    width = int(vae.dtype.itemsize)
    return Needs(
        device,
        SURE * dtype.itemsize * _unet_values(unet.config),
        SURE * width * pixel["decode"],
        SURE * width * pixel["encode"],
        scale,
        scale,
    )


def _unet_values(config: Mapping[str, Any]) -> float:
    """Numbers that a UNet row holds at once for each latent cell, at the level and the layer that hold most.

    A resnet of the last up block holds its input, the input joined with a skip, that normed and activated, its output,
    and the skips still to come. A feed-forward layer holds its input twice, eight times its width for the gated
    projection, and four times its width twice, for the gate and the product.
    """
    channels = [int(number) for number in config["block_out_channels"]]
    layers = config.get("layers_per_block", 2)
    first_layers = int(layers[0]) if isinstance(layers, Sequence) else int(layers)
    outer, inner = channels[0], channels[min(1, len(channels) - 1)]
    skips = (first_layers + 1) * outer
    found = [3.0 * (inner + outer) + inner + outer + skips]
    blocks = config.get("down_block_types") or ()
    for level, (kind, width) in enumerate(zip(blocks, channels, strict=False)):
        if "CrossAttn" in str(kind):
            found.append(19.0 * width / 4**level + skips)
    return max(found)


def _vae_values(config: Mapping[str, Any]) -> dict[str, float]:
    """Numbers that the VAE holds at once for each pixel, by "decode" and "encode"; 0 for a VAE of another class.

    Decoding holds most at the resnet that takes the second level's channels back to the first level's, encoding at its
    first resnet.
    """
    channels = config.get("block_out_channels")
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL" or not channels:
        return {"decode": 0.0, "encode": 0.0}
    outer, inner = int(channels[0]), int(channels[min(1, len(channels) - 1)])
    return {"decode": 3.0 * inner + outer, "encode": 4.0 * outer}


def free(device: torch.device, wanted: int = sys.maxsize) -> int:
    """Bytes that are free now: on the CPU with swap space and within a container's limit, on CUDA torch's cache too.

    wanted: bytes that somebody wants. It is the answer where it is too small to ask for, and on other devices.
    """
    if wanted <= SMALL or device.type not in ("cpu", "cuda"):
        return wanted
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    have = int(psutil.virtual_memory().available) + _swap()
    return min(have, _left_of_group())


def limit(device: torch.device) -> int:
    """All bytes that the device has. On the CPU free swap space counts, on Windows the host's memory for a GPU."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().total) + _swap()
    own = int(torch.cuda.get_device_properties(device).total_memory)
    return own + int(psutil.virtual_memory().total) if sys.platform == "win32" else own


# -- giving back -----------------------------------------------------------------------------------------


def empty_cache(device: torch.device) -> None:
    """Give back what torch keeps of a GPU's memory without using it, on CUDA (and ROCm) and on Apple's GPUs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def picture_made() -> None:
    """Is called once for each picture of this process. At every `TRIM_EVERY`th one, memory is given back."""
    if next(_made) % TRIM_EVERY == 0:
        give_back()


def give_back() -> None:
    """Give the system back what the process has freed on the host.

    Pictures of many sizes leave free memory between blocks that are in use, and without this a process grows from
    picture to picture. Only glibc's allocator needs it; elsewhere it does nothing.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`. None where there is no such function: on Windows, on macOS, with musl."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError, TypeError):
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        return trim
    return None


# -- asking the system -----------------------------------------------------------------------------------


def _swap() -> int:
    with suppress(Exception):  # where the system does not say, there is none
        return int(psutil.swap_memory().free)
    return 0


def _left_of_group() -> int:
    """Bytes that a container still lets its processes take. Cached files count as free, for they can be dropped."""
    with suppress(OSError, ValueError, KeyError):
        most = int(
            (_CGROUP / "memory.max").read_text(encoding="utf-8")
        )  # "max" means no limit, and is a ValueError
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        lines = (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
        stat = dict(line.split() for line in lines)
        return max(most - used + int(stat["inactive_file"]) + int(stat["active_file"]), 0)
    return sys.maxsize
