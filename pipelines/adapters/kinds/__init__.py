"""The adapter types, one file each. The order is the order in which they are asked to claim a layer."""

from pipelines.adapters.kinds.flora import Flora
from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.kinds.lora import Lora
from pipelines.adapters.kinds.unsupported import UNSUPPORTED

ADAPTER_KINDS: tuple[AdapterKind, ...] = (*UNSUPPORTED, Flora(), Lora())

__all__ = ["ADAPTER_KINDS", "AdapterKind", "Leaf", "RawLayer"]
