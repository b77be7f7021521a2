"""An adapter file once it is read: factors for named layers, what the file says of itself, and a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.adapters.terms import LayerFactors, ModelLayers, Target
from pipelines.families.family import FAMILIES, Family


@dataclass(frozen=True)
class AdapterMetadata:
    """What a file, and the notes beside it, say about it. A field is empty where they say nothing.

    triggers: words that call up the subject. trigger_source: where they were found; "tag frequency" means that they
        are guessed from the training captions.
    category: "character", "style", "background", …
    negative: a negative prompt to use with it. preferred_weight, strength_range: strengths that work well.
    hashes: name -> sha256 and the like, as they were written down, unchecked.
    raw: the file's own metadata, unchanged.
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
    """What was applied when an adapter was loaded. `print(report)` is meant for people.

    kind: "LoRA", "LoCon", "FLoRA", or several of these joined by " + ". naming: the naming schemes of the keys.
    family: "sd1", "sd2", "sdxl" or "unknown". evidence: what says so ("shapes", "names", "metadata", …).
    applied, total: component -> how many layers the file changes, and how many the model has.
    ranks, alphas: (lowest, highest). alphas is None where the file gives none, which means scale 1 if has_alpha: if one
        of its types may have an alpha.
    dtype: of the weights, the most frequent first. sha256: of the file.
    notes: what was ignored, and whatever else a user might wonder about. doubts: those of them that may concern the
        picture: keys that were left out, a scale that is not certain, a choice between files.
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
    doubts: tuple[str, ...] = ()
    has_alpha: bool = True

    @property
    def short_hash(self) -> str:
        """The first twelve hex digits, as other tools show them."""
        return self.sha256[:12]

    def __str__(self) -> str:
        applied = ", ".join(f"{part} {self.applied[part]}/{total}" for part, total in self.total.items())
        unstated = ", alpha none (scale 1)" if self.has_alpha else ""
        alpha = unstated if self.alphas is None else f", alpha {span(self.alphas)}"
        rank = f", rank {span(self.ranks)}" if self.ranks[1] else ""
        family = FAMILIES[self.family].label if self.family in FAMILIES else self.family
        lines = [
            f"{self.name}  ({self.file}, {self.short_hash})",
            f"  applied   {applied}",
            f"  type      {self.kind}{rank}{alpha}, {self.dtype}",
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
    """One loaded adapter file.

    layers: layer ("unet.down_blocks.0…to_q") -> its factors. bundled: the embeddings that come with it: word -> name of
    a tensor ("clip_l") -> tensor, as the file has them (`pipelines.embeddings` judges them).
    """

    name: str
    layers: Mapping[str, LayerFactors]
    metadata: AdapterMetadata
    report: LoadReport
    bundled: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    def delta(self, layer: str) -> Tensor:
        """dW of one layer, float32, in the shape of its weight. Raises KeyError for a layer that it does not change.

        For low-rank layers only. What other types add depends on the base weight: `layers[layer].change(weight)`.
        """
        factors = self.layers[layer]
        assert not factors.reshapes, f"{layer} is multiplied, not added to"
        return sum((one.delta() for one in factors.low_rank[1:]), factors.low_rank[0].delta())

    @property
    def bytes(self) -> int:
        embeddings = sum(one.nbytes for tensors in self.bundled.values() for one in tensors.values())
        return embeddings + sum(factors.bytes for factors in self.layers.values())


def model_layers(family: Family, label: str, components: Mapping[str, torch.nn.Module]) -> ModelLayers:
    """The layers and norms of a model. label: its name. components: name -> module, "unet" among them."""

    def targets(*types: type[torch.nn.Module]) -> dict[str, dict[str, Target]]:
        return {
            component: {
                name: _target(module) for name, module in model.named_modules() if isinstance(module, types)
            }
            for component, model in components.items()
        }

    layers = targets(torch.nn.Linear, torch.nn.Conv2d)
    norms = targets(torch.nn.LayerNorm, torch.nn.GroupNorm)
    return ModelLayers(family, label, layers, dict(components["unet"].config), norms)  # type: ignore[arg-type]


def _target(module: torch.nn.Module) -> Target:
    def weight() -> Tensor:
        found = module.weight
        assert isinstance(found, Tensor)
        return found

    def bias() -> Tensor | None:
        found = module.bias
        assert found is None or isinstance(found, Tensor)
        return found

    return Target(tuple(weight().shape), weight, bias)
