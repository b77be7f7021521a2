"""Which of torch's attention kernels runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionChoice = Literal["auto", "cudnn", "flash", "efficient", "math"]
"""auto: torch chooses. Others: that kernel wherever it can run (by head size, dtype, mask, device), otherwise another
one. How fast each is, and how it rounds, differs by device."""

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@contextmanager
def attention_by(choice: AttentionChoice) -> Iterator[None]:
    """Within: scaled dot product attention runs by this choice, also in code that is compiled within."""
    if choice == "auto":
        yield
        return
    others = [kernel for name, kernel in _BACKENDS.items() if name != choice]
    order = [_BACKENDS[choice], *(others if choice != "math" else ())]  # math always runs; CPUs take no order
    with sdpa_kernel(order, set_priority=True):
        yield
