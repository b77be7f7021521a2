"""What one adapter type must know about itself. A new type is one file with one `AdapterKind` in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from pipelines.adapters.terms import LayerFactors, Target


@dataclass(frozen=True)
class Leaf:
    """The end of a key: which part of a layer it is, and whose habit it is to write it so."""

    part: str
    style: str


@dataclass(frozen=True)
class RawLayer:
    """The tensors a file holds for one layer.

    parts: part -> tensor; keys: part -> its key in the file, for messages.
    scale: a factor known from outside the parts (PEFT's settings); None where only `alpha` may say it.
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

    leaves: ends of keys ("lora_up.weight") -> what they are. `alpha` belongs to LoRA and is shared by all.
    input_axes: part -> the axis along which that tensor has the layer's input width, where there is one.
    refusal: why this type is not applied, and what to do; "" for one that is.
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
        """The layer's exact factors, in the form its target takes. Raises AdapterError."""
        ...
