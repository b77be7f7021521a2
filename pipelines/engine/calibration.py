"""A device's rates for the planner. Measuring them takes about a second; the home's cache keeps them."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from pipelines.engine.planner import LOW_RANK, Rates
from pipelines.engine.products.graphs import CudaGraphs
from pipelines.home.files import write_atomically

SECONDS = 0.03
"""Each of five measurements takes about so long."""
TINY_KERNELS = 100
"""Kernels in the row that is timed for the cost of a launch."""


def rates_of(device: torch.device, dtype: torch.dtype, cache: Path) -> Rates:
    """The rates of a device in a dtype: from the cache folder, else measured and kept there.

    Where the file is missing or cannot be read, they are measured. Raises OSError where they cannot be written.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu-{torch.get_num_threads()}"
    kind = str(dtype).removeprefix("torch.")
    file = (
        cache
        / "engine"
        / (re.sub(r"[^A-Za-z0-9]+", "-", f"{name} {kind} torch {torch.__version__}") + ".json")
    )
    try:
        return Rates(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        rates = measure(device, dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(asdict(rates), indent=1))
    return rates


@torch.inference_mode()
def measure(device: torch.device, dtype: torch.dtype) -> Rates:
    """Time a large product, one of rank `LOW_RANK`, a copy, and a row of tiny kernels.

    On a CUDA device the row is timed twice, as a CUDA graph and without one.
    """
    large, rank = 8192 if device.type == "cuda" else 512, LOW_RANK
    x, weight = (torch.ones((large, large), device=device, dtype=dtype) for _ in range(2))
    down = weight[:rank]
    copied = x.clone()
    small = torch.ones(64, device=device)

    def tiny() -> None:
        for _ in range(TINY_KERNELS):
            small.add_(1)

    row = CudaGraphs(device).record(tiny).replay if device.type == "cuda" else tiny
    return Rates(
        gemm=2 * large**3 / _seconds(lambda: x @ weight.T, device),
        low_rank=2 * large**2 * rank / _seconds(lambda: x @ down.T, device),
        bandwidth=x.nbytes / _seconds(lambda: copied.copy_(x), device),
        launch=_seconds(row, device) / TINY_KERNELS,
        host=_seconds(tiny, device) / TINY_KERNELS,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run of the work: the median of five measurements of many runs."""

    def timed(times: int) -> float:
        began = _now(device)
        for _ in range(times):
            work()
        return (_now(device) - began) / times

    timed(2)
    times = max(int(SECONDS / max(timed(1), 1e-7)), 1)
    return statistics.median(timed(times) for _ in range(5))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
