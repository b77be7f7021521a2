"""The code of the Triton kernels, for one program on the device each. `kernels.py` launches them.

Names are as there: G groups of `tokens` rows each, P parts, `rank` rank rows a part. Of the arguments, pointers come
first, then sizes, then the constants for which a kernel is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def product_kernel(
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
    """`kernels.product`. outer: the output width of one part. EVEN: whether K divides `inner`."""
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
    """One tile: rows [row, row + M) of a group, columns [column, column + N) of a part.

    Where it hangs over the edge, the last row or column is read again, and nothing is written. Offsets within a tile
    fit 32 bits, offsets of tiles need 64.
    """
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
    gate = tl.zeros((M, N), dtype=tl.float32)  # makes no code without GEGLU
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
    """value plus the shrunk rows times `up`; with GEGLU, gate likewise. Both point at this tile's first."""
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
def merged_kernel(
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
    """One program makes M rows and N columns of one group's whole weight for one part."""
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
def geglu_kernel(y, bias, found, outer, BIAS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program makes `COLUMNS` columns of one row of the result."""
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
