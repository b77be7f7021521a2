"""The adapter types, one file each. They are asked in this order whether a layer is theirs."""

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
from pipelines.adapters.kinds.randlora import RandLora
from pipelines.adapters.kinds.road import Road
from pipelines.adapters.kinds.shira import Shira
from pipelines.adapters.kinds.tlora import TLora
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
    RandLora(),
    TLora(),
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

__all__ = [
    "ADAPTER_KINDS", "FLAGGED", "INPUTS", "INTEGERS", "NAMELESS", "OUTPUTS", "PEFT_APPLIED", "PEFT_DEFAULT", "SHARED",
    "AdapterKind", "Leaf", "RawLayer",
]  # fmt: skip
