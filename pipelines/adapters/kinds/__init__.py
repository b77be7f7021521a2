"""The adapter types, one file each. They are asked in this order whether a layer is theirs."""

from pipelines.adapters.kinds.flora import Flora
from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.kinds.lora import Lora
from pipelines.adapters.kinds.unsupported import UNSUPPORTED

ADAPTER_KINDS: tuple[AdapterKind, ...] = (*UNSUPPORTED, Flora(), Lora())

__all__ = ["ADAPTER_KINDS", "AdapterKind", "Leaf", "RawLayer"]
