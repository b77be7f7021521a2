"""What an adapter file becomes once it is read: exact factors for named layers of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from pipelines.families.family import FAMILIES, Family


@dataclass(frozen=True)
class Target:
    """The weight shape of one layer an adapter may change: [out, in] or [out, in, kh, kw]."""

    shape: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        return len(self.shape) == 4


@dataclass(frozen=True)
class ModelLayers:
    """The layers of one model that adapters may change, which is what a file is read against.

    components: component ("unet", "text_encoder", "text_encoder_2") -> dotted module name -> target.
    unet_config: the UNet's configuration, from which the older (SGM) block names are derived.
    label: the model's name as its user knows it, for messages.
    """

    family: Family
    label: str
    components: Mapping[str, Mapping[str, Target]]
    unet_config: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True)
class LowRank:
    """dW = scale * up . down for one layer, the factors as they stand in the file.

    down: [rank, in] or [rank, in, kh, kw]; up: [out, rank] or [out, rank, 1, 1].
    scale: alpha / rank (alpha / sqrt(rank) for rsLoRA); 1 where the file gives no alpha.
    A Tucker core (`lora_mid`) is multiplied into `down` when the file is read, which is exact.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def delta(self) -> Tensor:
        """dW in float32, in the shape of the layer's weight: the slow, obvious reference."""
        down, up = self.down.float(), self.up.float()
        delta = up.flatten(1) @ down.flatten(1) * self.scale
        return delta.reshape(up.shape[0], *down.shape[1:])

    def change(self, weight: Tensor) -> Tensor:
        """dW in float32, in the shape of the layer's weight and on its device."""
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
    """W' = W * M element by element, with M = scale * outer . inner: true FLoRA (`kinds/flora.py`).

    inner: [rank, in], multiplies the layer's input; outer: [out, rank], multiplies its output. In a convolution M
    [out, in] is the same for every tap of the kernel. scale: 1, or 1 / rank where the file asks for the mean.
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
        """dW = W * (M - 1) in float32, in the shape of the base weight: the slow, obvious reference."""
        factor = self.factor().to(weight.device).reshape(*weight.shape[:2], *(1 for _ in weight.shape[2:]))
        return weight.float() * (factor - 1)

    @property
    def idle(self) -> bool:
        """Whether it changes nothing, whatever its strength: M is 1 throughout."""
        return bool((self.factor() == 1).all())

    @property
    def bytes(self) -> int:
        return self.inner.nbytes + self.outer.nbytes

    @property
    def numbers(self) -> int:
        """How many numbers the factors hold."""
        return self.inner.numel() + self.outer.numel()


LayerFactors: TypeAlias = LowRank | Hadamard
"""What an adapter does to one layer. Both kinds know their `rank`, their `scale` and their `change` of a weight."""


@dataclass(frozen=True)
class AdapterMetadata:
    """What a file and the notes beside it say about it; empty where they say nothing.

    triggers: words that call the subject; trigger_source: where they stand ("tag frequency" is a guess from
        the training captions). category: "character", "style", "background", …
    hashes: sha256 and the like as they were written down, unchecked.
    raw: the file's own metadata as it stands.
    """

    title: str = ""
    author: str = ""
    description: str = ""
    usage_hint: str = ""
    licence: str = ""
    category: str = ""
    tags: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    trigger_source: str = ""
    negative: str = ""
    notes: str = ""
    preferred_weight: float | None = None
    strength_range: tuple[float, float] | None = None
    base_model: str = ""
    prediction_type: str = ""
    resolution: str = ""
    clip_skip: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class LoadReport:
    """What was applied. `print(report)` is meant to be read by people.

    kind: "LoRA", "LoCon", "FLoRA"; naming: the naming schemes of the keys.
    family: "sd1", "sd2", "sdxl" or "unknown"; evidence: what says so ("shapes", "names", "metadata", …).
    applied / total: component -> layers that the file changes / layers that the model has.
    ranks, alphas: lowest and highest; alphas None where the file gives none (scale 1).
    notes: what was ignored and whatever else a user might wonder about.
    """

    name: str
    file: str
    kind: str
    naming: str
    family: str
    evidence: str
    applied: Mapping[str, int]
    total: Mapping[str, int]
    ranks: tuple[int, int]
    alphas: tuple[float, float] | None
    dtype: str
    sha256: str
    title: str = ""
    triggers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def short_hash(self) -> str:
        """The first twelve hex digits, as other tools show them."""
        return self.sha256[:12]

    def __str__(self) -> str:
        applied = ", ".join(f"{part} {self.applied[part]}/{total}" for part, total in self.total.items())
        alpha = ", alpha none (scale 1)" if self.alphas is None else f", alpha {span(self.alphas)}"
        if self.kind == "FLoRA":
            alpha = ""  # the type has none
        family = FAMILIES[self.family].label if self.family in FAMILIES else self.family
        lines = [
            f"{self.name}  ({self.file}, {self.short_hash})",
            f"  applied   {applied}",
            f"  type      {self.kind}, rank {span(self.ranks)}{alpha}, {self.dtype}",
            f"  naming    {self.naming}",
            f"  made for  {family}" + (f" (by its {self.evidence})" if self.evidence else ""),
        ]
        if self.title:
            lines.append(f"  title     {self.title}")
        if self.triggers:
            lines.append(f"  triggers  {', '.join(self.triggers)}")
        return "\n".join([*lines, *(f"  note      {note}" for note in self.notes)])


def span(values: tuple[float, float]) -> str:
    """ "4" or "4 to 16"."""
    low, high = values
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


@dataclass(frozen=True)
class Adapter:
    """One loaded LoRA-like file. `layers` maps "unet.down_blocks.0…to_q" and the like to its factors."""

    name: str
    layers: Mapping[str, LayerFactors]
    metadata: AdapterMetadata
    report: LoadReport

    def delta(self, layer: str) -> Tensor:
        """dW of one layer in float32; raises KeyError where the adapter leaves the layer alone.

        Low-rank layers only: what others add depends on the base weight (`layers[layer].change(weight)`).
        """
        factors = self.layers[layer]
        assert isinstance(factors, LowRank), f"{layer} is multiplied, not added to"
        return factors.delta()

    @property
    def bytes(self) -> int:
        return sum(factors.bytes for factors in self.layers.values())


def model_layers(family: Family, label: str, components: Mapping[str, torch.nn.Module]) -> ModelLayers:
    """The Linear and Conv2d layers of a model's UNet and text encoders."""
    targets = {
        component: {
            name: Target(tuple(module.weight.shape))
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        }
        for component, model in components.items()
    }
    return ModelLayers(family, label, targets, dict(components["unet"].config))  # type: ignore[arg-type]
