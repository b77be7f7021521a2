"""What an adapter file becomes once it is read: exact factors for named layers of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.family import Family


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


@dataclass(frozen=True)
class AdapterMetadata:
    """What a file says about itself; empty where it says nothing."""

    title: str = ""
    author: str = ""
    description: str = ""
    usage_hint: str = ""
    licence: str = ""
    category: str = ""
    triggers: tuple[str, ...] = ()
    preferred_weight: float | None = None
    base_model: str = ""
    raw: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class LoadReport:
    """What was applied. `print(report)` is meant to be read by people.

    applied / total: component -> layers that the file changes / layers that the model has.
    """

    name: str
    file: str
    kind: str
    naming: str
    family: str
    applied: Mapping[str, int]
    total: Mapping[str, int]
    ranks: tuple[int, int]
    alphas: tuple[float, float] | None
    dtype: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def short_hash(self) -> str:
        """The first twelve hex digits, as other tools show them."""
        return self.sha256[:12]


@dataclass(frozen=True)
class Adapter:
    """One loaded LoRA-like file. `layers` maps "unet.down_blocks.0…to_q" and the like to its factors."""

    name: str
    layers: Mapping[str, LowRank]
    metadata: AdapterMetadata
    report: LoadReport

    def delta(self, layer: str) -> Tensor:
        """dW of one layer in float32; raises KeyError where the adapter leaves the layer alone."""
        return self.layers[layer].delta()

    @property
    def bytes(self) -> int:
        return sum(factor.down.nbytes + factor.up.nbytes for factor in self.layers.values())


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
