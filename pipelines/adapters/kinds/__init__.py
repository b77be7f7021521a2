"""The adapter types, one file each."""

from collections.abc import Collection
from importlib import import_module

from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.kinds.lora import Lora
from pipelines.adapters.kinds.unsupported import UNSUPPORTED

TABLE = (
    "dora",
    "adalora",
    "loha",
    "lokr",
    "glora",
    "ia3",
    "oft",
    "peft_oft",
    "peft_boft",
    "peft_ia3",
    "peft_glora",
    "hira",
    "vera",
    "miss",
    "hra",
    "delora",
    "c3a",
    "fourierft",
    "shira",
    "road",
    "vblora",
    "randlora",
    "tlora",
    "bora",
    "edora",
    "lora_xs",
    "nora",
    "loldu",
    "mora",
    "melora",
    "moslora",
    "lamda",
    "mos",
    "sharelora",
    "pmss",
    "surm",
    "smt",
    "s2ft",
    "diffusekrona",
    "aflora",
    "flora",
    "lora",
    "full",
)
"""The files of the types that are applied. They are asked in this order whether a layer is theirs, so those that take
another type's parts come before it."""


def _kind_in(file: str) -> AdapterKind:
    """The one type that a file defines."""
    module = import_module(f"{__name__}.{file}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    [kind] = [value for value in own if issubclass(value, AdapterKind)]
    return kind()


APPLIED: tuple[AdapterKind, ...] = tuple(map(_kind_in, TABLE))
ADAPTER_KINDS: tuple[AdapterKind, ...] = (*UNSUPPORTED, *APPLIED)

SHARED = frozenset(part for kind in APPLIED for part in kind.shared)
"""Parts that stand once in a file, for all its layers."""
INTEGERS = frozenset(leaf.part for kind in APPLIED for leaf in kind.leaves.values() if leaf.integers)
"""Parts that may hold whole numbers."""
RANKS = tuple(part for kind in APPLIED for part in kind.rank_parts)
"""Parts whose first axis is a layer's rank. No layer has those of two types."""
INPUTS = {part: axis for kind in APPLIED for part, axis in kind.input_axes.items()}
OUTPUTS = {part: axis for kind in APPLIED for part, axis in kind.output_axes.items()}
"""Part -> the axis that has the layer's input width, or its output width."""
NAMELESS = {end: part for kind in APPLIED for end, part in kind.nameless.items()}
"""End of a key -> the part that a bare `.weight` beside it is."""
PEFT_DEFAULT = Lora.peft_types[0]
"""The `peft_type` that settings mean that name none."""
PEFT_APPLIED: dict[str, str] = {word: kind.alpha_setting for kind in APPLIED for word in kind.peft_types}
"""The `peft_type`s that are applied -> which of their settings is alpha."""
FLAGGED = {kind.flag: kind for kind in APPLIED if kind.flag}
"""A setting that says that layers are of another type too -> that type."""


def claimants(parts: Collection[str]) -> tuple[AdapterKind, ...]:
    """The types of a layer with these parts, in order. What one takes, those after it do not see."""
    found, left = [], set(parts)
    for kind in ADAPTER_KINDS:
        if kind.claims(left):
            found.append(kind)
            left -= set(kind.takes)
    return tuple(found)


__all__ = [
    "ADAPTER_KINDS", "FLAGGED", "INPUTS", "INTEGERS", "NAMELESS", "OUTPUTS", "PEFT_APPLIED", "PEFT_DEFAULT", "RANKS",
    "SHARED", "AdapterKind", "Leaf", "RawLayer", "claimants",
]  # fmt: skip
