"""Any change of a layer as plain LoRA: exactly where it is low rank, else by the nearest factors of a lower rank.

The nearest matrix of rank r keeps the r greatest singular values (Eckart and Young 1936). They are found from the
smaller of D D^T and D^T D in float64, which resolves all that float32 holds of D. What is kept is D's projection, so
that the full rank is D itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.adapters.terms import LayerFactors, LowRank, Target, Term, terms_of

EXACT = 1e-6
"""What differs by less, as a part of a layer's change, is exact: float32 holds no more."""
BOUND = 0.01
"""Most error of an approximated layer, as a part of its change, where no rank is given and `MOST_RANK` allows it."""
MOST_RANK = 256
"""The highest rank that is chosen for an approximated layer."""


@dataclass(frozen=True)
class Plain:
    """One layer as plain LoRA.

    change: None where only a bias changes. shift: the change of the bias, None without one. size, lost: the Frobenius
    norms of the layer's change, and of what the factors lack of it.
    """

    change: LowRank | None
    shift: Tensor | None
    size: float = 0.0
    lost: float = 0.0

    @property
    def error(self) -> float:
        """What is lost, as a part of the change."""
        return self.lost / self.size if self.size else 0.0

    @property
    def exact(self) -> bool:
        return self.error <= EXACT


def plain(factors: LayerFactors, target: Target, most: int | None = None) -> Plain:
    """A layer's factors as plain LoRA. most: the highest rank, None to choose one. Raises BaseNeeded.

    None means: exact where the change is low rank by nature, else the lowest rank whose error is at most BOUND.
    """
    change, shift = exact(factors), factors.shift
    terms = [term for term in terms_of(factors) if term.shift is None]
    if not terms or (change is not None and (most is None or change.rank <= most)):
        return Plain(change, shift, 0.0 if change is None else _norm(change))
    by_base = factors.multiplier is not None
    weight = target.weight() if by_base else torch.zeros(1).expand(target.shape)
    matrix = sum((term.change(weight).flatten(1) for term in terms), torch.zeros(())).double()
    down, up = _nearest(matrix, most, natural=not any(_is_open(term) for term in terms))
    lost = matrix - up.double() @ down.double()
    ones = (1,) * len(target.shape[2:])
    found = LowRank(
        down.view(len(down), *target.shape[1:]).contiguous(), up.view(len(up), -1, *ones).contiguous(), 1.0
    )
    return Plain(found, shift, float(matrix.norm()), float(lost.norm()))


def exact(factors: LayerFactors) -> LowRank | None:
    """The change of the weight as low-rank factors, where it is held as such; else None."""
    lowrank = factors.low_rank
    if not lowrank or factors.whole is not None or factors.multiplier is not None:
        return None
    return lowrank[0] if len(lowrank) == 1 else _stacked(lowrank)


def _stacked(terms: Sequence[LowRank]) -> LowRank:
    """The sum of several changes, with the scales in their outer factors."""
    down = torch.cat([term.down.float() for term in terms])
    return LowRank(down, torch.cat([term.up.float() * term.scale for term in terms], dim=1), 1.0)


def _norm(change: LowRank) -> float:
    """The Frobenius norm, without the product."""
    down, up = change.down.double().flatten(1), change.up.double().flatten(1)
    square = ((up.mT @ up) * (down @ down.mT)).sum().clamp(min=0)
    return float(square.sqrt()) * abs(change.scale)


def _is_open(term: Term) -> bool:
    """Whether nothing says that the term has a low rank."""
    return not (term.low_rank or term.factored)


def _nearest(matrix: Tensor, most: int | None, *, natural: bool) -> tuple[Tensor, Tensor]:
    """(down [rank, in], up [out, rank]) of a matrix [out, in] float64, in float32. natural: its rank is low."""
    wide = matrix.shape[0] <= matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = _rank(values, sum(matrix.shape), matrix.numel(), most, natural=natural)
    kept = vectors[:, :rank]
    lengths = values[:rank].pow(0.25)  # both halves get the root of each singular value
    lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    if wide:
        down, up = (kept.mT @ matrix) / lengths[:, None], kept * lengths
    else:
        down, up = kept.mT * lengths[:, None], (matrix @ kept) / lengths
    return down.float(), up.float()


def _rank(squares: Tensor, sides: int, numbers: int, most: int | None, *, natural: bool) -> int:
    """The rank to keep. squares: of the singular values, falling. sides: out + in. numbers: out * in."""
    lost = squares.flip(0).cumsum(0).flip(0)  # lost[r]: by keeping r

    def lowest(error: float) -> int:
        return max(1, int((lost > error**2 * lost[0]).sum()))

    whole = lowest(EXACT)
    if most is not None:
        return min(whole, most)
    small = whole <= MOST_RANK or (natural and whole * sides <= numbers)
    if small and (natural or whole < len(squares)):
        return whole
    return min(lowest(BOUND), MOST_RANK)
