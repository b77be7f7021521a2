"""Shows where a way's time goes: the device's work in one call, by kind, as torch's profiler sees it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity

REST = "element by element"
KINDS: tuple[tuple[str, str], ...] = (
    ("norms", r"^triton_(poi|red|per)_.*norm"),
    (REST, r"^triton_(poi|red|per)_"),
    ("attention", r"flash|fmha|attention|sdpa|softmax"),
    ("layout", r"nchwtonhwc|nhwctonchw|transpose|permute"),
    ("convolution", r"conv|xmma_fprop|winograd|im2col"),
    (
        "products",
        r"gemm|nvjet|cutlass|cublas|splitk|aten::(add|b|badd)?mm|^(product|merged)_kernel|triton_tem",
    ),
    ("norms", r"norm|rowwisemoments|welford"),
    ("copies", r"memcpy|memset|copy|catarray|aten::cat|index|gather|fill"),
    (REST, r""),
)
"""Kind of work, and what the names of its kernels or operations hold; the first that fits counts. inductor names a
fused kernel after all that it does, so a norm and the sum before it are one kernel and count as a norm."""


NAMES = 6
"""Names that are kept for each kind of work."""


@dataclass(frozen=True)
class Part:
    """One kind of work: its seconds and launches a step, and the seconds of the names that took most of them."""

    kind: str
    seconds: float
    launches: float
    most: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TimeProfile:
    """What a step keeps the device busy with, the longest first."""

    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    def lines(self, step: float) -> list[str]:
        """The profile as text. step: seconds of a step without the profiler."""
        lines = [
            f"{1000 * part.seconds:11.2f} ms {part.launches:6.0f} x  {part.kind}: {part.most[0][0][:70]}"
            for part in self.parts
        ]
        return [
            *lines,
            f"{1000 * (step - self.seconds):11.2f} ms           nothing running (below 0: work side by side)",
        ]


def kind_of(name: str) -> str:
    """The kind of work that a kernel or an operation does, by its name."""
    lower = name.lower()
    return next(kind for kind, marks in KINDS if re.search(marks, lower))


def profiled(call: Callable[[], object], steps: int, device: torch.device) -> TimeProfile:
    """The profile of one call. steps: how many it does. On a CPU: time in torch's operations themselves."""
    cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        call()
        if cuda:
            torch.cuda.synchronize(device)
    found: dict[str, list[tuple[float, int, str]]] = {}
    for event in seen.key_averages():
        if cuda and event.device_type.name != "CUDA":
            continue
        micro = event.self_device_time_total if cuda else event.self_cpu_time_total
        if micro > 0:
            found.setdefault(kind_of(event.key), []).append((micro / 1e6, event.count, event.key))
    parts = [
        Part(
            kind,
            sum(seconds for seconds, _, _ in own) / steps,
            sum(count for _, count, _ in own) / steps,
            tuple((name, seconds / steps) for seconds, _, name in sorted(own, reverse=True)[:NAMES]),
        )
        for kind, own in found.items()
    ]
    return TimeProfile(tuple(sorted(parts, key=lambda part: -part.seconds)))
