"""The layers of a model, for which adapters are read, and what an adapter does to one layer: its factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from pipelines.errors import BaseNeeded
from pipelines.families.family import Family


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite. The smallest and the largest tell, ten times as fast as looking at each."""
    return not tensor.numel() or all(map(math.isfinite, map(float, tensor.aminmax())))


@dataclass(frozen=True)
class Target:
    """One layer that an adapter may change, by the shape of its weight: [out, in], [out, in, kh, kw], or a norm's [c].

    base: gives that weight, for the types that depend on it. bias: likewise its bias, None where it has none.
    """

    shape: tuple[int, ...]
    base: Callable[[], Tensor] | None = field(default=None, compare=False, repr=False)
    bias: Callable[[], Tensor | None] | None = field(default=None, compare=False, repr=False)

    def weight(self) -> Tensor:
        """The base weight, float32 on the host. Raises BaseNeeded where the layers were described without weights."""
        if self.base is None:
            raise BaseNeeded(_NO_BASE)
        return _at_hand(self.base())

    def shift(self) -> Tensor:
        """The base bias, [out] float32 on the host; zeros where the layer has none. Raises BaseNeeded likewise."""
        found = None if self.bias is None else self.bias()
        return torch.zeros(self.shape[0]) if found is None else _at_hand(found)

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias."""
        return self.bias is not None and self.bias() is not None

    @property
    def kernel(self) -> int:
        """The taps of its kernel; 1 for a linear layer."""
        return math.prod(self.shape[2:])

    @property
    def inputs(self) -> int:
        """Its inputs, in a convolution times the kernel's taps."""
        return math.prod(self.shape[1:])

    @property
    def is_norm(self) -> bool:
        return len(self.shape) == 1

    @property
    def is_conv(self) -> bool:
        return len(self.shape) == 4


_NO_BASE = "the base model's weights are not at hand"


def _at_hand(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        raise BaseNeeded(_NO_BASE)
    return tensor.detach().float().cpu()


@dataclass(frozen=True)
class ModelLayers:
    """The layers of one model that adapters may change. A file is read for these.

    label: the model's name as its user knows it, for messages.
    components: component ("unet", "text_encoder", "text_encoder_2") -> dotted module name -> target.
    unet_config: the UNet's configuration, which tells the width of the text embeddings.
    norms: component -> dotted module name -> target, for its norms.
    """

    family: Family
    label: str
    components: Mapping[str, Mapping[str, Target]]
    unet_config: Mapping[str, object] = field(repr=False)
    norms: Mapping[str, Mapping[str, Target]] = field(default_factory=dict, repr=False)

    def target(self, component: str, module: str) -> Target:
        """A layer or a norm. Raises KeyError."""
        own = self.components[component].get(module)
        return self.norms[component][module] if own is None else own


class Parts:
    """What the engine asks of a term, or of several. A term overrides what it is.

    low_rank: its low-rank terms. multiplier: what multiplies the weight, element by element. whole: what is added to
    it. shift: what is added to the bias, float32. reshapes: whether lanes need a weight or a bias of their own for it.
    factored: whether what is added is the product of low-rank factors, though it is held whole.
    """

    factored = False

    @property
    def low_rank(self) -> tuple[LowRank, ...]:
        return ()

    @property
    def multiplier(self) -> Hadamard | None:
        return None

    @property
    def whole(self) -> Tensor | None:
        return None

    @property
    def shift(self) -> Tensor | None:
        return None

    @property
    def reshapes(self) -> bool:
        return any(part is not None for part in (self.multiplier, self.whole, self.shift))


@dataclass(frozen=True)
class LowRank(Parts):
    """dW = scale * up . down for one layer (Hu et al. 2021, arXiv 2106.09685).

    down: [rank, in] or [rank, in, kh, kw]. up: [out, rank] or [out, rank, 1, 1]. Both in the file's dtype.
    scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA; 1 where the file gives no alpha.
    A Tucker core (`lora_mid`) is multiplied into `down`, in float32, when the file is read.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def low_rank(self) -> tuple[LowRank, ...]:
        return (self,)

    def delta(self) -> Tensor:
        """dW in float32, in the shape of the layer's weight. This is the slow, obvious reference."""
        down, up = self.down.float(), self.up.float()
        delta = up.flatten(1) @ down.flatten(1) * self.scale
        return delta.reshape(up.shape[0], *down.shape[1:])

    def change(self, weight: Tensor) -> Tensor:
        """dW in float32, in the shape of `weight` and on its device. The weight's values do not matter."""
        return self.delta().to(weight.device).reshape(weight.shape)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, whatever its strength."""
        return not (self.scale and self.up.float().any() and self.down.float().any())

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    @property
    def numbers(self) -> int:
        """How many numbers the factors hold."""
        return self.down.numel() + self.up.numel()


@dataclass(frozen=True)
class Hadamard(Parts):
    """W' = W * M, element by element, with M = scale * outer . inner: true FLoRA (`kinds/flora.py`).

    inner: [rank, in], multiplies the layer's input. outer: [out, rank], multiplies its output. In a convolution
    M [out, in] is the same for every tap of the kernel. scale: 1, or 1 / rank where the file asks for the mean.
    """

    inner: Tensor
    outer: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return int(self.inner.shape[0])

    @property
    def multiplier(self) -> Hadamard:
        return self

    def factor(self) -> Tensor:
        """M, [out, in] float32."""
        return self.outer.float() @ self.inner.float() * self.scale

    def change(self, weight: Tensor) -> Tensor:
        """dW = W * (M - 1) in float32, in the shape of the base weight W and on its device: the obvious reference."""
        factor = self.factor().to(weight.device).reshape(*weight.shape[:2], *(1 for _ in weight.shape[2:]))
        return weight.float() * (factor - 1)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, whatever its strength: M is 1 everywhere."""
        return bool((self.factor() == 1).all())

    @property
    def bytes(self) -> int:
        return self.inner.nbytes + self.outer.nbytes

    @property
    def numbers(self) -> int:
        """How many numbers the factors hold."""
        return self.inner.numel() + self.outer.numel()


@dataclass(frozen=True)
class Whole(Parts):
    """W' = W + delta: a change that has no smaller form. delta: in the shape of the weight, a norm's [c] included.

    factored: it is the product of low-rank factors, which would have taken more memory.
    """

    delta: Tensor
    factored: bool = False

    rank: ClassVar[int] = 0
    scale: ClassVar[float] = 1.0

    @property
    def whole(self) -> Tensor:
        return self.delta

    def change(self, weight: Tensor) -> Tensor:
        """dW in float32, in the shape of `weight` and on its device. The weight's values do not matter."""
        return self.delta.float().to(weight.device).reshape(weight.shape)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, whatever its strength."""
        return not self.delta.float().any()

    @property
    def bytes(self) -> int:
        return self.delta.nbytes

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return self.delta.numel()


@dataclass(frozen=True)
class Shift(Parts):
    """b' = b + vector: a change of the layer's bias, or of a bias of zero where it has none. vector: [out]."""

    vector: Tensor

    rank: ClassVar[int] = 0
    scale: ClassVar[float] = 1.0

    @property
    def shift(self) -> Tensor:
        return self.vector.float()

    def change(self, weight: Tensor) -> Tensor:
        """dW: zeros in the shape of `weight`."""
        return torch.zeros_like(weight, dtype=torch.float32)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, whatever its strength."""
        return not self.vector.float().any()

    @property
    def bytes(self) -> int:
        return self.vector.nbytes

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return self.vector.numel()


Term: TypeAlias = LowRank | Hadamard | Whole | Shift
"""One part of what an adapter does to a layer. Its strength multiplies the change from the base weight or bias."""


@dataclass(frozen=True)
class Several(Parts):
    """Several terms of one adapter on one layer. Their changes, each of the base weight, add up. At most one Hadamard,
    one Whole and one Shift."""

    terms: tuple[Term, ...]

    @property
    def rank(self) -> int:
        """The highest rank of a term."""
        return max(term.rank for term in self.terms)

    @property
    def low_rank(self) -> tuple[LowRank, ...]:
        return tuple(one for term in self.terms for one in term.low_rank)

    @property
    def multiplier(self) -> Hadamard | None:
        return next((term.multiplier for term in self.terms if term.multiplier is not None), None)

    @property
    def whole(self) -> Tensor | None:
        return next((term.whole for term in self.terms if term.whole is not None), None)

    @property
    def shift(self) -> Tensor | None:
        return next((term.shift for term in self.terms if term.shift is not None), None)

    @property
    def scale(self) -> float:
        """0 where the scale of every term is 0."""
        return next((term.scale for term in self.terms if term.scale), 0.0)

    def change(self, weight: Tensor) -> Tensor:
        """dW in float32, in the shape of the base weight and on its device: the obvious reference."""
        return sum(
            (term.change(weight) for term in self.terms), torch.zeros_like(weight, dtype=torch.float32)
        )

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, whatever its strength."""
        return all(term.idle for term in self.terms)

    @property
    def bytes(self) -> int:
        return sum(term.bytes for term in self.terms)

    @property
    def numbers(self) -> int:
        """How many numbers the terms hold."""
        return sum(term.numbers for term in self.terms)


LayerFactors: TypeAlias = Term | Several
"""What an adapter does to one layer. All have a `rank`, a `scale` and a `change` of a weight."""


def terms_of(factors: LayerFactors) -> tuple[Term, ...]:
    """The terms, in order."""
    return factors.terms if isinstance(factors, Several) else (factors,)


def together(terms: Sequence[Term]) -> LayerFactors:
    """The terms as what acts on one layer. LowRank terms stay apart; of each other sort, one holds the sum."""
    assert terms
    low_rank = [one for term in terms for one in term.low_rank]
    factors = [term.multiplier for term in terms if term.multiplier is not None]
    wholes = [term.whole for term in terms if term.whole is not None]
    shifts = [term.shift for term in terms if term.shift is not None]
    if max(len(wholes), len(shifts), len(factors)) > 1:
        terms = [
            *low_rank,
            *([_sum(factors)] if factors else ()),
            *([Whole(sum(wholes[1:], wholes[0].float()))] if wholes else ()),
            *([Shift(sum(shifts[1:], shifts[0]))] if shifts else ()),
        ]
    return terms[0] if len(terms) == 1 else Several(tuple(terms))


def _sum(factors: Sequence[Hadamard]) -> Hadamard:
    """W (M1 - 1) + W (M2 - 1) as one: M = M1 + M2 - 1."""
    if len(factors) == 1:
        return factors[0]
    inner = [one.inner.float() * one.scale for one in factors]
    outer = [one.outer.float() for one in factors]
    rest = 1.0 - len(factors)
    inner.append(torch.full((1, inner[0].shape[1]), rest))
    outer.append(torch.ones(outer[0].shape[0], 1))
    return Hadamard(torch.cat(inner), torch.cat(outer, dim=1))
