"""What an adapter file becomes once it is read: factors for named layers, what the file says, and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.adapters.terms import LayerFactors, LowRank, ModelLayers, Target
from pipelines.families.family import FAMILIES, Family


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
