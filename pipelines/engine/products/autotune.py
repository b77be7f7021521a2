"""Which way a layer's product runs: the library's, or one of the kernels. Measured on the device, never assumed.

The first call of a shape times all candidates, in a CUDA graph, on random operands of the same layout; one that fails,
or whose result is not the library's, is dropped, and its reason kept. The choice holds for the process and stands in a
file beside the device's rates. Nothing is measured while a CUDA graph is being captured: the library's way runs.
"""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pipelines.engine.products.graphs import CudaGraphs
from pipelines.engine.products.operands import LIBRARY, Operands, Way
from pipelines.home.files import write_atomically

CALLS, TURNS = 20, 5
GAIN = 0.98
"""A kernel is taken where it needs less than this part of the library's time: a smaller gain is noise."""
TOLERANCE = 1e-2
"""How far a kernel's result may lie from the library's, relatively: twice what rounding its parts to bfloat16 costs."""
REVISION = 3
"""The kernels' version. What was measured with older kernels is not read."""

Clock = Callable[[Way], float]


@dataclass(frozen=True)
class Choice:
    """name: the fastest way. microseconds: what every way took that ran. dropped: way -> why it was left out."""

    name: str
    microseconds: Mapping[str, float]
    dropped: Mapping[str, str]


@dataclass
class Choices:
    """What has been measured on one device in one dtype. file: where it is kept; None keeps it in memory alone."""

    file: Path | None = None
    known: dict[str, Choice] = field(default_factory=dict)

    def run(self, operands: Operands) -> Tensor:
        """The product by the fastest way. Where it is not known it is measured first, unless a graph is captured."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            choice = self.known.get(operands.label)
        else:
            choice = self.choice(operands)
        if choice is None or choice.name == LIBRARY:
            return operands.library()
        return operands.ways()[choice.name]()

    def choice(self, operands: Operands) -> Choice:
        label = operands.label
        found = self.known.get(label)
        if found is None or (found.name != LIBRARY and found.name not in operands.ways()):
            try:
                found = measured(operands.twin().ways(), clock(operands.x.device))
            except torch.OutOfMemoryError:  # no room to try: another call may have it
                return Choice(LIBRARY, {}, {LIBRARY: "the device's memory is too small to measure"})
            self.known[label] = found
            self.write()
        return found

    def read(self) -> None:
        """What the file holds; nothing where it cannot be read."""
        if self.file is None:
            return
        try:
            kept = json.loads(self.file.read_text())
            self.known = {label: Choice(**own) for label, own in kept.items()} | self.known
        except (OSError, ValueError, TypeError, AttributeError):
            return

    def write(self) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        known = {label: asdict(own) for label, own in self.known.items()}
        write_atomically(self.file, json.dumps(known, indent=1))


def measured(ways: Mapping[str, Way], seconds: Clock) -> Choice:
    """The fastest of the ways, the library's unless another gains more than noise.

    ways: the library's among them, which must run.
    """
    expected = ways[LIBRARY]().float()
    found, dropped = {LIBRARY: 1e6 * seconds(ways[LIBRARY])}, {}
    for name, way in ways.items():
        if name == LIBRARY:
            continue
        try:
            apart = float((way().float() - expected).norm() / expected.norm())
            if not apart < TOLERANCE:
                dropped[name] = f"its result is {apart:.1e} away from the library's"
                continue
            found[name] = 1e6 * seconds(way)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler or a driver raises costs this candidate only
            dropped[name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
    best = min(found, key=found.__getitem__)
    return Choice(best if found[best] < GAIN * found[LIBRARY] else LIBRARY, found, dropped)


def clock(device: torch.device) -> Clock:
    """Seconds of a way on a CUDA device: the median of some replays of a graph of its calls."""

    def seconds(way: Way) -> float:
        def calls() -> None:
            for _ in range(CALLS):
                way()

        replay = CudaGraphs(device).record(calls).replay
        replay()

        def turn() -> float:
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            replay()
            torch.cuda.synchronize(device)
            return (time.perf_counter() - began) / CALLS

        return statistics.median(turn() for _ in range(TURNS))

    return seconds


# -- of this process -------------------------------------------------------------------------------------

_choices: dict[tuple[torch.device, torch.dtype], Choices] = {}
_folder: list[Path] = []


def keep_in(cache_folder: Path) -> None:
    """From now on choices are read from and kept in this folder, a file for each device and dtype."""
    _folder[:] = [cache_folder / "engine"]
    _choices.clear()


def choices(device: torch.device, dtype: torch.dtype) -> Choices:
    """Of a CUDA device and a dtype."""
    found = _choices.get((device, dtype))
    if found is None:
        kind = str(dtype).removeprefix("torch.")
        name = f"{torch.cuda.get_device_name(device)} {kind} torch {torch.__version__} kernels {REVISION}"
        file = re.sub(r"[^A-Za-z0-9]+", "-", name) + ".json"
        found = _choices[device, dtype] = Choices(_folder[0] / file if _folder else None)
        found.read()
    return found


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def usable(x: Tensor) -> bool:
    """Whether kernels can serve this input: on a CUDA device, in 16 bits, and without gradients."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and not torch.is_grad_enabled()


@torch.library.custom_op(
    "lora_studio::product",
    mutates_args=(),
    schema="(Tensor x, Tensor[] weights, Tensor? bias, Tensor? down, Tensor[] ups, Tensor? gate, bool geglu) -> Tensor",
)
def product(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    down: Tensor | None,
    ups: Sequence[Tensor],
    gate: Tensor | None,
    geglu: bool,
) -> Tensor:
    """What `Operands` describe, as one operation that inductor keeps whole: [lanes, …, P * out] for x [lanes, …, in],
    half as wide with GEGLU. The lanes fall into groups here: an input taken apart before would cost a copy."""
    groups = len(weights[0]) if weights[0].ndim == 3 else 1 if down is None else len(down)
    grouped = x.reshape(groups, -1, x.shape[-1])
    operands = Operands(grouped, tuple(weights), bias, down, tuple(ups), gate, geglu)
    if usable(x):
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            y = choices(x.device, x.dtype).run(operands)
    else:
        y = operands.library()
    return y.view(*x.shape[:-1], -1)


@product.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    down: Tensor | None,
    ups: Sequence[Tensor],
    gate: Tensor | None,
    geglu: bool,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weights) * weights[0].shape[-2] // (2 if geglu else 1)))
