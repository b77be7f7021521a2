"""How much memory adapters may take, and what they have taken and done."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

MOST_HOST_BYTES = 16 * 2**30
MOST_DEVICE_BYTES = 4 * 2**30
"""Where no limit is given: a quarter of the memory, but at most this."""


@dataclass(frozen=True)
class Limits:
    """Bytes for the factors of all adapters on the host and on the device; None is a quarter of the memory there.

    Adapters that one picture needs at once may exceed the device's limit, and those on the device the host's.
    """

    host: int | None = None
    device: int | None = None

    def on(self, device: torch.device) -> tuple[int, int]:
        """(host, device) in bytes."""
        ram = int(psutil.virtual_memory().total)
        card = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else ram
        return (
            min(ram // 4, MOST_HOST_BYTES) if self.host is None else self.host,
            min(card // 4, MOST_DEVICE_BYTES) if self.device is None else self.device,
        )


@dataclass(frozen=True)
class LevelStats:
    """One level's figures. hits, misses: of asks for an adapter; evictions: those that were put out for others."""

    hits: int
    misses: int
    evictions: int
    adapters: int
    bytes: int
    limit: int

    def __str__(self) -> str:
        return (
            f"{self.adapters} adapters, {self.bytes / 2**20:.1f} of {self.limit / 2**20:.0f} MiB, "
            f"{self.hits} hits, {self.misses} misses, {self.evictions} evictions"
        )


@dataclass(frozen=True)
class StoreStats:
    """What the store holds and has done. A miss on the host is a file read; pinned: bytes in page-locked memory."""

    known: int
    held: int
    host: LevelStats
    device: LevelStats
    pinned: int

    def __str__(self) -> str:
        return f"host: {self.host}\ndevice: {self.device}"
