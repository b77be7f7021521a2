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
from typing import Literal

import torch
from torch import Tensor

from pipelines.adapters.kinds.starts import Start
from pipelines.adapters.terms import LayerFactors, Target
from pipelines.errors import AdapterFormatError

Format = Literal["kohya", "peft", "diffusers"]
"""Whose files: kohya's, which LyCORIS, ComfyUI and A1111 share; PEFT's folders; diffusers' single files."""


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

    def number(self, part: str) -> float:
        """The part as one number. Raises AdapterFormatError."""
        value = self.parts[part]
        if value.numel() != 1:
            raise AdapterFormatError(
                f"{self.file}: {self.keys[part]!r} must be one number, but its shape is {list(value.shape)}; fetch a "
                "sound file"
            )
        return float(value.double().item())

    def scale_of(self, rank: int) -> float:
        """alpha / rank if the layer has its own alpha, else the scale of the settings, else 1.

        Raises AdapterFormatError.
        """
        if "alpha" not in self.parts:
            return 1.0 if self.scale is None else self.scale
        return self.number("alpha") / rank


@dataclass(frozen=True)
class Written:
    """One layer as a file holds it.

    tensors: end of a key -> tensor. rank, alpha: what PEFT's settings say of the layer; None for types without them.
    settings: PEFT's other settings, `peft_type` among them, which hold for all layers of a component. A frozenset means
    any of its values.
    """

    tensors: Mapping[str, Tensor]
    rank: int | None = None
    alpha: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


class AdapterKind(ABC):
    """One adapter type, such as LoRA or LoKr.

    leaves: end of a key ("lora_up.weight") -> what it is. `alpha` is among LoRA's, and all types share it.
    input_axes, output_axes: part -> the axis of that tensor that has the layer's input, or output width, for parts that
        have one. Where a file joins a query, a key and a value, the rows of the latter are those of all three.
    refusal: why this type is not applied, and what to do instead; "" for one that is applied.
    peft_types: the `peft_type`s of PEFT's settings under which it is read. alpha_setting: which of them is alpha.
    flag: the setting that says yes where layers are of this type too.
    takes: parts of other types that it reads itself, so that these do not see them.
    shared: parts that stand once in a file, for all layers (`base_model.vera_A`).
    nameless: end of a key -> the part that a bare `.weight` beside it is.
    on_norms: whether it may change a norm. has_alpha: whether a missing alpha means scale 1.
    rank_parts: parts whose first axis is the rank that alpha is divided by; the first that a layer has counts.
    ends: whose file -> part -> the end of its key there; without an entry, these files have no such type. PEFT's follow
        from `leaves` where only PEFT has the type.
    terms: what a layer becomes, in words. needs_base: whether that depends on the base weight.
    """

    name: str
    leaves: Mapping[str, Leaf]
    input_axes: Mapping[str, int] = MappingProxyType({})
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
    rank_parts: Sequence[str] = ()
    ends: Mapping[Format, Mapping[str, str]] = MappingProxyType({})
    terms: str = ""
    needs_base: bool = False

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

    def write(self, layer: RawLayer, target: Target, to: Format) -> Written:
        """The layer's own parts as a file of the same type holds them. Raises AdapterError where there is none."""
        ends = self.ends_in(to)
        if not ends:
            raise self.unwritable(layer, to)
        if {leaf.part for leaf in self.leaves.values()} & layer.parts.keys() - {*ends, "alpha"}:
            raise self.unwritable(layer, to)
        tensors = {ends[part]: tensor for part, tensor in layer.parts.items() if part in ends}
        rank = self.rank_of(layer)
        alpha = layer.scale_of(rank) * rank if rank else None
        if to == "kohya":
            if "alpha" in layer.parts:
                tensors["alpha"] = layer.parts["alpha"]
            elif alpha is not None and layer.scale is not None:
                tensors["alpha"] = torch.tensor(alpha, dtype=torch.float32)
            return Written(tensors)
        own = {} if self.has_alpha else layer.settings
        return Written(tensors, rank, alpha, {**own, "peft_type": next(iter(self.peft_types))})

    def ends_in(self, to: Format) -> Mapping[str, str]:
        """Part -> the end of its key in such files; empty where they have no such type."""
        if to in self.ends:
            return self.ends[to]
        found: dict[str, str] = {}
        for end, leaf in self.leaves.items() if to == "peft" and self.peft_types else ():
            if leaf.style == "peft":
                found.setdefault(leaf.part, end)
        return found

    def unwritable(self, layer: RawLayer, to: Format, why: str = "") -> AdapterFormatError:
        """The error for a layer of this type that such files cannot hold."""
        why = why or f"which {PLACES[to]} cannot hold"
        return AdapterFormatError(
            f"{layer.file}: {layer.name} is {self.name}, {why}; write it as plain LoRA, without --keep, "
            "or with another --to"
        )

    def rank_of(self, layer: RawLayer) -> int | None:
        """The rank that alpha is divided by; None without one."""
        return next((len(layer.parts[part]) for part in self.rank_parts if part in layer.parts), None)

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """What other programs draw differently, a sentence each. shapes: of the parts of one layer."""
        return (_PEFT_ALONE,) if self.peft_types and not self.ends_in("kohya") else ()


PLACES: Mapping[Format, str] = {
    "kohya": "kohya's files",
    "peft": "PEFT's folders",
    "diffusers": "diffusers' LoRA files",
}
_PEFT_ALONE = "only PEFT loads it, with its adapter_config.json; ComfyUI, A1111 and diffusers do not"


def peft_leaves(*parts: str, integers: Collection[str] = ()) -> dict[str, Leaf]:
    """The leaves of one of PEFT's types, whose parts are called as their keys end."""
    return {part: Leaf(part, "peft", part in integers) for part in parts}
