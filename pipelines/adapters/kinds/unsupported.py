"""Types that are recognised only to be refused by name, instead of being half applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipelines.adapters.kinds.kind import Leaf, RawLayer
from pipelines.adapters.terms import LowRank, Target

_LATER = "this version applies LoRA and LoCon only; look for a plain LoRA of the same subject"


@dataclass(frozen=True)
class Unsupported:
    """A type of which only the keys are known. ends: the ends of keys that no other type has."""

    name: str
    ends: tuple[str, ...]
    input_axes: Mapping[str, int] = field(default_factory=dict)
    refusal: str = _LATER

    @property
    def leaves(self) -> Mapping[str, Leaf]:
        return {end: Leaf(end, "") for end in self.ends}

    def claims(self, parts: Collection[str]) -> bool:
        return not set(self.ends).isdisjoint(parts)

    def read(self, layer: RawLayer, target: Target) -> LowRank:
        raise AssertionError(f"{self.name} is refused before any layer is read")


_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2")

UNSUPPORTED: tuple[Unsupported, ...] = (
    # DoRA comes first, because its layers have LoRA's parts too.
    Unsupported("DoRA", ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight")),
    Unsupported("LoRA with a trained bias", ("lora_A.bias", "lora_B.bias", "lora_up.bias", "lora_down.bias")),
    Unsupported("LoRA on an embedding", ("lora_embedding_A", "lora_embedding_B")),
    Unsupported("AdaLoRA", ("lora_E", "ranknum")),
    Unsupported("LoHa", _HADA, {"hada_w1_b": 1, "hada_w2_b": 1}),
    Unsupported("LoKr", _LOKR),
    Unsupported("(B)OFT", ("oft_blocks", "oft_diag", "rescale", "oft_r", "oft_R.weight", "boft_R", "boft_s")),
    Unsupported("GLoRA", ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight")),
    Unsupported("(IA)³", ("on_input", "ia3_l")),
    Unsupported("a norm difference", ("w_norm", "b_norm")),
    Unsupported("a full difference", ("diff", "diff_b", "set_weight"), {"diff": 1}),
    Unsupported("VeRA", ("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B")),
    Unsupported("FourierFT", ("fourierft_spectrum",)),
    Unsupported(
        "FLoRA in an unknown layout",
        ("flora_A", "flora_B", "flora_A.weight", "flora_B.weight"),
        refusal="A and B are opposite halves in the LoRA and the FLoRA paper; rename them to flora_in and flora_out",
    ),
)
