"""Types that are recognised only to be refused by name, instead of being half applied."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from pipelines.adapters.kinds.kind import AdapterKind, Leaf, RawLayer
from pipelines.adapters.terms import LowRank, Target

_LATER = "it is read in a later version; look for another edition of the same subject"


class Unsupported(AdapterKind):
    """A type of which only the keys are known. ends: the ends of keys that no other type has. others: what other
    programs do with it."""

    def __init__(
        self, name: str, ends: Collection[str], refusal: str = _LATER, others: tuple[str, ...] = ()
    ) -> None:
        self.name, self.refusal, self._others = name, refusal, others
        self.leaves = {end: Leaf(end, "") for end in ends}

    def read(self, layer: RawLayer, target: Target) -> LowRank:
        raise AssertionError(f"{self.name} is refused before any layer is read")

    def elsewhere(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        return self._others


PEFT_NAMES: Mapping[str, str] = {
    "adamss": "AdaMSS", "beft": "BEFT", "boft": "(B)OFT", "bone": "Bone", "c3a": "C3A", "deft": "DEFT",
    "delora": "DeLoRA", "fourierft": "FourierFT", "frod": "FRoD", "glora": "PEFT's GLoRA", "gralora": "GraLoRA",
    "hira": "HiRA", "hra": "HRA", "ia3": "(IA)³", "lily": "Lily", "ln_tuning": "LN tuning", "miss": "MiSS",
    "oft": "(B)OFT", "osf": "OSF", "peanut": "PEANuT", "poly": "Poly", "psoft": "PSOFT", "pvera": "PVeRA",
    "randlora": "RandLoRA", "road": "RoAd", "shadow": "Shadow", "shira": "SHiRA", "supertuning": "SuperTuning",
    "tinylora": "TinyLoRA", "trainable_tokens": "trainable tokens", "unilora": "UniLoRA", "vblora": "VB-LoRA",
    "vera": "VeRA", "waveft": "WaveFT",
}  # fmt: skip
"""How the parameters of PEFT's types begin (`miss_block`) -> the type's name. PEFT 0.21.2, `tuners/*/layer.py`."""

PEFT_TYPES: Mapping[str, str] = {
    **{start.upper(): name for start, name in PEFT_NAMES.items()},
    "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "XLORA": "X-LoRA",
}  # fmt: skip
"""`peft_type` -> the type's name."""

_PEFT_PART = re.compile(
    rf"\.(?P<start>{'|'.join(sorted(PEFT_NAMES, key=len, reverse=True))})_[A-Za-z]\w*(?:\.[\w-]+){{0,2}}$"
)


_LONGEST_PART = 120  # characters from the end in which a parameter's name begins


def peft_part(text: str) -> tuple[str, Leaf] | None:
    """(what comes before the leaf, the leaf) of a key that ends in a parameter of one of PEFT's types; else None."""
    found = _PEFT_PART.search(text, max(0, len(text) - _LONGEST_PART))
    return None if found is None else (text[: found.start()], Leaf(f"{found['start']}_", ""))


_READ = ("boft", "c3a", "delora", "fourierft", "glora", "hira", "hra", "ia3", "ln_tuning", "miss", "oft",
         "randlora", "road", "shira", "vblora", "vera")  # fmt: skip
_STRANGE = "such a part of it is not known; look for another edition of the same subject"

UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported("LoRA with a trained bias on its inner half", ("lora_A.bias", "lora_down.bias")),
    Unsupported("LoRA on an embedding", ("lora_embedding_A", "lora_embedding_B")),
    Unsupported("an old OFT", ("oft_diag", "oft_r")),
    Unsupported("GLoRA of an unknown layout", ("bm.weight",)),
    Unsupported("a weight of another shape", ("reshape_weight",)),
    Unsupported(
        "FLoRA in an unknown layout",
        ("flora_A", "flora_B", "flora_A.weight", "flora_B.weight"),
        refusal="A and B are opposite halves in the LoRA and the FLoRA paper; rename them to flora_in and flora_out",
    ),
    *(
        Unsupported(f"{name} of an unknown layout", (f"{start}_",), refusal=_STRANGE)
        if start in _READ
        else Unsupported(name, (f"{start}_",))
        for start, name in PEFT_NAMES.items()
    ),
)
