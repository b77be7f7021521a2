"""Which form is cheapest for the layers of one kind in a call: a cost model of the three products.

For every layer, with N rows in G groups, T tokens a row, rank R and element size e, beyond the base layer's own work:

    lane-packed  2 N T R (in + out) operations; reads x, writes and reads N T R, reads and writes y; 2 kernels;
                 or, where whole weights are made in passing, 2 G R in out, and four passes over G weights
    pool         the same with the pool's rank, and the gates: 3 kernels
    dense        reads the weights of G groups instead of one; once a mix they are written, which its steps share

Keys and values of the text take all that once a mix, and nothing in its other calls.

The time is operations / rate or bytes / bandwidth, whichever is larger, plus the launch of each kernel. The rate of a
product of low rank grows with the rank, as its tiles fill, up to that of a large product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.engine.products.factors import Form, made_in_passing
from pipelines.engine.residency.packing import Ranks
from pipelines.engine.residency.table import Table

TEXT_TOKENS = 77
"""Tokens that one pass of a text encoder reads."""
FILLED_BY = 2
"""Kernels that write one layer's weights for a mix. They are not recorded."""
FEWEST_STEADY = 10
"""A mix gets weights of its own only where it stays as it is for so many steps."""
LOW_RANK = 48
"""The rank at which products of low rank are measured, that of three LoRAs of rank 16."""


@dataclass(frozen=True)
class Rates:
    """How fast a device is.

    gemm: operations a second in a large product. low_rank: the same in a product of rank `LOW_RANK`. bandwidth: bytes
    copied a second, each read and written. launch: seconds a recorded kernel costs. host: seconds a kernel costs that
    is not recorded.
    """

    gemm: float
    low_rank: float
    bandwidth: float
    launch: float
    host: float

    def product(self, rank: int) -> float:
        """Operations a second in a product of that rank. An empty tile takes some time, and each rank adds to it."""
        empty = LOW_RANK * (self.gemm / self.low_rank - 1)  # in ranks of a large product
        return self.gemm * max(rank, 1) / (max(rank, 1) + max(empty, 0.0))


MEASURED = {
    "cuda": Rates(gemm=6.0e14, low_rank=1.0e14, bandwidth=2.6e12, launch=1.5e-6, host=6.0e-6),
    "cpu": Rates(gemm=5.0e10, low_rank=3.0e10, bandwidth=1.0e10, launch=1.0e-5, host=1.0e-5),
}
"""For devices that nobody has calibrated: an H100 in bfloat16, and one core in float32."""


@dataclass(frozen=True)
class Work:
    """One layer's work in a call. tokens: positions a row. in_width: inputs, times the kernel's size in a convolution.
    layers: how many layers have the same work."""

    rows: int
    tokens: int
    in_width: int
    out_width: int
    layers: int = 1


@dataclass(frozen=True)
class Estimate:
    """What a form costs beyond the base model. step: seconds a call. once: seconds a mix. bytes: of buffers."""

    form: Form
    step: float
    once: float
    bytes: int

    def over(self, steps: int) -> float:
        """Seconds a step, for a mix that stays for so many steps."""
        return self.step + self.once / max(steps, 1)


@dataclass(frozen=True)
class Load:
    """A call as the planner sees it. cells: h * w of the latents. steady: steps for which its mixes stay as they are.
    room: bytes that buffers may take."""

    rows: int
    groups: int
    cells: int
    steady: int
    room: float


@dataclass(frozen=True)
class KindPlan:
    """The form chosen for one kind of layer, and what each form would cost."""

    ranks: Ranks
    layers: int
    estimates: tuple[Estimate, ...]
    chosen: Form


@dataclass(frozen=True)
class CallPlan:
    """One UNet call for pictures of one size. steady: steps for which their mixes stay as they are. kinds: the forms.
    note: what FLoRA adapters do besides."""

    width: int
    height: int
    pictures: int
    rows: int
    steady: int
    kinds: tuple[KindPlan, ...]
    note: str


@dataclass(frozen=True)
class Planner:
    """rates: of the device; None takes those of `MEASURED` for its type."""

    rates: Rates | None = None

    def estimates(self, table: Table, ranks: Ranks, load: Load) -> tuple[Estimate, ...]:
        """What every form costs for one kind of layer."""
        weight = table.layers[0].weight
        rates = self.rates or MEASURED.get(weight.device.type, MEASURED["cpu"])
        works = list(works_of(table, ranks, load.rows, load.cells))
        return tuple(estimates(works, ranks, load.groups, rates, weight.itemsize))

    def choose(self, found: Sequence[Estimate], load: Load) -> Form:
        """The cheapest form that fits; whole weights only where the mix stays for long enough."""
        fitting = [
            each
            for each in found
            if each.bytes <= load.room and (each.form != "dense" or load.steady >= FEWEST_STEADY)
        ]
        return min(fitting or found[:1], key=lambda each: each.over(load.steady)).form


def works_of(table: Table, ranks: Ranks, rows: int, cells: int) -> Iterator[Work]:
    """The layers of one kind; cells: h * w of the latents."""
    for (level, inner, outer), layers in table.sizes[ranks.kind].items():
        tokens = TEXT_TOKENS if ranks.kind == "text" else 1 if level is None else max(cells >> (2 * level), 1)
        yield Work(rows, tokens, inner, outer, layers)


def estimates(works: list[Work], ranks: Ranks, groups: int, rates: Rates, size: int) -> list[Estimate]:
    """Lane-packed, pool and dense; `size`: bytes of an element."""
    found = []
    for form, rank, sets, kernels in (("lane-packed", ranks.lane, groups, 2), ("pool", ranks.pool, 1, 3)):
        step, held = 0.0, 0
        for work in works:
            tokens = work.rows * work.tokens
            operations = 2 * tokens * rank * (work.in_width + work.out_width)
            moved = tokens * (work.in_width + 2 * rank + 2 * work.out_width) * size
            if form == "lane-packed" and ranks.kind != "conv":
                whole = groups * work.in_width * work.out_width
                if made_in_passing(tokens // groups, work.in_width, work.out_width):
                    operations, moved = 2 * rank * whole, 4 * whole * size
            step += work.layers * (
                max(operations / rates.product(rank), moved / (2 * rates.bandwidth)) + kernels * rates.launch
            )
            held += work.layers * sets * rank * (work.in_width + work.out_width) * size
        found.append(
            Estimate("pool" if form == "pool" else "lane-packed", step, held / rates.bandwidth, held)
        )
    weights = sum(work.layers * work.in_width * work.out_width * size for work in works)
    step = (groups - 1) * weights / (2 * rates.bandwidth)  # a copy reads and writes
    held = groups * weights
    once = held / rates.bandwidth + sum(work.layers for work in works) * FILLED_BY * rates.host
    found.append(Estimate("dense", step, once, held))
    if ranks.kind == "text":
        return [replace(each, step=0.0, once=each.once + each.step) for each in found]
    return found
