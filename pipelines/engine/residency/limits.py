"""How much memory adapters may take, and what the store has done."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

MOST_HOST_BYTES = 16 * 2**30
MOST_DEVICE_BYTES = 4 * 2**30
"""The most that the default limits, a quarter of the memory, come to."""


@dataclass(frozen=True)
class Limits:
    """Bytes for the factors of all adapters, on the host and on the device.

    None is a quarter of the memory there, and at most `MOST_HOST_BYTES` or `MOST_DEVICE_BYTES`. The adapters of one
    picture may exceed the device's limit. Those on the device may exceed the host's limit, because they stay on the
    host too.
    """

    host: int | None = None
    device: int | None = None

    def on(self, device: torch.device) -> tuple[int, int]:
        """(host, device): the limits in bytes, with numbers for None."""
        ram = int(psutil.virtual_memory().total)
        card = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else ram
        return (
            min(ram // 4, MOST_HOST_BYTES) if self.host is None else self.host,
            min(card // 4, MOST_DEVICE_BYTES) if self.device is None else self.device,
        )


@dataclass(frozen=True)
class LevelStats:
    """The figures of one level of the store, host or device.

    hits, misses: how often an adapter that was asked for was there, or was not. evictions: adapters that had to leave
    to make room. adapters, bytes: what is there now. limit: in bytes.
    """

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
    """What the store holds and has done.

    known: adapters that were loaded. held: those that pictures in flight use. A miss on the host is the reading of a
    file. pinned: bytes on the host in page-locked memory.
    """

    known: int
    held: int
    host: LevelStats
    device: LevelStats
    pinned: int

    def __str__(self) -> str:
        return f"host: {self.host}\ndevice: {self.device}"
