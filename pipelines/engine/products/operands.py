"""The product of layers that read one input, with all that acts on them, and the ways to compute it.

Usually this is a single layer; query, key and value go together. For each group g of lanes and each layer p:

    y_g,p = act(x_g W_p^T + b + s_g,p U_g,p)        s_g = gate * (x_g D_g^T)

Which way is fastest depends on the device and the shape. It is measured (`autotune.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from pipelines.engine.products.kernels import Tile

LIBRARY = "library"
BESIDE = "library, shrinking beside"
LIBRARY_GEGLU = "library, kernel for GEGLU"
IN_PASSING = "whole weights made in passing"
Way = Callable[[], Tensor]


@dataclass(frozen=True)
class Operands:
    """What goes into the product. P is the number of layers, G of groups, R the rank.

    x: [G, T, in]. weights: P of [out, in], or a single one [G, out, in] of each group's own. bias: [out], only with a
    single weight. down: [G, P * R, in] and ups: P of [G, R, out]; both or neither. gate: for the pool [mixes, P * R];
    then G is 1, and the T tokens divide evenly into as many mixes. geglu: act is GEGLU (Shazeer 2020, arXiv
    2002.05202), only with a single weight: the first half of its rows makes h, the second half v of
    h * gelu(v). Otherwise there is no act.
    """

    x: Tensor
    weights: tuple[Tensor, ...]
    bias: Tensor | None
    down: Tensor | None
    ups: tuple[Tensor, ...]
    gate: Tensor | None
    geglu: bool

    @property
    def label(self) -> str:
        """A text of all that the product's time depends on: sizes, rank and flags."""
        groups, tokens, inner = self.x.shape
        parts = f"{len(self.weights)} x " if len(self.weights) > 1 else ""
        texts = [f"{groups} x {tokens} x {inner} -> {parts}{self.weights[0].shape[-2]}"]
        if self.down is not None:
            texts.append(f"rank {self.ups[0].shape[-2]}")
        flags = {
            "pool": self.gate is not None,
            "own weights": self.weights[0].ndim == 3,
            "bias": self.bias is not None,
            "geglu": self.geglu,
            "apart": not self._joined,
        }
        return ", ".join([*texts, *(name for name, there in flags.items() if there)])

    @property
    def _joined(self) -> bool:
        """Whether the weights lie side by side in memory, and the ups too, as a kernel needs them."""
        return all(side_by_side(parts) is not None for parts in (self.weights, self.ups) if parts)

    # -- the ways ----------------------------------------------------------------------------------------

    def ways(self) -> dict[str, Way]:
        """Name -> way, the library's first. Each way gives [G, T, P * out], half as wide with GEGLU."""
        from pipelines.engine.products import kernels

        ways: dict[str, Way] = {LIBRARY: self.library}
        if self.down is not None:
            ways[BESIDE] = self.beside
        if self.geglu:
            ways[LIBRARY_GEGLU] = self.library_geglu
        if self.down is not None and self.gate is None and self._joined:
            ways |= self._ways_in_passing()
        shrinking = self.down is not None and self.gate is None
        tiles = kernels.tiles(self.x, geglu=self.geglu, shrinking=shrinking)
        for tile in tiles if self._joined else ():
            ways[tile.name] = lambda tile=tile: self._by_kernel(tile)  # type: ignore[misc]
        return ways

    def library(self) -> Tensor:
        """The obvious way: shrink x, make the layers' products, add the low-rank parts in place, apply act."""
        shrunk = self._shrunk()
        return self._active(self._added(self._base(), shrunk))

    def library_geglu(self) -> Tensor:
        """The library's way with a kernel for act, which adds the bias too where each group has its own weight."""
        from pipelines.engine.products import kernels

        if self.weights[0].ndim == 3:
            return kernels.geglu(torch.bmm(self.x, self.weights[0].mT), self.bias)
        return kernels.geglu(self._added(self._base(), self._shrunk()))

    def beside(self) -> Tensor:
        """The library's way, with x shrunk on a stream of its own while the layers' own products run."""
        assert self.down is not None
        main = torch.cuda.current_stream(self.x.device)
        side = _side_stream(self.x.device)
        shrunk = self.x.new_empty((*self.x.shape[:-1], self.down.shape[-2]))
        side.wait_stream(main)
        y = self._base()
        with torch.cuda.stream(side):
            self._shrunk(shrunk)
        main.wait_stream(side)
        return self._active(self._added(y, shrunk))

    def _ways_in_passing(self) -> dict[str, Way]:
        """The ways that first make whole weights W_p + (D_g,p^T U_g,p)^T for each group, for this product alone.

        Where a group has many tokens, these weights are smaller than y, which adding a low-rank part would read and
        write. Without GEGLU only the library's way follows: with whole weights, tiles gain 4 % at most, and mostly
        lose.
        """
        from pipelines.engine.products import kernels

        if not self.geglu:
            return {IN_PASSING: lambda: self._whole().library()}
        ways: dict[str, Way] = {IN_PASSING: lambda: self._whole().library_geglu()}
        for tile in kernels.tiles(self.x, geglu=True, shrinking=False):
            ways[f"{IN_PASSING}, {tile.name}"] = lambda tile=tile: self._whole()._by_kernel(tile)  # type: ignore[misc]
        return ways

    def _whole(self) -> Operands:
        """The same product with whole weights, which are made here, and without low-rank parts."""
        from pipelines.engine.products import kernels

        weights, ups = side_by_side(self.weights), side_by_side(self.ups)
        assert weights is not None
        assert ups is not None
        assert self.down is not None
        whole = kernels.merged(weights, self.down, ups)
        return Operands(self.x, (whole,), self.bias, None, (), None, self.geglu)

    def _by_kernel(self, tile: Tile) -> Tensor:
        from pipelines.engine.products import kernels

        weights, ups = side_by_side(self.weights), side_by_side(self.ups)
        assert weights is not None
        if tile.overlapping:
            assert self.down is not None
            assert ups is not None
            return kernels.shrink_and_product(self.x, weights, self.bias, self.down, ups, self.geglu, tile)
        return kernels.product(self.x, weights, self.bias, self._shrunk(), ups, self.geglu, tile)

    def _shrunk(self, out: Tensor | None = None) -> Tensor | None:
        """The shrunk input s, [G, T, P * R]; None without low-rank parts. out: where to put it."""
        if self.down is None:
            return None
        shrunk = torch.bmm(self.x, self.down.mT, out=out)
        if self.gate is not None:
            shrunk.view(len(self.gate), -1, shrunk.shape[-1]).mul_(self.gate[:, None])
        return shrunk

    def _base(self) -> Tensor:
        """The layers' own outputs with their bias, [G, T, P * out]."""
        weight = self.weights[0]
        if weight.ndim == 3:
            if self.bias is None:
                return torch.bmm(self.x, weight.mT)
            return torch.baddbmm(self.bias, self.x, weight.mT)
        joined = side_by_side(self.weights)
        if joined is not None:
            return F.linear(self.x, joined.flatten(0, 1), self.bias)
        y = self.x.new_empty((*self.x.shape[:-1], len(self.weights) * weight.shape[0]))
        for weight, part in zip(self.weights, y.flatten(0, 1).chunk(len(self.weights), dim=-1), strict=True):
            torch.mm(self.x.flatten(0, 1), weight.mT, out=part)
        return y

    def _added(self, y: Tensor, shrunk: Tensor | None) -> Tensor:
        """y with the low-rank parts added, in place."""
        if shrunk is not None:
            parts = len(self.ups)
            pieces = zip(y.chunk(parts, dim=-1), shrunk.chunk(parts, dim=-1), self.ups, strict=True)
            for part, own, up in pieces:
                part.baddbmm_(own, up)
        return y

    def _active(self, y: Tensor) -> Tensor:
        if not self.geglu:
            return y
        h, v = y.chunk(2, dim=-1)
        return h * F.gelu(v)

    # -- for measuring -----------------------------------------------------------------------------------

    def twin(self) -> Operands:
        """Random operands of the same shapes and layout. torch's global generators are left alone."""
        generator = torch.Generator(self.x.device).manual_seed(0)

        def like(tensor: Tensor, scale: float) -> Tensor:
            made = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )
            return made.normal_(0, scale, generator=generator)

        def all_like(tensors: tuple[Tensor, ...], scale: float) -> tuple[Tensor, ...]:
            joined = side_by_side(tensors)
            if joined is None:
                return tuple(like(tensor, scale) for tensor in tensors)
            return like(joined, scale).unbind()

        small = self.x.shape[-1] ** -0.5
        return Operands(
            like(self.x, 1),
            all_like(self.weights, small),
            None if self.bias is None else like(self.bias, 1),
            None if self.down is None else like(self.down, small),
            all_like(self.ups, self.ups[0].shape[-2] ** -0.5) if self.ups else (),
            None if self.gate is None else like(self.gate, 1),
            self.geglu,
        )


def side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensors as one [parts, ...], if they are contiguous, of one shape, and follow each other in memory; else
    None.

    It is a view: nothing is copied.
    """
    if not parts or not parts[0].is_contiguous():
        return None
    first = parts[0]
    for place, part in enumerate(parts[1:], 1):
        if (
            part.shape != first.shape
            or not part.is_contiguous()
            or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or part.storage_offset() != first.storage_offset() + place * first.numel()
        ):
            return None
    return first.detach().as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
