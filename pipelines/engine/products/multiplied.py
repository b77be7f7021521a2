"""FLoRA's multiplied weights, lane by lane: W_n = W * M_n, with M_n = outer_n^T inner_n of rank R.

There are two forms of the same product (arXiv 2312.05677; `pipelines/adapters/kinds/flora.py` defines the type and its
strength):

    products   y = sum_r outer_nr * (W (inner_nr * x_n))     equation 5: R passes through the shared W
    weights    y = (W * M_n) x_n                             equation 4: one pass through the lane's own weight

The paper decodes language models, one token a sample; there "products" is cheaper. Diffusion has up to thousands of
tokens a lane; there "weights" is cheaper (`python -m studio.bench.flora` measures both).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composers.plan import Use
from pipelines.adapters.terms import Hadamard

FloraForm = Literal["products", "weights"]
_Pass = Callable[[Tensor], Tensor]
MOVED = {"cpu": 20, "cuda": 260}
"""The cost of reading or writing one number, in multiplications of a matrix product, by device type. For CUDA: an H100
in bf16, with 3 TB/s and 390 T multiplications/s."""


@dataclass(frozen=True)
class RankRows:
    """One adapter's factors for one layer, on the layer's device: inner [rank, in], outer [rank, out].

    The adapter's scale is multiplied into outer.
    """

    inner: Tensor
    outer: Tensor

    @classmethod
    def of(cls, factors: Hadamard, like: Tensor) -> RankRows:
        outer = (factors.outer.float() * factors.scale).T.contiguous()
        return cls(factors.inner.to(like), outer.to(like))

    def to(self, like: Tensor) -> RankRows:
        return RankRows(self.inner.to(like), self.outer.to(like))

    @property
    def bytes(self) -> int:
        return self.inner.nbytes + self.outer.nbytes


@dataclass(frozen=True)
class Multiplied:
    """What multiplies one layer's weight in one call.

    lanes: how many the call has. own, rest: the indices of the lanes with and without a factor; None where all have
    one.
    inner: [own, R, in]. outer: [own, R, out], strengths included. Lanes of lower rank are padded with zero rows.
    """

    lanes: int
    own: Tensor | None
    rest: Tensor | None
    inner: Tensor
    outer: Tensor

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """x [lanes, …, in] -> [lanes, …, out]."""
        return linear(layer, x, self)

    def conv2d(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """x [lanes, in, h, w] -> [lanes, out, h', w']."""
        return conv2d(layer, x, self)

    def form(self, tokens: int) -> FloraForm:
        """The cheaper form for so many tokens a lane, counting multiplications and the numbers moved (`MOVED`).

        "products" scales R inputs and R outputs and sums up the outputs. "weights" makes M, multiplies W by it, and
        reads the result.
        """
        rank, inputs, outputs = self.inner.shape[1], self.inner.shape[2], self.outer.shape[2]
        moved, size = MOVED.get(self.inner.device.type, MOVED["cpu"]), inputs * outputs
        products = rank * tokens * (size + moved * (2 * inputs + 5 * outputs))
        weights = size * (tokens + rank + 5 * moved)
        return "products" if products <= weights else "weights"


Strengths = Sequence[Sequence[tuple[str, float]]]
"""For each lane or group, its adapters and their strengths."""


def strengths(lanes: Sequence[Sequence[Use]], layer: str) -> Strengths:
    """The strengths of each lane's or group's uses on one layer, block factors included."""
    return [[(use.adapter, use.weight * use.block_factor(layer)) for use in lane] for lane in lanes]


def gather(rows: Mapping[str, RankRows], strengths: Strengths) -> Multiplied | None:
    """The factors that the lanes need; None where no lane has any. rows: adapter -> its factors on the layer.

    W + sum_i s_i (W * M_i - W) is W times (1 - sum_i s_i) + sum_i s_i M_i. The first term is one more rank row, of
    ones. It is left out where it is zero.
    """
    lanes = [[(name, weight) for name, weight in lane if name in rows and weight != 0] for lane in strengths]
    own = [place for place, lane in enumerate(lanes) if lane]
    if not own:
        return None
    like = next(iter(rows.values()))
    inner, outer = [], []
    for place in own:
        kept = 1 - sum(weight for _, weight in lanes[place])
        inner.append(torch.cat([rows[name].inner for name, _ in lanes[place]]))
        outer.append(torch.cat([rows[name].outer * weight for name, weight in lanes[place]]))
        if abs(kept) > 1e-9:  # 1 - 0.3 - 0.7 is not quite 0
            inner[-1] = torch.cat([inner[-1], torch.ones_like(like.inner[:1])])
            outer[-1] = torch.cat([outer[-1], torch.full_like(like.outer[:1], kept)])
    rest = [place for place, lane in enumerate(lanes) if not lane]
    device = like.inner.device
    return Multiplied(
        lanes=len(lanes),
        own=torch.tensor(own, device=device) if rest else None,
        rest=torch.tensor(rest, device=device) if rest else None,
        inner=nn.utils.rnn.pad_sequence(inner, batch_first=True),
        outer=nn.utils.rnn.pad_sequence(outer, batch_first=True),
    )


def scales(rows: Mapping[str, RankRows], strengths: Strengths) -> Tensor | None:
    """The factors of the groups' whole weights, (1 - sum_i s_i) + sum_i s_i M_i: [groups, out, in].

    Ones where a group has no factors; None where no group has any. Unlike `gather`, it launches as many operations for
    all groups as for one.
    """
    taken = [
        name
        for name in rows
        if any(own == name and weight != 0 for lane in strengths for own, weight in lane)
    ]
    if not taken:
        return None
    given = np.array([[sum(w for own, w in lane if own == name) for name in taken] for lane in strengths])
    kept = 1 - given.sum(1, keepdims=True)  # the strength of W itself, one more row of ones
    ranks = [*(len(rows[name].inner) for name in taken), 1]
    gate = np.repeat(np.hstack([given, kept]).astype(np.float32), ranks, axis=1)
    like = rows[taken[0]]
    inner = torch.cat([*(rows[name].inner for name in taken), torch.ones_like(like.inner[:1])])  # [R, in]
    outer = torch.cat([*(rows[name].outer for name in taken), torch.ones_like(like.outer[:1])])  # [R, out]
    # Strengths multiply the factors in float32. If they were rounded first, the error would affect a whole weight
    # alike.
    strong = torch.from_numpy(gate).to(outer.device)[..., None] * outer  # [groups, R, out]
    return torch.matmul(strong.to(inner).mT, inner)


def linear(layer: nn.Linear, x: Tensor, factors: Multiplied, form: FloraForm | None = None) -> Tensor:
    """x [lanes, …, in] -> [lanes, …, out], through the lanes' own weights and the layer's bias.

    form: None takes the cheaper one.
    """

    def multiplied(x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])  # [own, T, in]
        if (form or factors.form(tokens.shape[1])) == "products":
            passes = F.linear(tokens[:, None] * factors.inner[:, :, None], layer.weight)  # [own, R, T, out]
            y = (passes * factors.outer[:, :, None]).sum(1)  # [own, T, out]
            y = y if layer.bias is None else y.add_(layer.bias)
        else:
            weights = torch.bmm(factors.outer.mT, factors.inner).mul_(layer.weight)  # [own, out, in]
            y = (
                torch.bmm(tokens, weights.mT)
                if layer.bias is None
                else torch.baddbmm(layer.bias, tokens, weights.mT)
            )
        return y.view(*x.shape[:-1], -1)

    return _apart(x, factors, multiplied, lambda x: F.linear(x, layer.weight, layer.bias))


def conv2d(layer: nn.Conv2d, x: Tensor, factors: Multiplied, form: FloraForm | None = None) -> Tensor:
    """x [lanes, in, h, w] -> [lanes, out, h', w'], through the lanes' own kernels.

    The lanes run one after another: a grouped convolution would be slower. form: None takes the cheaper one.
    """

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)

    def multiplied(x: Tensor) -> Tensor:
        own, rank = factors.inner.shape[:2]
        if (form or factors.form(x.shape[2] * x.shape[3])) == "products":
            inputs = x[:, None] * factors.inner[..., None, None]  # [own, R, in, h, w]
            passes = plain(inputs.flatten(0, 1), layer.weight, None)  # [own * R, out, h', w']
            y = (passes.view(own, rank, *passes.shape[1:]) * factors.outer[..., None, None]).sum(1)
            return y if layer.bias is None else y.add_(layer.bias[:, None, None])
        scales = torch.bmm(factors.outer.mT, factors.inner)[..., None, None]  # [own, out, in, 1, 1]
        rows = zip(x[:, None], scales, strict=True)
        return torch.cat([plain(row, layer.weight * scale, layer.bias) for row, scale in rows])

    return _apart(x, factors, multiplied, lambda x: plain(x, layer.weight, layer.bias))


def _apart(x: Tensor, factors: Multiplied, multiplied: _Pass, plain: _Pass) -> Tensor:
    """The lanes with factors through `multiplied`, the others through `plain`."""
    assert x.shape[0] == factors.lanes, f"{x.shape[0]} rows for {factors.lanes} lanes"
    if factors.own is None or factors.rest is None:
        return multiplied(x)
    own, rest = multiplied(x[factors.own]), plain(x[factors.rest])
    y = own.new_empty((factors.lanes, *own.shape[1:]))
    y[factors.own], y[factors.rest] = own, rest
    return y
