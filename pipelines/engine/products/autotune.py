"""Which way a layer's product runs: the library's, or by one of the kernels. Measured on the device, never assumed.

The first call of a shape times all candidates, each in a CUDA graph, on random operands of the same layout. A candidate
that fails, or whose result differs from the library's, is dropped, and the reason is kept. The choice holds for the
process, and is kept in a file beside the device's rates. Nothing is measured while a CUDA graph is being captured: a
shape that is not known then runs the library's way.
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
"""Calls in one graph, and how often the graph is timed."""
GAIN = 0.98
"""A kernel is chosen if it takes less than this fraction of the library's time. A smaller gain is noise."""
TOLERANCE = 1e-2
"""The largest relative error of a kernel's result, by the norm: twice what rounding its parts to bfloat16 costs."""
REVISION = 3
"""The kernels' version. Measurements of older kernels are not read."""

Clock = Callable[[Way], float]


@dataclass(frozen=True)
class Choice:
    """The outcome of measuring one shape. name: the chosen way. microseconds: way -> its time, for those that ran.
    dropped: way -> why it was left out."""

    name: str
    microseconds: Mapping[str, float]
    dropped: Mapping[str, str]


@dataclass
class Choices:
    """The choices for one device and dtype, by `Operands.label`. file: where they are kept; None is memory alone."""

    file: Path | None = None
    known: dict[str, Choice] = field(default_factory=dict)

    def run(self, operands: Operands) -> Tensor:
        """The product by the chosen way. If there is none yet, it is measured first, unless a graph is captured."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            choice = self.known.get(operands.label)
        else:
            choice = self.choice(operands)
        if choice is None or choice.name == LIBRARY:
            return operands.library()
        return operands.ways()[choice.name]()

    def choice(self, operands: Operands) -> Choice:
        """The choice for operands of this shape, measured and kept if there is none yet."""
        label = operands.label
        found = self.known.get(label)
        if found is None or (found.name != LIBRARY and found.name not in operands.ways()):
            try:
                found = measured(operands.twin().ways(), clock(operands.x.device))
            except torch.OutOfMemoryError:  # not kept: a later call may have room to measure
                return Choice(LIBRARY, {}, {LIBRARY: "the device's memory is too small to measure"})
            self.known[label] = found
            self.write()
        return found

    def read(self) -> None:
        """Take over what the file holds. Nothing where it cannot be read."""
        if self.file is None:
            return
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            self.known = {label: Choice(**own) for label, own in kept.items()} | self.known
        except (OSError, ValueError, TypeError, AttributeError):
            return

    def write(self) -> None:
        """Write all choices to the file. Raises OSError."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        known = {label: asdict(own) for label, own in self.known.items()}
        write_atomically(self.file, json.dumps(known, indent=1))


def measured(ways: Mapping[str, Way], seconds: Clock) -> Choice:
    """Time the ways, and choose the fastest; the library's, unless another gains more than noise (`GAIN`).

    ways: name -> way. The library's is among them, and must run. Raises torch.OutOfMemoryError.
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
        except Exception as error:  # compilers and drivers raise anything; only this candidate is dropped
            dropped[name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
    best = min(found, key=found.__getitem__)
    return Choice(best if found[best] < GAIN * found[LIBRARY] else LIBRARY, found, dropped)


def clock(device: torch.device) -> Clock:
    """A function that times a way on a CUDA device, in seconds: the median over replays of a graph of its calls."""

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
    """From now on, read choices from this folder and keep them there: one file for each device and dtype."""
    _folder[:] = [cache_folder / "engine"]
    _choices.clear()


def choices(device: torch.device, dtype: torch.dtype) -> Choices:
    """The choices for a CUDA device and a dtype."""
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
    """The product that `Operands` describes: x [lanes, …, in] -> [lanes, …, P * out], half as wide with GEGLU.

    It is one operation, so that inductor keeps it whole. It divides the lanes into groups itself: dividing them outside
    would cost a copy.
    """
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
