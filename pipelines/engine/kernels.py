"""Triton kernels: a layer's product with all that belongs to it in one pass over its output.

    y_g,p = act(x_g W_p^T + s_g,p U_g,p + b)        g = 1 … G groups of lanes, p = 1 … P layers of one input

W is one for all groups or, where P is 1, each group's own; s the groups' rows already shrunk and U their factors'
second half, so that the low-rank part goes into the same float32 accumulator and costs no pass over y of its own. act
is nothing or, where P is 1, GEGLU (Shazeer 2020, arXiv 2002.05202): of W's rows the first half makes h, the second
half the gate, and h * gelu(gate) is written, half as wide as W is high; gelu is the exact one, with erf, as in
diffusers.

This module imports Triton; nothing imports it before a product on a CUDA device asks for it (`products.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

BAND = 8
"""Row blocks whose tiles run side by side, so that what they share of W stays in the second-level cache."""
GEGLU_COLUMNS = 1024
MERGED_ROWS, MERGED_COLUMNS = 64, 128


@dataclass(frozen=True)
class Tile:
    """How a product is cut: m x n outputs a program (n of h and n of the gate for GEGLU), k of the sum at once.

    persistent: as many programs as the device has processors, each doing tile after tile. descriptors: x and W are
    read through tensor descriptors, which need rows that are multiples of 16 bytes. overlapping: the product begins
    while its input is still being shrunk, by the kernel before it (CUDA's programmatic dependent launch, from compute
    capability 9.0 on), and adds the low-rank part last.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    persistent: bool = False
    descriptors: bool = False
    overlapping: bool = False

    @property
    def name(self) -> str:
        extra = (", persistent" if self.persistent else "") + (", descriptors" if self.descriptors else "")
        extra += ", overlapping" if self.overlapping else ""
        return f"{self.m} x {self.n} x {self.k}, {self.warps} warps, {self.stages} stages{extra}"


PLAIN = (
    Tile(128, 128, 64, 4, 3, descriptors=True, overlapping=True),
    Tile(128, 256, 64, 8, 3, descriptors=True, overlapping=True),
    Tile(128, 128, 64, 4, 3, descriptors=True),
    Tile(128, 256, 64, 8, 3, descriptors=True),
    Tile(128, 128, 64, 4, 3),
    Tile(128, 256, 64, 8, 3),
    Tile(64, 128, 64, 4, 4),
)
GATED = (
    Tile(128, 128, 64, 8, 3, descriptors=True, overlapping=True),
    Tile(128, 128, 64, 8, 3, descriptors=True),
    Tile(128, 64, 64, 4, 3, descriptors=True),
    Tile(128, 128, 64, 8, 3, persistent=True, descriptors=True),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 64, 64, 4, 3),
    Tile(256, 64, 64, 8, 3),
    Tile(64, 64, 64, 4, 4),
)
SHRINKING = Tile(64, 64, 64, 4, 4, descriptors=True)
"""Candidates for products, and those with GEGLU: which is fastest is measured (`choosing.py`). And what shrinks for
those that overlap it."""


def tiles(x: Tensor, *, geglu: bool, shrinking: bool) -> Sequence[Tile]:
    """The candidates that can run a product of x [G, T, in]. shrinking: whether x is shrunk just before it."""
    aligned = x.shape[-1] * x.element_size() % 16 == 0
    overlap = shrinking and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return [
        tile
        for tile in (GATED if geglu else PLAIN)
        if (aligned or not tile.descriptors) and (overlap or not tile.overlapping)
    ]


def shrink_and_product(
    x: Tensor, weights: Tensor, bias: Tensor | None, down: Tensor, ups: Tensor, geglu: bool, tile: Tile
) -> Tensor:
    """As `product`, with x shrunk here, by down [G, P * R, in], for a tile that overlaps it."""
    shrunk = product(x, down[None], None, None, None, False, SHRINKING, signal=True)
    return product(x, weights, bias, shrunk, ups, geglu, tile)


def product(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    shrunk: Tensor | None,
    ups: Tensor | None,
    geglu: bool,
    tile: Tile,
    signal: bool = False,
) -> Tensor:
    """[G, T, P * out] for x [G, T, in], weights [P, out, in] or [1, G, out, in], bias [out] where P is 1, shrunk
    [G, T, P * R] and ups [P, G, R, out], both or neither; [G, T, out / 2] with GEGLU. All of one dtype.
    signal: let an overlapping kernel that follows begin at once.

    Raises what Triton raises for a tile that this device cannot run.
    """
    parts = len(weights)
    own = weights.ndim == 4
    assert parts == 1 or not (own or geglu or bias is not None)
    groups, tokens, inner = x.shape
    outer = weights.shape[-2] // (2 if geglu else 1)
    x, weights = x.contiguous(), weights.contiguous()
    y = x.new_empty((groups, tokens, parts * outer))
    count = groups * triton.cdiv(tokens, tile.m) * parts * triton.cdiv(outer, tile.n)
    rank = 0 if ups is None else ups.shape[-2]
    programs = min(count, processors(x.device)) if tile.persistent else count
    _product[(programs,)](
        _described(x, tile.m, tile.k) if tile.descriptors else x,
        _described(weights, tile.n, tile.k) if tile.descriptors else weights,
        x if bias is None else bias,
        x if shrunk is None else shrunk.contiguous(),
        x if ups is None else ups.contiguous(),
        y,
        groups,
        tokens,
        inner,
        outer,
        rank,
        M=tile.m,
        N=tile.n,
        K=tile.k,
        R=64 if rank > 32 else 32 if rank > 16 else 16,
        PARTS=parts,
        OWN=own,
        BIAS=bias is not None,
        LOW_RANK=ups is not None,
        GEGLU=geglu,
        EVEN=inner % tile.k == 0,
        DESCRIPTORS=tile.descriptors,
        PERSISTENT=tile.persistent,
        BAND_ROWS=BAND,
        SIGNAL=signal,
        OVERLAPPING=tile.overlapping,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **({"launch_pdl": True} if tile.overlapping else {}),
    )
    return y


def merged(weights: Tensor, down: Tensor, ups: Tensor) -> Tensor:
    """Whole weights [G, P * out, in]: weights [P, out, in] and what down [G, P * R, in] and ups [P, G, R, out] add."""
    parts, outer, inner = weights.shape
    groups, rank = ups.shape[1], ups.shape[2]
    found = weights.new_empty((groups, parts * outer, inner))
    grid = (triton.cdiv(outer, MERGED_ROWS), triton.cdiv(inner, MERGED_COLUMNS), groups * parts)
    _merged[grid](
        weights.contiguous(),
        down.contiguous(),
        ups.contiguous(),
        found,
        groups,
        outer,
        inner,
        rank,
        M=MERGED_ROWS,
        N=MERGED_COLUMNS,
        R=64 if rank > 32 else 32 if rank > 16 else 16,
        PARTS=parts,
    )
    return found


def geglu(y: Tensor, bias: Tensor | None = None) -> Tensor:
    """h * gelu(gate) for y [..., 2 * out] and bias [2 * out], of whose sum h is the first half: [..., out]."""
    outer = y.shape[-1] // 2
    found = y.new_empty((*y.shape[:-1], outer))
    grid = (found.numel() // outer, triton.cdiv(outer, GEGLU_COLUMNS))
    y = y.contiguous()
    _geglu[grid](y, y if bias is None else bias, found, outer, BIAS=bias is not None, COLUMNS=GEGLU_COLUMNS)
    return found


def _described(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """The tensor as a matrix of rows, read in blocks; what lies outside reads as zero."""
    matrix = tensor.flatten(0, -2)
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


@cache
def processors(device: torch.device) -> int:
    """Of a CUDA device. On a CPU, for tests in Triton's interpreter: few."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def _product(
    x,
    weight,
    bias,
    shrunk,
    up,
    y,
    groups,
    tokens,
    inner,
    outer,
    rank,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    OWN: tl.constexpr,
    BIAS: tl.constexpr,
    LOW_RANK: tl.constexpr,
    GEGLU: tl.constexpr,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PERSISTENT: tl.constexpr,
    BAND_ROWS: tl.constexpr,
    SIGNAL: tl.constexpr,
    OVERLAPPING: tl.constexpr,
):
    """See `product`; outer: of one part. EVEN: K divides `inner`."""
    if SIGNAL:
        gdc_launch_dependents()
    if PERSISTENT:
        count = groups * tl.cdiv(tokens, M) * PARTS * tl.cdiv(outer, N)
        for place in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=True):
            _tile(
                place, x, weight, bias, shrunk, up, y, groups, tokens, inner, outer, rank,
                M, N, K, R, PARTS, OWN, BIAS, LOW_RANK, GEGLU, EVEN, DESCRIPTORS, BAND_ROWS, OVERLAPPING,
            )  # fmt: skip
    else:
        _tile(
            tl.program_id(0), x, weight, bias, shrunk, up, y, groups, tokens, inner, outer, rank,
            M, N, K, R, PARTS, OWN, BIAS, LOW_RANK, GEGLU, EVEN, DESCRIPTORS, BAND_ROWS, OVERLAPPING,
        )  # fmt: skip


@triton.jit
def _tile(
    place,
    x,
    weight,
    bias,
    shrunk,
    up,
    y,
    groups,
    tokens,
    inner,
    outer,
    rank,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    OWN: tl.constexpr,
    BIAS: tl.constexpr,
    LOW_RANK: tl.constexpr,
    GEGLU: tl.constexpr,
    EVEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BAND_ROWS: tl.constexpr,
    OVERLAPPING: tl.constexpr,
):
    """One tile: rows [row, row + M) of a group, columns [column, column + N) of a part. Where it hangs over the edge,
    the last row is read again, and nothing is written. Offsets within a tile fit 32 bits, those of tiles take 64."""
    row_blocks = tl.cdiv(tokens, M)
    column_blocks = tl.cdiv(outer, N)
    band = BAND_ROWS * PARTS * column_blocks
    first = place // band * BAND_ROWS
    height = min(groups * row_blocks - first, BAND_ROWS)
    block = first + place % band % height
    part = place % band // height // column_blocks if PARTS > 1 else 0
    column = (place % band // height - part * column_blocks) * N
    group = block // row_blocks
    row = block % row_blocks * M
    width = outer * 2 if GEGLU else outer
    top = group.to(tl.int64) * tokens + row  # among all rows of x and y
    rows = tl.arange(0, M)
    columns = tl.arange(0, N)
    within_rows = tl.minimum(rows, tokens - row - 1)
    inside = columns < outer - column

    value = tl.zeros((M, N), dtype=tl.float32)
    gate = tl.zeros((M, N), dtype=tl.float32)  # no code comes of it without GEGLU
    if LOW_RANK:
        shrunk += top * PARTS * rank + part * rank
        up += (part * groups + group).to(tl.int64) * rank * width + column
        if not OVERLAPPING:
            value, gate = _low_rank(
                value,
                gate,
                shrunk,
                up,
                within_rows,
                columns,
                inside,
                outer,
                width,
                rank,
                M,
                N,
                R,
                PARTS,
                GEGLU,
            )

    weight_row = (group if OWN else part) * width + column
    if DESCRIPTORS:
        x_row = group * tokens + row
        for k in range(0, inner, K):
            a = x.load([x_row, k])
            value = tl.dot(a, weight.load([weight_row, k]).T, value)
            if GEGLU:
                gate = tl.dot(a, weight.load([weight_row + outer, k]).T, gate)
    else:
        ks = tl.arange(0, K)
        within_columns = tl.minimum(columns, outer - column - 1)
        x_tile = x + top * inner + within_rows[:, None] * inner + ks[None, :]
        weight += weight_row.to(tl.int64) * inner
        weight_tile = weight + within_columns[None, :] * inner + ks[:, None]
        gate_tile = weight_tile + outer * inner
        for k in range(0, inner, K):
            if EVEN:
                a = tl.load(x_tile)
                value = tl.dot(a, tl.load(weight_tile), value)
                if GEGLU:
                    gate = tl.dot(a, tl.load(gate_tile), gate)
            else:
                known = ks < inner - k
                a = tl.load(x_tile, mask=known[None, :], other=0.0)
                value = tl.dot(a, tl.load(weight_tile, mask=known[:, None], other=0.0), value)
                if GEGLU:
                    gate = tl.dot(a, tl.load(gate_tile, mask=known[:, None], other=0.0), gate)
            x_tile += K
            weight_tile += K
            gate_tile += K

    if LOW_RANK and OVERLAPPING:
        gdc_wait()
        value, gate = _low_rank(
            value, gate, shrunk, up, within_rows, columns, inside, outer, width, rank, M, N, R, PARTS, GEGLU
        )
    if BIAS:
        value += tl.load(bias + column + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        if GEGLU:
            gate += tl.load(bias + outer + column + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GEGLU:
        value = _gated(value, gate)
    y += top * PARTS * outer + part * outer + column
    written = (rows < tokens - row)[:, None] & inside[None, :]
    y_tile = y + rows[:, None] * (PARTS * outer) + columns[None, :]
    tl.store(y_tile, value.to(y.dtype.element_ty), mask=written)


@triton.jit
def _low_rank(
    value,
    gate,
    shrunk,
    up,
    within_rows,
    columns,
    inside,
    outer,
    width,
    rank,
    M: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    GEGLU: tl.constexpr,
):
    """value, and gate with GEGLU, and what shrunk rows make of `up`, both from this tile's first on."""
    ranks = tl.arange(0, R)
    shrunk_tile = shrunk + within_rows[:, None] * (PARTS * rank) + ranks[None, :]
    up_tile = up + ranks[:, None] * width + columns[None, :]
    for r in range(0, rank, R):
        known = ranks < rank - r
        s = tl.load(shrunk_tile, mask=known[None, :], other=0.0)
        u = tl.load(up_tile, mask=known[:, None] & inside[None, :], other=0.0)
        value = tl.dot(s, u, value)
        if GEGLU:
            u = tl.load(up_tile + outer, mask=known[:, None] & inside[None, :], other=0.0)
            gate = tl.dot(s, u, gate)
        shrunk_tile += R
        up_tile += R * width
    return value, gate


@triton.jit
def _merged(
    weights,
    down,
    up,
    found,
    groups,
    outer,
    inner,
    rank,
    M: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A program for M rows and N columns of a group's weight for a part."""
    group, part = tl.program_id(2) // PARTS, tl.program_id(2) % PARTS
    first_row, first_column = tl.program_id(0) * M, tl.program_id(1) * N
    rows, columns, ranks = tl.arange(0, M), tl.arange(0, N), tl.arange(0, R)
    below, beside = rows < outer - first_row, columns < inner - first_column
    inside = below[:, None] & beside[None, :]
    tile = rows[:, None] * inner + columns[None, :]
    weights += (part * outer + first_row).to(tl.int64) * inner + first_column
    weight = tl.load(weights + tile, mask=inside, other=0.0)
    down += (group * PARTS + part).to(tl.int64) * rank * inner + first_column
    up += (part * groups + group).to(tl.int64) * rank * outer + first_row
    change = tl.zeros((M, N), dtype=tl.float32)
    for first in range(0, rank, R):
        known = ranks < rank - first
        up_tile = up + (first + ranks)[None, :] * outer + rows[:, None]
        u = tl.load(up_tile, mask=known[None, :] & below[:, None], other=0.0)
        down_tile = down + (first + ranks)[:, None] * inner + columns[None, :]
        d = tl.load(down_tile, mask=known[:, None] & beside[None, :], other=0.0)
        change = tl.dot(u, d, change)
    found += ((group * PARTS + part) * outer + first_row).to(tl.int64) * inner + first_column
    tl.store(found + tile, (weight.to(tl.float32) + change).to(found.dtype.element_ty), mask=inside)


@triton.jit
def _geglu(y, bias, found, outer, BIAS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program for every row and every `COLUMNS` columns of the result."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < outer
    y += row * 2 * outer
    value = tl.load(y + columns, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(y + outer + columns, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        gate += tl.load(bias + outer + columns, mask=inside, other=0.0).to(tl.float32)
    found += row * outer
    tl.store(found + columns, _gated(value, gate).to(found.dtype.element_ty), mask=inside)


@triton.jit
def _gated(value, gate):
    return value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
