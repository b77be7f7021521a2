"""A process of its own that says what one size needs of memory, and what it takes: `test_memory.py` runs it.

usage: memory_peaks.py unet | decode | encode. Prints both numbers of bytes. In a process that did more before, what was
freed is taken again, and nothing grows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines import Request, StudioPipeline

SIDE = 512


def now(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def peak(work: Callable[[], object]) -> int:
    """Bytes that this process grows by in between."""
    Path("/proc/self/clear_refs").write_text("5")
    before = now("VmRSS")
    work()
    return now("VmHWM") - before


def main(what: str) -> tuple[int, int]:
    """What is needed, and what is taken."""
    torch.set_num_threads(1)
    pipe = StudioPipeline.from_pretrained("tiny-sdxl")
    needs, shape = pipe.model.needs, pipe.model.latent_shape(SIDE, SIDE)
    request = Request("a", seed=1, steps=1, width=SIDE, height=SIDE, guidance_scale=1.0, scheduler="Euler")
    pipe(Request("a", seed=1, steps=1))  # what is taken once is taken before
    with torch.inference_mode():
        if what == "unet":
            return needs.row(shape[1] * shape[2]), peak(lambda: pipe(request, output_type="latent"))
        if what == "decode":
            latents = torch.randn(1, *shape)
            return int(needs.decoded * SIDE**2), peak(lambda: pipe.model.vae.decode(latents))
        pixels = torch.randn(1, 3, SIDE, SIDE)
        return int(needs.encoded * SIDE**2), peak(lambda: pipe.model.vae.encode(pixels))


if __name__ == "__main__":
    print(*main(sys.argv[1]))
