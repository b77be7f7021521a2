"""What an adapter type must know about itself. A new type is one file with one `AdapterKind` in it, and a line in
`pipelines.adapters.kinds`.

A layer may be of several types at once: a whole difference of its bias beside low-rank factors. Each reads its own
parts, and their changes add up. A type that is built on another one, as DoRA is, takes the other's parts too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor

from pipelines.adapters.kinds.starts import Start
from pipelines.adapters.terms import LayerFactors, Target


@dataclass(frozen=True)
class Leaf:
    """The end of a key. part: which tensor of the layer it is. style: whose naming scheme it belongs to.

    integers: whether the tensor may hold whole numbers, or true and false, instead of floating-point weights.
    naming: the naming scheme of its keys, where it is the type's own.
    """

    part: str
    style: str
    integers: bool = False
    naming: str = ""


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
    input_axes, output_axes: part -> the axis of that tensor that has the layer's input, or output width, for parts that
        have one. Where a file joins a query, a key and a value, the rows of the latter are those of all three.
    ranks: parts whose first axis is the rank, by which a stated alpha is divided; the first that a layer has counts.
    refusal: why this type is not applied, and what to do instead; "" for one that is applied.
    peft_types: the `peft_type`s of PEFT's settings under which it is read. alpha_setting: which of them is alpha.
    flag: the setting that says yes where layers are of this type too.
    takes: parts of other types that it reads itself, so that these do not see them.
    shared: parts that stand once in a file, for all layers (`base_model.vera_A`).
    nameless: end of a key -> the part that a bare `.weight` beside it is.
    on_norms: whether it may change a norm. has_alpha: whether a missing alpha means scale 1.
    """

    name: str
    leaves: Mapping[str, Leaf]
    input_axes: Mapping[str, int] = MappingProxyType({})
    ranks: Sequence[str] = ()
    output_axes: Mapping[str, int] = MappingProxyType({})
    refusal: str = ""
    peft_types: Collection[str] = ()
    alpha_setting: str = "alpha"
    flag: str = ""
    takes: Collection[str] = ()
    shared: Collection[str] = ()
    nameless: Mapping[str, str] = MappingProxyType({})
    on_norms: bool = False
    has_alpha: bool = False

    def claims(self, parts: Collection[str]) -> bool:
        """Whether a layer with these parts is of this type: with any of its parts but `alpha`.

        Types are asked in the order of ADAPTER_KINDS.
        """
        return any(leaf.part in parts for leaf in self.leaves.values() if leaf.part != "alpha")

    def called(self, layers: Iterable[Mapping[str, tuple[int, ...]]]) -> str:
        """What people call it, by its layers in one file. layers: of each, part -> shape."""
        return self.name

    def check_metadata(self, file: str, metadata: Mapping[str, str]) -> None:  # noqa: B027
        """Raises AdapterFormatError where a file's metadata rule out that it is read."""

    @abstractmethod
    def read(self, layer: RawLayer, target: Target) -> LayerFactors:
        """The layer's exact factors, in the shape that its target takes. Raises AdapterError."""


def peft_leaves(*parts: str, integers: Collection[str] = ()) -> dict[str, Leaf]:
    """The leaves of one of PEFT's types, whose parts are called as their keys end."""
    return {part: Leaf(part, "peft", part in integers) for part in parts}
