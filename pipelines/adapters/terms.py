"""The layers of a model, for which adapters are read, and what an adapter does to one layer: its factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from pipelines.families.family import Family


@dataclass(frozen=True)
class Target:
    """One layer that an adapter may change, by the shape of its weight: [out, in] or [out, in, kh, kw]."""

    shape: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        return len(self.shape) == 4


@dataclass(frozen=True)
class ModelLayers:
    """The layers of one model that adapters may change. A file is read for these.

    label: the model's name as its user knows it, for messages.
    components: component ("unet", "text_encoder", "text_encoder_2") -> dotted module name -> target.
    unet_config: the UNet's configuration, which tells the width of the text embeddings.
    """

    family: Family
    label: str
    components: Mapping[str, Mapping[str, Target]]
    unet_config: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True)
class LowRank:
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
class Hadamard:
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


LayerFactors: TypeAlias = LowRank | Hadamard
"""What an adapter does to one layer. Both have a `rank`, a `scale` and a `change` of a weight."""
