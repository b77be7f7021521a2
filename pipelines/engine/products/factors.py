"""What acts on one layer in one call, and the product that results.

There are N lanes in G groups of equal mix (such as a picture's guidance pair), T tokens a lane, and R rank rows:

    lane-packed  y_n = W x_n + up_g (down_g x_n)             factors packed for each group, strengths in `up`
    pool         y_n = W x_n + up (gate_g * (down x_n))      one set of factors, the gate 0 for those not used
    dense        y_n = W_g x_n                               W_g = W + the sum of the group's changes

This is FLoRA's batching of per-sample adapters (arXiv 2312.05677, appendix B.1, the additive form). To "shrink" an
input is to multiply it by `down`. Layers that read the same input (query, key, value) shrink it together: their `down`
lie side by side in one `stack`. Where a group has so many tokens that y is much larger than the weights, lane-packed
factors make whole weights in passing: W_g is made for one product and then dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.engine.products import autotune

Form = Literal["lane-packed", "pool", "dense"]


@dataclass
class Factors:
    """The low-rank factors of one layer.

    lane-packed: down [G, R, in(, kh, kw)], up [G, R, out], gate None.
    pool: down [R, in(, kh, kw)], up [R, out], gate [G, R].
    stack: the `down` of all k layers that read this input, [G, k * R, in] or [k * R, in]. This layer's is number
        `place`. In a convolution "in" is in * kh * kw.
    """

    down: Tensor
    up: Tensor
    gate: Tensor | None
    stack: Tensor
    place: int

    @property
    def form(self) -> Form:
        return "lane-packed" if self.gate is None else "pool"

    @property
    def groups(self) -> int:
        return (self.up if self.gate is None else self.gate).shape[0]

    @property
    def rank(self) -> int:
        return self.up.shape[-2]

    def part_of(self, shrunk: Tensor) -> Tensor:
        """This layer's part [..., R] of an input that was shrunk by the whole stack, [..., k * R]."""
        return shrunk[..., self.place * self.rank : (self.place + 1) * self.rank]


@dataclass
class Dense:
    """One layer's whole weights, one for each group.

    weight: [G, out, in(, kh, kw)]. stack: the weights of all k layers that read this input, [G, k * out, in]. This
    layer's is number `place`.
    """

    weight: Tensor
    stack: Tensor
    place: int

    @property
    def form(self) -> Form:
        return "dense"

    @property
    def groups(self) -> int:
        return self.weight.shape[0]


Acting = Factors | Dense

PASSING = 3
"""When whole weights are made in passing: if the low-rank part would move at least so many times the bytes.

Whole weights are moved four times, by large products. A low-rank part moves x once and y twice, by small products.
Measured on an H200 at rank 48: at 2.4 times the bytes both take equally long; at 4.8 times whole weights take 0.85 of
the low-rank part's time, at 9.6 times 0.57 of it."""


def made_in_passing(tokens: int, inner: int, outer: int) -> bool:
    """Whether a group with so many tokens, all its lanes' together, makes whole weights [outer, inner] in passing."""
    return tokens * (inner + 2 * outer) >= PASSING * 4 * inner * outer


# -- linear layers ---------------------------------------------------------------------------------------


def add_linear(x: Tensor, y: Tensor, factors: Factors, shrunk: Tensor | None = None) -> None:
    """Add the factors' part for x [lanes, …, in] to y [lanes, …, out], in place. y is contiguous.

    shrunk: x shrunk by the whole `stack`, where that has been done already.
    """
    shrunk = shrink(x, factors.down) if shrunk is None else factors.part_of(shrunk)  # [G or lanes * T, …, R]
    if factors.gate is None:
        y.view(factors.groups, -1, y.shape[-1]).baddbmm_(shrunk, factors.up)
    else:
        gated = shrunk.view(factors.groups, -1, factors.rank) * factors.gate[:, None]  # [G, T', R]
        y.view(-1, y.shape[-1]).addmm_(gated.flatten(0, 1), factors.up)


def in_one_pass(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    acting: Sequence[Factors] | Dense,
    geglu: bool = False,
) -> Tensor:
    """Linear layers with what acts on them, by the fastest way that was measured (`autotune.py`).

    x [lanes, …, in] -> [lanes, …, P * out], half as wide with `geglu`. weights: of P layers over one input.
    bias: None, if there are several layers. acting: the factors of each layer, which must make up a whole stack if
    there are several; or the whole weights of a single layer; or () without adapters.
    """
    down, gate = None, None
    ups: list[Tensor] = []
    if isinstance(acting, Dense):
        weights = [acting.weight]
    elif acting:
        first = acting[0]
        down, ups = first.stack if len(acting) > 1 else first.down, [own.up for own in acting]
        if first.gate is not None:
            gate = torch.cat([own.gate for own in acting if own.gate is not None], dim=-1)
            down, ups = down[None], [up[None] for up in ups]
    if bias is not None and not geglu and torch.compiler.is_compiling():
        bare: Tensor = autotune.product(x, list(weights), None, down, ups, gate, geglu)
        return bare + bias  # inductor merges the sum into what follows
    found: Tensor = autotune.product(x, list(weights), bias, down, ups, gate, geglu)
    return found


def shrink(x: Tensor, down: Tensor) -> Tensor:
    """x [lanes, …, in] -> [G, tokens of a group, R] for down [G, R, in], or [all tokens, R] for down [R, in]."""
    if down.ndim == 3:
        return torch.bmm(x.reshape(down.shape[0], -1, x.shape[-1]), down.mT)
    return F.linear(x.reshape(-1, x.shape[-1]), down)


def linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    factors: Sequence[Factors],
    kernels: bool = False,
) -> list[Tensor]:
    """Linear layers with low-rank factors over one input x [lanes, …, in]: [lanes, …, out] from each.

    Layers that make up a whole stack shrink x together. kernels: where kernels can serve this input, run by the fastest
    way that was measured (`autotune.py`).
    """
    stacked = len(factors) > 1 and all(
        each.stack is factors[0].stack and each.place == place for place, each in enumerate(factors)
    )
    if kernels and autotune.usable(x):
        if stacked and all(bias is None for bias in biases):
            return list(in_one_pass(x, weights, None, factors).chunk(len(weights), dim=-1))
        return [
            in_one_pass(x, [weight], bias, [own])
            for weight, bias, own in zip(weights, biases, factors, strict=True)
        ]
    outer, inner = weights[0].shape
    if factors[0].gate is None and made_in_passing(x.numel() // inner // factors[0].groups, inner, outer):
        return [
            _in_passing(x, weight, bias, own)
            for weight, bias, own in zip(weights, biases, factors, strict=True)
        ]
    if torch.compiler.is_compiling():
        return _for_inductor(x, weights, biases, factors, stacked)
    shrunk = shrink(x, factors[0].stack) if stacked else None
    found = []
    for weight, bias, own in zip(weights, biases, factors, strict=True):
        y = F.linear(x, weight, bias)
        add_linear(x, y, own, shrunk)
        found.append(y)
    return found


def _in_passing(x: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors) -> Tensor:
    """x [lanes, …, in] -> [lanes, …, out], through whole weights of each group that are made here and then dropped."""
    product = _merging_product if torch.compiler.is_compiling() else merging_product
    y: Tensor = product(x, weight, factors.down, factors.up)
    return y if bias is None else y + bias


def merging_product(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """x [lanes, …, in] -> [lanes, …, out], through the sum of weight [out, in] and what down [G, R, in] and
    up [G, R, out] add to it for each group."""
    whole = torch.baddbmm(weight.expand(len(up), -1, -1), up.mT, down)  # [G, out, in]
    return _grouped(x, whole)


@torch.library.custom_op("lora_studio::merging_product", mutates_args=())
def _merging_product(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`merging_product` as one operation for inductor: see `_grouped_product`."""
    return merging_product(x, weight, down, up)


@_merging_product.register_fake
def _(x: Tensor, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op(
    "lora_studio::lane_linears",
    mutates_args=(),
    schema="(Tensor x, Tensor[] weights, Tensor?[] biases, Tensor[] downs, Tensor[] ups, Tensor?[] gates) -> Tensor[]",
)
def _lane_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    gates: Sequence[Tensor | None],
) -> list[Tensor]:
    """`linears` as one operation, so that inductor keeps it whole. It would turn the sums in place into copies.

    downs: one for each layer, or the stack of all.
    """
    stacked = len(downs) < len(weights)
    shrunk = shrink(x, downs[0]) if stacked else None
    found = []
    for place, (weight, bias, up, gate) in enumerate(zip(weights, biases, ups, gates, strict=True)):
        y = F.linear(x, weight, bias)
        down = downs[0 if stacked else place]
        add_linear(x, y, Factors(down, up, gate, down, place), shrunk)
        found.append(y)
    return found


@_lane_linears.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    gates: Sequence[Tensor | None],
) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], weight.shape[0])) for weight in weights]


def _for_inductor(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    factors: Sequence[Factors],
    stacked: bool,
) -> list[Tensor]:
    downs = [factors[0].stack] if stacked else [own.down for own in factors]
    found: list[Tensor] = _lane_linears(
        x,
        list(weights),
        list(biases),
        downs,
        [own.up for own in factors],
        [own.gate for own in factors],
    )
    return found


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [lanes, …, in] -> [lanes, …, out], through each group's own weight [G, out, in]."""
    if torch.compiler.is_compiling():
        y: Tensor = _grouped_product(x, weight)
        return y if bias is None else y + bias  # inductor merges the sum into what follows
    if bias is None:
        return _grouped(x, weight)
    grouped = x.reshape(weight.shape[0], -1, x.shape[-1])  # [G, T', in]
    return torch.baddbmm(bias, grouped, weight.mT).view(*x.shape[:-1], -1)


def _grouped(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x.reshape(weight.shape[0], -1, x.shape[-1]), weight.mT).view(*x.shape[:-1], -1)


@torch.library.custom_op("lora_studio::grouped_product", mutates_args=())
def _grouped_product(x: Tensor, weight: Tensor) -> Tensor:
    """`_grouped` as one operation for inductor. If lanes were divided into groups outside of it, inductor could not
    merge the norm before the layer into one kernel."""
    return _grouped(x, weight)


@_grouped_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


# -- convolutions ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of a convolution, as in torch.nn.Conv2d; without groups, padded with zeros."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def conv_groups(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [lanes, in, h, w] through each group's own weight [G, out, in, kh, kw]: [lanes, out, h', w'].

        One group after another, because a grouped convolution is slower on every device that was measured.
        """
        if weight.shape[0] == 1:
            return self.conv(x, weight[0], bias)
        rows = x.chunk(weight.shape[0])
        return torch.cat([self.conv(row, own, bias) for row, own in zip(rows, weight, strict=True)])


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, factors: Factors, y: Tensor | None
) -> Tensor:
    """A convolution with factors: x [lanes, in, h, w] -> [lanes, out, h', w'].

    y: the base layer's own result, where it is known already.
    """
    if y is None:
        y = geometry.conv(x, weight, bias)
    if factors.gate is None:
        shrunk = geometry.conv_groups(x, factors.down)  # [lanes, R, h', w']
        up = factors.up.mT  # [G, out, R]
    else:
        shrunk = geometry.conv(x, factors.down)
        lanes = shrunk.view(factors.groups, -1, *shrunk.shape[1:])  # [G, lanes / G, R, h', w']
        shrunk = (lanes * factors.gate[:, None, :, None, None]).flatten(0, 1)
        up = factors.up.mT[None]  # [1, out, R]
    grouped = shrunk.reshape(
        up.shape[0], -1, factors.rank, shrunk[0, 0].numel()
    )  # [G, lanes / G, R, h' * w']
    return y + torch.matmul(up[:, None], grouped).view_as(y)
