"""All differences between SD1.x, SD2.x and SDXL. What they have in common, a UNet, is in `unet` and `unet_names`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from composers.shown import shown
from pipelines.errors import ModelError

FamilyName = Literal["sd1", "sd2", "sdxl"]
Cut = Literal["published", "deep"]
"""How much of the UNet a shallow pass runs: see `pipelines.families.unet`."""


@dataclass(frozen=True)
class Defaults:
    """What a picture is rendered with where the request says nothing. Sizes are in pixels."""

    width: int
    height: int
    scheduler: str
    steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Family:
    """One model family.

    architecture: what modelspec calls an adapter for it (https://github.com/Stability-AI/ModelSpec).
    context_width: the width of the text embeddings at the family's published size. Small models of the same layout
        are narrower.
    text_encoders: the text encoders' component names, in the order in which their embeddings are joined.
    size_conditioned: the UNet also takes pooled text and six size numbers (`added_cond_kwargs`).
    cut: where deep features are taken, unless a request says otherwise. SDXL's outermost blocks have no attention.
        At the published cut, the prompt would not act in a shallow pass, nor would most adapters.
    content_blocks, style_blocks: the UNet blocks that hold content and style; () where none are published.
    """

    name: FamilyName
    label: str
    architecture: str
    context_width: int
    text_encoders: tuple[str, ...]
    size_conditioned: bool
    cut: Cut
    defaults: Defaults
    content_blocks: tuple[str, ...] = ()
    style_blocks: tuple[str, ...] = ()

    @property
    def block_map(self) -> dict[str, tuple[str, ...]]:
        """ "content" and "style" -> their blocks. {} where none are published."""
        parts = {"content": self.content_blocks, "style": self.style_blocks}
        return {part: blocks for part, blocks in parts.items() if blocks}


SD1 = Family(
    "sd1",
    "Stable Diffusion 1.x",
    "stable-diffusion-v1/lora",
    768,
    ("text_encoder",),
    False,
    "published",
    Defaults(512, 512, "DPM++ 2M Karras", 25, 7.0),
)
SD2 = Family(
    "sd2",
    "Stable Diffusion 2.x",
    "stable-diffusion-v2/lora",
    1024,
    ("text_encoder",),
    False,
    "published",
    Defaults(768, 768, "DPM++ 2M Karras", 25, 7.0),
)
SDXL = Family(
    "sdxl",
    "Stable Diffusion XL",
    "stable-diffusion-xl-v1-base/lora",
    2048,
    ("text_encoder", "text_encoder_2"),
    True,
    "deep",
    Defaults(1024, 1024, "DPM++ 2M Karras", 28, 6.0),
    # Frenkel et al. 2024 (arXiv 2403.14572); other models of this layout may differ, so a card's map wins
    content_blocks=("up_blocks.0.attentions.0",),
    style_blocks=("up_blocks.0.attentions.1",),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in (SD1, SD2, SDXL)}


def family_of(unet_config: Mapping[str, Any]) -> Family:
    """The family of a UNet, from its configuration. Raises ModelError for a UNet of another family or task."""
    addition = unet_config.get("addition_embed_type")
    if addition not in (None, "text_time") or unet_config.get("in_channels", 4) != 4:
        raise ModelError(
            f"this UNet (addition_embed_type={shown(addition)}, "
            f"in_channels={shown(unet_config.get('in_channels'))}) is neither a plain SD1.x, SD2.x nor SDXL "
            "text-to-image model; inpainting, refiner and depth models are not supported"
        )
    if addition == "text_time":
        return SDXL
    return SD2 if unet_config.get("cross_attention_dim") == SD2.context_width else SD1
