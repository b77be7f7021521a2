"""What an adapter type must know about itself. A new type is one file with one `AdapterKind` in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from pipelines.adapters.terms import LayerFactors, Target


@dataclass(frozen=True)
class Leaf:
    """The end of a key. part: which tensor of the layer it is. style: whose naming scheme it belongs to."""

    part: str
    style: str


@dataclass(frozen=True)
class RawLayer:
    """The tensors that a file holds for one layer.

    file: its name. name: the layer's ("unet.…"). parts: part -> tensor. keys: part -> its key, for messages.
    scale: the scale that PEFT's settings give; None where they give none.
    metadata: the file's own, for types that keep settings there.
    """

    file: str
    name: str
    parts: Mapping[str, Tensor]
    keys: Mapping[str, str]
    scale: float | None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)


class AdapterKind(Protocol):
    """One adapter type, such as LoRA or LoKr.

    leaves: end of a key ("lora_up.weight") -> what it is. `alpha` is among LoRA's, and all types share it.
    input_axes: part -> the axis of that tensor that has the layer's input width, for parts that have one.
    refusal: why this type is not applied, and what to do instead; "" for one that is applied.
    """

    @property
    def name(self) -> str: ...
    @property
    def leaves(self) -> Mapping[str, Leaf]: ...
    @property
    def input_axes(self) -> Mapping[str, int]: ...
    @property
    def refusal(self) -> str: ...

    def claims(self, parts: Collection[str]) -> bool:
        """Whether a layer with these parts is of this type. Types are asked in the order of ADAPTER_KINDS."""
        ...

    def read(self, layer: RawLayer, target: Target) -> LayerFactors:
        """The layer's exact factors, in the shape that its target takes. Raises AdapterError."""
        ...
