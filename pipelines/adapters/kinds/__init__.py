"""The adapter types, one file each. They are asked in this order whether a layer is theirs."""

from pipelines.adapters.kinds.dora import Dora
from pipelines.adapters.kinds.flora import Flora
from pipelines.adapters.kinds.full import Full
from pipelines.adapters.kinds.glora import Glora
from pipelines.adapters.kinds.ia3 import Ia3
from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.kinds.loha import Loha
from pipelines.adapters.kinds.lokr import Lokr
from pipelines.adapters.kinds.lora import Lora
from pipelines.adapters.kinds.oft import Oft
from pipelines.adapters.kinds.unsupported import UNSUPPORTED

APPLIED: tuple[AdapterKind, ...] = (Dora(), Loha(), Lokr(), Glora(), Ia3(), Oft(), Flora(), Lora(), Full())
"""The types that are applied. DoRA comes first, because its layers have another type's parts too."""
ADAPTER_KINDS: tuple[AdapterKind, ...] = (*UNSUPPORTED, *APPLIED)

__all__ = ["ADAPTER_KINDS", "AdapterKind", "Leaf", "RawLayer"]
