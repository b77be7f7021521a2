"""Triton kernels: a layer's product, with all that acts on it, in one pass over its output.

    y_g,p = act(x_g W_p^T + s_g,p U_g,p + b)        g = 1 … G groups of lanes, p = 1 … P layers over one input

W is the same for all groups; where P is 1, each group may have its own. s is the shrunk input, and U is the `up` half
of the factors. So the low-rank part goes into the same float32 accumulator, and needs no pass over y of its own.

act is nothing, or, where P is 1, GEGLU (Shazeer 2020, arXiv 2002.05202). The first half of W's rows then makes h and
the second half the gate. What is written is h * gelu(gate), half as wide as W has rows. gelu is the exact one, with
erf, as in diffusers.

This module imports Triton. It is imported only when a product on a CUDA device needs it (`operands.py`).
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
"""Blocks of rows whose tiles run at the same time, so that the part of W that they share stays in the L2 cache."""
GEGLU_COLUMNS = 1024
MERGED_ROWS, MERGED_COLUMNS = 64, 128


@dataclass(frozen=True)
class Tile:
    """How a product is divided among programs.

    m, n: a tile of m x n outputs (with GEGLU, n of h and n of the gate). k: terms of the sum that are read at once.
    warps, stages: Triton's settings of these names. persistent: there are only as many programs as the device has
    multiprocessors, and each makes one tile after another. descriptors: x and W are read through tensor descriptors,
    which need rows of a multiple of 16 bytes. overlapping: the product begins while the kernel before it still shrinks
    the input, and adds the low-rank part last (CUDA's programmatic dependent launch, compute capability 9.0 and above).
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


PLAIN = (  # without GEGLU
    Tile(128, 128, 64, 4, 3, descriptors=True, overlapping=True),
    Tile(128, 256, 64, 8, 3, descriptors=True, overlapping=True),
    Tile(128, 128, 64, 4, 3, descriptors=True),
    Tile(128, 256, 64, 8, 3, descriptors=True),
    Tile(128, 128, 64, 4, 3),
    Tile(128, 256, 64, 8, 3),
    Tile(64, 128, 64, 4, 4),
)
GATED = (  # with GEGLU
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
"""Shrinks the input for overlapping tiles. `PLAIN` and `GATED` are candidates: which is fastest is measured
(`autotune.py`)."""


def tiles(x: Tensor, *, geglu: bool, shrinking: bool) -> Sequence[Tile]:
    """The candidates that can run a product of x [G, T, in]. shrinking: x is shrunk just before the product."""
    aligned = x.shape[-1] * x.element_size() % 16 == 0
    nvidia = torch.version.hip is None  # ROCm numbers its capabilities otherwise
    overlap = shrinking and nvidia and torch.cuda.get_device_capability(x.device) >= (9, 0)
    return [
        tile
        for tile in (GATED if geglu else PLAIN)
        if (aligned or not tile.descriptors) and (overlap or not tile.overlapping)
    ]


def shrink_and_product(
    x: Tensor, weights: Tensor, bias: Tensor | None, down: Tensor, ups: Tensor, geglu: bool, tile: Tile
) -> Tensor:
    """`product` by an overlapping tile, with x first shrunk by down [G, P * R, in]."""
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
    """x [G, T, in] -> [G, T, P * out]; with GEGLU, where P is 1, [G, T, out / 2]. All tensors have one dtype.

    weights: [P, out, in], or [1, G, out, in] where each group has its own. bias: [out], only where P is 1.
    shrunk: [G, T, P * R] and ups: [P, G, R, out]; both or neither. signal: let an overlapping kernel that follows
    begin at once. Raises what Triton raises for a tile that this device cannot run.
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
    """Whole weights [G, P * out, in]: weights [P, out, in] plus the product of down [G, P * R, in] and
    ups [P, G, R, out], for each group."""
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
    """y [..., 2 * out] -> h * gelu(gate), [..., out]. h is the first half of y + bias and the gate the second half.

    bias: [2 * out].
    """
    outer = y.shape[-1] // 2
    found = y.new_empty((*y.shape[:-1], outer))
    grid = (found.numel() // outer, triton.cdiv(outer, GEGLU_COLUMNS))
    y = y.contiguous()
    geglu_kernel[grid](
        y, y if bias is None else bias, found, outer, BIAS=bias is not None, COLUMNS=GEGLU_COLUMNS
    )
    return found


def _described(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor of the tensor as a matrix of its rows, read in blocks. What lies outside reads as zero."""
    matrix = tensor.flatten(0, -2)
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])


@cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a CUDA device has. 3 for a CPU, for tests in Triton's interpreter."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
