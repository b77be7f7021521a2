"""Which form is cheapest for the layers of one kind in a call: a cost model of the three forms (`products/factors.py`).

For one layer with N rows in G groups, T tokens a row and rank R, each form costs beyond the base layer's own work:

    lane-packed  2 N T R (in + out) operations. Reads x, writes and reads N T R numbers, reads and writes y. 2 kernels.
                 Where whole weights are made in passing: 2 G R in out operations and four passes over G weights.
    pool         The same with the pool's rank. 3 kernels, one of them for the gates.
    dense        Reads G weights instead of one. They are written once for each mix, and all its steps share that cost.

For the layers of kind "text" all of this is done once for each mix, and not in its other calls.

A form takes the longer of the times for its operations and for its bytes, and the launch of each kernel on top. The
rate of a low-rank product grows with the rank, as its tiles fill, up to the rate of a large product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.engine.products.factors import Form, made_in_passing
from pipelines.engine.residency.packing import Ranks
from pipelines.engine.residency.table import Table

TEXT_TOKENS = 77
"""Tokens of a text, as the cost model assumes them: one chunk."""
FILLED_BY = 2
"""Kernels that write one layer's whole weights for a mix. They are launched one by one, not recorded."""
FEWEST_STEADY = 10
"""A mix gets whole weights only if it stays the same for at least so many steps."""
LOW_RANK = 48
"""The rank at which low-rank products are measured: that of three LoRAs of rank 16."""


@dataclass(frozen=True)
class Rates:
    """How fast a device is in one dtype.

    gemm: operations per second in a large matrix product. A multiplication and an addition count as two.
    low_rank: operations per second in a product of rank `LOW_RANK`.
    bandwidth: bytes copied per second. A copied byte is read once and written once.
    launch: seconds for a kernel in a recording.
    host: seconds for a kernel that the host launches.
    """

    gemm: float
    low_rank: float
    bandwidth: float
    launch: float
    host: float

    def product(self, rank: int) -> float:
        """Operations per second in a product of that rank.

        The time for such a product is a fixed part plus a part that grows with the rank. `low_rank` gives the first.
        """
        empty = LOW_RANK * (self.gemm / self.low_rank - 1)  # the fixed part, as a rank that takes as long
        return self.gemm * max(rank, 1) / (max(rank, 1) + max(empty, 0.0))


MEASURED = {
    "cuda": Rates(gemm=6.0e14, low_rank=1.0e14, bandwidth=2.6e12, launch=1.5e-6, host=6.0e-6),
    "cpu": Rates(gemm=5.0e10, low_rank=3.0e10, bandwidth=1.0e10, launch=1.0e-5, host=1.0e-5),
}
"""Rates for devices that are not calibrated, by type: those of an H100 in bfloat16 and of one core in float32."""


@dataclass(frozen=True)
class Work:
    """One layer's work in a call. tokens: positions in a row. in_width: the layer's inputs, in a convolution times the
    kernel's size. layers: how many layers have the same work."""

    rows: int
    tokens: int
    in_width: int
    out_width: int
    layers: int = 1


@dataclass(frozen=True)
class Estimate:
    """What a form costs beyond the base model.

    step: seconds for each call. once: seconds for each new mix. bytes: the size of its buffers.
    """

    form: Form
    step: float
    once: float
    bytes: int

    def over(self, steps: int) -> float:
        """Seconds for each step, for a mix that stays for so many steps."""
        return self.step + self.once / max(steps, 1)


@dataclass(frozen=True)
class Load:
    """A call as the planner sees it. cells: h * w of the latents. steady: for how many steps its mixes stay the same.
    room: bytes that buffers may take."""

    rows: int
    groups: int
    cells: int
    steady: int
    room: float


@dataclass(frozen=True)
class KindPlan:
    """The form chosen for one kind of layer, and what each form would cost. layers: how many there are of the kind."""

    ranks: Ranks
    layers: int
    estimates: tuple[Estimate, ...]
    chosen: Form


@dataclass(frozen=True)
class CallPlan:
    """One UNet call for pictures of one size, in pixels. steady: for how many steps their mixes stay the same.
    kinds: the form for each kind of layer. note: what adapters do besides, or ""."""

    width: int
    height: int
    pictures: int
    rows: int
    steady: int
    kinds: tuple[KindPlan, ...]
    note: str


@dataclass(frozen=True)
class Planner:
    """Estimates and chooses the forms. rates: the device's; None takes those of `MEASURED` for its type."""

    rates: Rates | None = None

    def estimates(self, table: Table, ranks: Ranks, load: Load) -> tuple[Estimate, ...]:
        """What each form costs for one kind of layer: lane-packed, pool, dense, in this order."""
        weight = table.layers[0].weight
        rates = self.rates or MEASURED.get(weight.device.type, MEASURED["cpu"])
        works = list(works_of(table, ranks, load.rows, load.cells))
        return tuple(estimates(works, ranks, load.groups, rates, weight.itemsize))

    def choose(self, found: Sequence[Estimate], load: Load) -> Form:
        """The cheapest form whose buffers fit. "dense" only if the mix stays for `FEWEST_STEADY` steps.

        found: as `estimates` gives it. Where no form fits, its first one.
        """
        fitting = [
            each
            for each in found
            if each.bytes <= load.room and (each.form != "dense" or load.steady >= FEWEST_STEADY)
        ]
        return min(fitting or found[:1], key=lambda each: each.over(load.steady)).form


def works_of(table: Table, ranks: Ranks, rows: int, cells: int) -> Iterator[Work]:
    """The work of the layers of one kind, equal layers together. cells: h * w of the latents."""
    for (level, inner, outer), layers in table.sizes[ranks.kind].items():
        tokens = TEXT_TOKENS if ranks.kind == "text" else 1 if level is None else max(cells >> (2 * level), 1)
        yield Work(rows, tokens, inner, outer, layers)


def estimates(works: list[Work], ranks: Ranks, groups: int, rates: Rates, size: int) -> list[Estimate]:
    """What each form costs for these layers: lane-packed, pool, dense. size: bytes of one number."""
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
