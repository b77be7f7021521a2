"""Weight files from outside: their headers, and the memory that they need. No tensor is read."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil
import torch

from pipelines.errors import ModelError
from pipelines.home.answers import answered, sign
from pipelines.home.files import open_regular
from pipelines.home.headers import LONGEST_HEADER, MOST_AXES, parse_header
from pipelines.home.plain import reading, short

FULL_SIZE = 400_000_000
"""A model with more parameters is called full-size. The smallest published family has 0.9 billion."""


@dataclass(frozen=True)
class WeightsHeader:
    """The header of a safetensors file: tensor name -> shape, the file's own metadata, and tensor name -> data type, as
    the format spells it ("F16", "BF16", "F8_E4M3", "I8", …)."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    dtypes: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """How many parameters are loaded. A checkpoint's averaged copy of its own weights is not, if it has both."""
        both = any("diffusion_model." in key for key in self.shapes)
        return sum(
            prod(shape) for key, shape in self.shapes.items() if not (both and key.startswith("model_ema."))
        )


def read_weights_header(file: Path) -> WeightsHeader:
    """Read the header alone. Raises ModelError for one that is missing, truncated or no safetensors; and NoAnswer."""
    with reading(str(file), ModelError, "download it again"):
        try:
            return _header(*answered(file, lambda: _content(file)))
        except FileNotFoundError as error:
            raise ModelError(f"{file} does not exist; check the path") from error


def _content(file: Path) -> tuple[int, bytes]:
    """The file's size, and the JSON of its header."""
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        if start[:4] == b"GGUF":
            raise ModelError(
                f"{file.name} is a GGUF file (quantized), which is not supported; use a .safetensors file"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(LONGEST_HEADER, size - 8):
            raise ValueError("it is cut short, or no safetensors file")
        sign()
        return size, stream.read(length)


def _header(size: int, text: bytes) -> WeightsHeader:
    """Raises ValueError, LookupError, TypeError and AttributeError for what is no header."""
    content, metadata = parse_header(text)
    shapes = {key: tuple(entry["shape"]) for key, entry in content.items()}
    dtypes = {key: short(entry["dtype"]) for key, entry in content.items()}
    ends = [entry["data_offsets"][1] for entry in content.values()]
    if not all(
        len(shape) <= MOST_AXES and all(map(_is_count, shape)) for shape in shapes.values()
    ) or not all(map(_is_count, ends)):
        raise ValueError("its header holds other numbers than sizes")
    needed = 8 + len(text) + max(ends, default=0)
    if needed > size:
        raise ValueError(f"it is cut short: {size} bytes where {needed} belong")
    return WeightsHeader(shapes, metadata, dtypes)


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63


@dataclass(frozen=True)
class MemoryNeed:
    """What a model's weights need, and what is free. weights, free: in bytes."""

    parameters: int
    weights: int
    free: int

    @property
    def full_size(self) -> bool:
        return self.parameters > FULL_SIZE

    @property
    def fits(self) -> bool:
        return self.weights <= self.free

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e9:.2f} billion parameters need {self.weights / 2**30:.1f} GiB of memory; "
            f"{self.free / 2**30:.1f} GiB are free"
        )


def memory_needed(files: Iterable[Path], dtype: torch.dtype, free: int | None = None) -> MemoryNeed:
    """What the weights in `files` need in this computer's memory once they are loaded in `dtype`.

    Working memory comes on top, depending on the size and number of the pictures. free: bytes, None for what is free
    now. Raises as `read_weights_header`.
    """
    parameters = sum(read_weights_header(file).parameters for file in files)
    return MemoryNeed(parameters, parameters * dtype.itemsize, free_memory() if free is None else free)


def free_memory() -> int:
    """Bytes of this computer's memory that are available now, within a container's limit."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(
            free,
            int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8")) + _file_cache(),
        )
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def _file_cache() -> int:
    """Bytes of cached files, which a container counts as used but gives back on demand."""
    lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def refuse_if_too_large(label: str, need: MemoryNeed, notify: Callable[[str], None] | None) -> None:
    """Raises ModelError where a model does not fit into the memory. Else tells `notify` what a full-size one needs.

    label: the model's name.
    """
    if not need.fits:
        raise ModelError(
            f"{label} does not fit into this computer's memory: {need}. Close other programs, "
            "load it with dtype float16 or bfloat16, or use a smaller model such as the built-in tiny-sdxl"
        )
    if need.full_size and notify is not None:
        notify(f"{label}: {need}")
