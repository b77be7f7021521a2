"""What an adapter type must know about itself. A new type is one file with one `AdapterKind` in it, and a line in
`pipelines.adapters.kinds`.

A layer may be of several types at once: a whole difference of its bias beside low-rank factors. Each reads its own
parts, and their changes add up. A type that is built on another one, as DoRA is, takes the other's parts too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from pipelines.adapters.kinds.starts import Start
from pipelines.adapters.terms import LayerFactors, Target


@dataclass(frozen=True)
class Leaf:
    """The end of a key. part: which tensor of the layer it is. style: whose naming scheme it belongs to.

    integers: whether the tensor may hold whole numbers, or true and false, instead of floating-point weights.
    """

    part: str
    style: str
    integers: bool = False


@dataclass(frozen=True)
class RawLayer:
    """The tensors that a file holds for one layer.

    file: its name. name: the layer's ("unet.…"). parts: part -> tensor. keys: part -> its key, for messages.
    scale: the scale that PEFT's settings give; None where they give none.
    metadata: the file's own, for types that keep settings there.
    settings: PEFT's settings of the layer's component, by their own names; {} where none come with the file.
    shared: part -> tensor, for what all layers of the file share.
    start: what it was trained from, where that changed the base.
    """

    file: str
    name: str
    parts: Mapping[str, Tensor]
    keys: Mapping[str, str]
    scale: float | None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, object] = field(default_factory=dict, repr=False)
    shared: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    start: Start | None = None


class AdapterKind(ABC):
    """One adapter type, such as LoRA or LoKr.

    leaves: end of a key ("lora_up.weight") -> what it is. `alpha` is among LoRA's, and all types share it.
    input_axes: part -> the axis of that tensor that has the layer's input width, for parts that have one.
    refusal: why this type is not applied, and what to do instead; "" for one that is applied.
    peft_types: the `peft_type`s of PEFT's settings under which it is read.
    takes: parts of other types that it reads itself, so that these do not see them.
    shared: parts that stand once in a file, for all layers (`base_model.vera_A`).
    on_norms: whether it may change a norm. has_alpha: whether a missing alpha means scale 1.
    """

    name: str
    leaves: Mapping[str, Leaf]
    input_axes: Mapping[str, int] = MappingProxyType({})
    refusal: str = ""
    peft_types: Collection[str] = ()
    takes: Collection[str] = ()
    shared: Collection[str] = ()
    on_norms: bool = False
    has_alpha: bool = False

    def claims(self, parts: Collection[str]) -> bool:
        """Whether a layer with these parts is of this type: with any of its parts but `alpha`.

        Types are asked in the order of ADAPTER_KINDS.
        """
        return any(leaf.part in parts for leaf in self.leaves.values() if leaf.part != "alpha")

    @abstractmethod
    def read(self, layer: RawLayer, target: Target) -> LayerFactors:
        """The layer's exact factors, in the shape that its target takes. Raises AdapterError."""


def peft_leaves(*parts: str, integers: Collection[str] = ()) -> dict[str, Leaf]:
    """The leaves of one of PEFT's types, whose parts are called as their keys end."""
    return {part: Leaf(part, "peft", part in integers) for part in parts}
