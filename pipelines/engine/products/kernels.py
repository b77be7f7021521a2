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
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pipelines.engine.products.kernel_code import geglu_kernel, merged_kernel, product_kernel

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
"""Candidates for products, and those with GEGLU: which is fastest is measured (`autotune.py`). And what shrinks for
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
    product_kernel[(programs,)](
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
    merged_kernel[grid](
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
    geglu_kernel[grid](
        y, y if bias is None else bias, found, outer, BIAS=bias is not None, COLUMNS=GEGLU_COLUMNS
    )
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
