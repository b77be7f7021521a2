"""The adapter types, one file each. They are asked in this order whether a layer is theirs."""

from collections.abc import Collection

from pipelines.adapters.kinds.adalora import AdaLora
from pipelines.adapters.kinds.c3a import C3a
from pipelines.adapters.kinds.delora import Delora
from pipelines.adapters.kinds.dora import Dora
from pipelines.adapters.kinds.flora import Flora
from pipelines.adapters.kinds.fourierft import FourierFt
from pipelines.adapters.kinds.full import Full
from pipelines.adapters.kinds.glora import Glora
from pipelines.adapters.kinds.hira import Hira
from pipelines.adapters.kinds.hra import Hra
from pipelines.adapters.kinds.ia3 import Ia3
from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.kinds.loha import Loha
from pipelines.adapters.kinds.lokr import Lokr
from pipelines.adapters.kinds.lora import Lora
from pipelines.adapters.kinds.miss import Miss
from pipelines.adapters.kinds.oft import Oft
from pipelines.adapters.kinds.peft_boft import PeftBoft
from pipelines.adapters.kinds.peft_glora import PeftGlora
from pipelines.adapters.kinds.peft_ia3 import PeftIa3
from pipelines.adapters.kinds.peft_oft import PeftOft
from pipelines.adapters.kinds.road import Road
from pipelines.adapters.kinds.shira import Shira
from pipelines.adapters.kinds.unsupported import UNSUPPORTED
from pipelines.adapters.kinds.vblora import VbLora
from pipelines.adapters.kinds.vera import Vera

APPLIED: tuple[AdapterKind, ...] = (
    Dora(),
    AdaLora(),
    Loha(),
    Lokr(),
    Glora(),
    Ia3(),
    Oft(),
    PeftOft(),
    PeftBoft(),
    PeftIa3(),
    PeftGlora(),
    Hira(),
    Vera(),
    Miss(),
    Hra(),
    Delora(),
    C3a(),
    FourierFt(),
    Shira(),
    Road(),
    VbLora(),
    Flora(),
    Lora(),
    Full(),
)
"""The types that are applied. Those that take another type's parts come before it."""
ADAPTER_KINDS: tuple[AdapterKind, ...] = (*UNSUPPORTED, *APPLIED)

SHARED = frozenset(part for kind in APPLIED for part in kind.shared)
"""Parts that stand once in a file, for all its layers."""
INTEGERS = frozenset(leaf.part for kind in APPLIED for leaf in kind.leaves.values() if leaf.integers)
"""Parts that may hold whole numbers."""
PEFT_APPLIED = frozenset(word for kind in APPLIED for word in kind.peft_types)
"""The `peft_type`s that are applied."""


def claimants(parts: Collection[str]) -> tuple[AdapterKind, ...]:
    """The types of a layer with these parts, in order. What one takes, those after it do not see."""
    found, left = [], set(parts)
    for kind in ADAPTER_KINDS:
        if kind.claims(left):
            found.append(kind)
            left -= set(kind.takes)
    return tuple(found)


__all__ = [
    "ADAPTER_KINDS",
    "INTEGERS",
    "PEFT_APPLIED",
    "SHARED",
    "AdapterKind",
    "Leaf",
    "RawLayer",
    "claimants",
]
