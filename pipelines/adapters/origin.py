"""Which base family a file was made for: told by its layers' names and shapes, else by its metadata.

The file's own name is never used. Where nothing tells, the answer is "unknown".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from composers.shown import shown
from pipelines.adapters.container import TensorEntry
from pipelines.adapters.keys import UNET, Contents
from pipelines.adapters.kinds import ADAPTER_KINDS
from pipelines.families.family import FAMILIES, SDXL

_INPUT_AXES: Mapping[str, int] = {
    part: axis for kind in ADAPTER_KINDS for part, axis in kind.input_axes.items()
}
_CONTEXT = re.compile(r".*attn2[._](?:processor[._])?to_[kv]")
_DEEP = re.compile(r".*transformer_blocks[._](\d{1,9})[._]")

_LONGEST = 300  # characters in the name of a layer that is known
_ENOUGH = 3_000  # keys that are looked at; an adapter of another family shows it everywhere
_FOREIGN = tuple(
    (label, re.compile(pattern))
    for label, pattern in (
        ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp|mod)"),
        ("FLUX or another model of its layout", r"(single_transformer|double|single)_blocks[._]\d"),
        (
            "Stable Diffusion 3",
            r"joint_blocks[._]\d|transformer_blocks[._]\d+[._]attn[._]add_[qkv]_proj|^lora_te3_",
        ),
        ("Wan", r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn)[._]"),
        (
            "Z-Image or Lumina",
            r"(noise|context)_refiner[._]\d|(^|[._])layers[._]\d+[._](attention|feed_forward)[._]",
        ),
        ("Stable Cascade", r"^lora_prior_"),
        ("a language model", r"(^|[._])model[._]layers[._]\d+[._](self_attn|mlp)[._]"),
        (
            "Stable Video Diffusion",
            r"[._]temporal_(transformer_blocks|res_block)[._]|[._]spatial_res_block[._]",
        ),
        ("AnimateDiff, as a motion module,", r"[._]motion_modules[._]\d|[._]temporal_transformer[._]"),
        (
            "a diffusion transformer",
            r"^(?:(?:base_model|model|lora|lycoris|unet|diffusion_model|dit|net)[._])*(?:transformer[._])?"
            r"(?:transformer_)?blocks[._]\d|^lora_transformer_|(^|[._])(double_stream_blocks|token_refiner)[._]",
        ),
    )
)


@dataclass(frozen=True)
class Origin:
    """The model family that a file was made for.

    family: "sd1", "sd2", "sdxl", the name of a family that this program does not run, or "unknown".
    evidence: "shapes", "names", "metadata" or "owner's word"; "" where unknown. detail: the evidence, for messages.
    """

    family: str = "unknown"
    evidence: str = ""
    detail: str = ""

    @property
    def label(self) -> str:
        """The family as people write it."""
        return FAMILIES[self.family].label if self.family in FAMILIES else self.family

    def __str__(self) -> str:
        return f"{self.label} (by its {self.evidence})" if self.evidence else self.label


def origin_of(
    contents: Contents,
    tensors: Mapping[str, TensorEntry],
    metadata: Mapping[str, str],
    *,
    ambiguous_width: int | None = None,
) -> Origin:
    """The family of a file. tensors, metadata: from its header.

    ambiguous_width: a width of text embeddings that proves nothing, because the model at hand has it without being of
        the family with that width (a small model may have any width).
    """
    by_layers = origin_by_layers(contents, tensors, ambiguous_width=ambiguous_width)
    return by_layers or origin_by_metadata(metadata) or Origin()


def origin_by_layers(
    contents: Contents, tensors: Mapping[str, TensorEntry], *, ambiguous_width: int | None = None
) -> Origin | None:
    """The family that the layers prove, by names or shapes; None where they prove none."""
    strange = foreign(contents.strangers) if contents.foreign else None
    return strange or _by_width(contents, tensors, ambiguous_width) or _by_depth(contents)


def foreign(keys: Iterable[str]) -> Origin | None:
    """The family that this program does not run, where the names of layers show one; else None."""
    for key in islice(keys, _ENOUGH):
        for label, pattern in _FOREIGN:
            if pattern.search(key, 0, _LONGEST):
                return Origin(label, "names", f"it holds {key!r}")
    return None


def text_width(contents: Contents, tensors: Mapping[str, TensorEntry]) -> int | None:
    """The width of the text embeddings that an adapter reads; None where none of its layers tells."""
    return next((width for _, width in _text_widths(contents, tensors)), None)


def _text_widths(contents: Contents, tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, int]]:
    """(key, width) of each layer that reads the text embeddings: the keys and values of cross-attention."""
    for key in contents.keys:
        axis = _INPUT_AXES.get(key.part)
        shape = tensors[key.text].shape
        if axis is None or len(shape) <= axis or UNET not in key.address.components:
            continue
        if len(key.address.path) <= _LONGEST and _reads_text(key.address.path):
            yield key.text, shape[axis]


@lru_cache(2**14)  # a library's files repeat the names of a few bases
def _reads_text(path: str) -> bool:
    return _CONTEXT.fullmatch(path) is not None


def _by_width(contents: Contents, tensors: Mapping[str, TensorEntry], ambiguous: int | None) -> Origin | None:
    """The family by the width of the text embeddings, which differs in every family."""
    families = {
        family.context_width: family for family in FAMILIES.values() if family.context_width != ambiguous
    }
    for key, width in _text_widths(contents, tensors):
        if width in families:
            return Origin(families[width].name, "shapes", f"{key!r} reads {width} numbers")
    return None


def _by_depth(contents: Contents) -> Origin | None:
    """SDXL, where an attention has more than two transformer blocks: no other family stacks so many."""
    for key in contents.keys:
        deep = _DEEP.match(key.address.path) if UNET in key.address.components else None
        if deep is not None and int(deep[1]) >= 2:
            return Origin(SDXL.name, "names", f"it holds {key.text!r}")
    return None


def origin_by_metadata(metadata: Mapping[str, str]) -> Origin | None:
    """The family that the metadata name; None where they name none."""
    for field in ("modelspec.architecture", "ss_base_model_version"):
        said = metadata.get(field, "").strip()
        family = _family_named(said)
        if family:
            return Origin(family, "metadata", f"{field} is {shown(said)}")
    if metadata.get("ss_v2", "").strip().lower() == "true":
        return Origin("sd2", "metadata", f"ss_v2 is {metadata['ss_v2'].strip()!r}")
    return None


def something_else(keys: Iterable[str]) -> str:
    """What a file is, if not an adapter, and what to do with it; "" where its keys do not tell."""
    keys = [key for key in islice(keys, _ENOUGH) if len(key) <= _LONGEST]
    return next((what for what, pattern in _NO_ADAPTERS if any(map(pattern.match, keys))), "")


_NO_ADAPTERS = tuple(
    (what, re.compile(pattern, re.DOTALL))
    for what, pattern in (
        ("it is a ControlNet LoRA, which steers by a picture and is no style or subject",
         r"lora_controlnet$|controlnet_.*lora|.*(input_hint_block|zero_convs|controlnet_cond_embedding|middle_block_out)"
         r"[._].*(up|down|lora_\w+)(\.weight)?$"),
        ("it is a ControlNet-LLLite, which steers by a picture and is no style or subject", r"lllite_"),
        ("it is a ControlNet, which steers by a picture and is no adapter",
         r"control_model\.|.*(input_hint_block|zero_convs|controlnet_cond_embedding|controlnet_(down|mid)_block)"),
        ("it is a whole checkpoint, use it as the model",
         r"model\.diffusion_model\.|first_stage_model\.|cond_stage_model\.|conditioner\.embedders\."),
        ("it is an IP-Adapter, which takes a picture as its prompt",
         r"(image_proj|ip_adapter|image_proj_model)\.|.*(to_[kv]_ip)\."),
        ("it is AnimateDiff's motion module, for moving pictures", r".*(motion_modules|temporal_transformer)\."),
        ("it is a hypernetwork; A1111 loads these from a folder of their own",
         r"\d{3,4}(\.\d+)?\.linear(s)?\.|(down|mid|up)\.\d+\.(linear|layer)"),
        ("it is a textual-inversion embedding, which is not an adapter; put it into a folder of embeddings",
         r"(emb_params|clip_[lg](_out)?|text_encoders_[01]|string_to_param(\..*|$)|string_to_token.*|<[^.]+>)$"),
        ("it is a T2I-Adapter, which steers by a picture", r"(adapter\.)?(body\.\d+\.|conv_in\.|channel_unshuffle)"
         r".*block\d"),
        ("it numbers its layers (the first LoRA trainers did); convert it to kohya's format",
         r"(unet|text_encoder):"),
        ("it is a part of a model (UNet, VAE, text encoder or ControlNet), not an adapter",
         r"(?!.*lora_)(down_blocks|mid_block|up_blocks|encoder|decoder|quant_conv|post_quant_conv|text_model|text_projection"
         r"|conv_in|conv_out|time_embedding|input_blocks|output_blocks|transformer\.resblocks|shared|token_embedding"
         r")[._].*(weight|bias)$"),
        ("it is an upscaler, not an adapter", r"conv_first\.|model\.\d+\.(sub\.|weight)|body\.\d+\.rdb"),
    )
)  # fmt: skip
"""What else people give as a LoRA, by the beginning of one of its keys; the first that matches counts."""


def _family_named(said: str) -> str:
    """The family that the name of an architecture means, "" where it is not known."""
    said = said[:200].lower()
    for pattern, family in (
        (r".*refiner", "the SDXL refiner"),
        (r"stable-diffusion-xl|sdxl", "sdxl"),
        (r"stable-diffusion-v2|sd_?v2", "sd2"),
        (r"stable-diffusion-v1|sd_?v1", "sd1"),
        (r"flux", "FLUX"),
        (r"stable-diffusion-3|sd3", "Stable Diffusion 3"),
        (r"hunyuan", "Hunyuan"),
        (r"wan", "Wan"),
        (r"qwen", "Qwen-Image"),
        (r"lumina|z-?image", "Z-Image or Lumina"),
        (r"cascade", "Stable Cascade"),
        (r"pixart", "PixArt"),
    ):
        if re.match(pattern, said):
            return family
    return ""
