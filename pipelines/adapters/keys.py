"""What a key says without a model: which component, which layer by which name, and which part of the layer.

A key is prefix + layer name + leaf. The prefixes, by their writers:
    kohya-ss/sd-scripts and LyCORIS    `lora_unet_…`, `lora_te(1|2)?_…`, `lycoris_…` (names flattened with "_")
    diffusers and PEFT                 `unet.…`, `text_encoder(_2)?.…`, `base_model.model.…`, or nothing at all
    ComfyUI                            `diffusion_model.…`, `text_encoders.clip_l.transformer.…`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from pipelines.adapters.kinds import ADAPTER_KINDS, Leaf

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
COMPONENTS = (UNET, TEXT, TEXT_2)

LEAVES: Mapping[str, Leaf] = {end: leaf for kind in ADAPTER_KINDS for end, leaf in kind.leaves.items()}

_FLAT = (
    ("lora_unet_", UNET),
    ("lora_te1_", TEXT),
    ("lora_te2_", TEXT_2),
    ("lora_te_", TEXT),
    ("lycoris_unet_", UNET),
    ("lycoris_", None),
)
_DOTTED = (
    ("base_model.model.", None),
    ("unet.", UNET),
    ("model.diffusion_model.", UNET),
    ("diffusion_model.", UNET),
    ("text_encoder.", TEXT),
    ("text_encoder_1.", TEXT),
    ("text_encoder_2.", TEXT_2),
    ("text_encoders.", None),
    ("clip_l.transformer.", TEXT),
    ("clip_g.transformer.", TEXT_2),
)
_SGM = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)[._]\d")
_DIFFUSERS_UNET = re.compile(
    r"(down_blocks|up_blocks)[._]\d|(mid_block|time_embedding|add_embedding)[._]|conv_(in|out)$"
)
_TEXT = re.compile(r"text_model[._]|encoder[._]layers[._]|text_projection$")
_NAMED = re.compile(r"\.lora_(A|B|magnitude_vector|embedding_[AB])\.")
_BUNDLED = re.compile(r"bundle_emb\.")
_BOOKKEEPING = re.compile(
    r"(.*[._])?position_ids$|(global_|max_)?(step|epoch|iteration)s?$|(modelspec|ss|sshs)[._].*"
)


@dataclass(frozen=True)
class Address:
    """The layer that a key points to.

    components: the components that it may mean; two where it does not say which text encoder.
    path: the layer's name in the file's own spelling. flat: its dots are replaced by underscores.
    """

    components: tuple[str, ...]
    path: str
    flat: bool


@dataclass(frozen=True)
class Key:
    """One key that was understood. text: the key itself. part: which tensor of the layer it is ("up", "alpha", …).

    naming: its naming scheme, in words. familiar: its layer's name looks like one of a UNet or a CLIP text encoder.
    """

    text: str
    address: Address
    part: str
    naming: str
    familiar: bool


@dataclass(frozen=True)
class Contents:
    """A file's keys, sorted by what they are.

    keys: those of adapter layers. unknown: those that follow no known scheme. bundled: embeddings that come along.
    bookkeeping: counters and buffers that change nothing.
    """

    keys: tuple[Key, ...]
    unknown: tuple[str, ...]
    bundled: tuple[str, ...]
    bookkeeping: tuple[str, ...]

    @property
    def strangers(self) -> tuple[str, ...]:
        """Keys that look like no layer of a UNet or a CLIP text encoder, with a known prefix or without."""
        return (*self.unknown, *(key.text for key in self.keys if not key.familiar))

    @property
    def namings(self) -> tuple[str, ...]:
        """The naming schemes in use, the most frequent first. Plain "kohya" is left out beside a "kohya (…)"."""
        counts = Counter(key.naming for key in self.keys if key.naming)
        if any(name.startswith("kohya (") for name in counts):
            counts.pop("kohya", None)
        return tuple(name for name, _ in counts.most_common())


def sort_keys(texts: Iterable[str]) -> Contents:
    """Sort the keys of a file. Each goes into exactly one field of the result."""
    keys, unknown, bundled, bookkeeping = [], [], [], []
    for text in sorted(texts):
        if _BUNDLED.match(text):
            bundled.append(text)
        elif _BOOKKEEPING.fullmatch(text):
            bookkeeping.append(text)
        elif (key := read_key(text)) is not None:
            keys.append(key)
        else:
            unknown.append(text)
    return Contents(tuple(keys), tuple(unknown), tuple(bundled), tuple(bookkeeping))


def read_key(text: str) -> Key | None:
    """One key taken apart; None where it follows no known scheme."""
    return _remembered(text) if len(text) <= _LONGEST_REMEMBERED else _read_key(text)


_LONGEST_REMEMBERED = 300  # characters; real ones are shorter


@lru_cache(2**16)  # a library's files repeat the names of a few bases
def _remembered(text: str) -> Key | None:
    return _read_key(text)


def _read_key(text: str) -> Key | None:
    split = _split_leaf(text)
    if split is None:
        return None
    stem, leaf = split
    address = _address(stem)
    if address is None:
        return None
    patterns = (_SGM, _DIFFUSERS_UNET) if UNET in address.components else (_TEXT,)
    familiar = any(pattern.match(address.path) for pattern in patterns)
    return Key(text, address, leaf.part, _naming(stem, leaf, address), familiar)


def _split_leaf(text: str) -> tuple[str, Leaf] | None:
    """(what comes before the leaf, the leaf); the longest known leaf wins. None where no leaf is known."""
    if "_lora." in text:  # to_q_lora.up.weight -> to_q.lora.up.weight
        text = text.replace("_lora.", ".lora.")
    if _NAMED.search(text):  # PEFT puts the adapter's name between: lora_A.default.weight
        text = re.sub(r"\.(lora_(?:A|B|magnitude_vector))\.[^.]+\.(weight|bias)$", r".\1.\2", text)
        text = re.sub(r"\.(lora_embedding_[AB])\.[^.]+$", r".\1", text)
    pieces = text.split(".")
    for length in (3, 2, 1):
        leaf = LEAVES.get(".".join(pieces[-length:]))
        if leaf is not None and len(pieces) > length:
            return ".".join(pieces[:-length]), leaf
    return None


def _address(stem: str) -> Address | None:
    for prefix, component in _FLAT:
        if stem.startswith(prefix):
            return _placed(stem.removeprefix(prefix), component, flat=True)
    path, component = stem, None
    for _ in range(_MOST_PREFIXES):
        found = next(((prefix, owner) for prefix, owner in _DOTTED if path.startswith(prefix)), None)
        if found is None:
            return _placed(path, component, flat=False)
        prefix, owner = found
        if owner is not None and component not in (None, owner):
            return None
        path, component = path.removeprefix(prefix), owner or component
    return None


_MOST_PREFIXES = 6  # one after another; real keys have three


def _placed(path: str, component: str | None, *, flat: bool) -> Address | None:
    """The address of a path. component: None where no prefix names one; then the path's look decides."""
    if component is not None:
        return Address((component,), path, flat)
    if _SGM.match(path) or _DIFFUSERS_UNET.match(path):
        return Address((UNET,), path, flat)
    if _TEXT.match(path):
        return Address((TEXT, TEXT_2), path, flat)
    return None


def _naming(stem: str, leaf: Leaf, address: Address) -> str:
    """The naming scheme, in words. "" for the leaf alpha, which all schemes share."""
    if not leaf.style and leaf.part == "alpha":
        return ""
    blocks = (
        ""
        if address.components != (UNET,)
        else "SGM names"
        if _SGM.match(address.path)
        else "diffusers names"
    )
    if leaf.style == "flora":
        return "FLoRA"
    if address.flat:
        scheme = "LyCORIS" if stem.startswith("lycoris_") else "kohya"
        return f"{scheme} ({blocks})" if blocks else scheme
    if stem.startswith("base_model.model."):
        return "PEFT (base_model.model)"
    if "diffusion_model." in stem:
        return f"native ({blocks})"
    if leaf.style == "kohya":
        return "OneTrainer-like"
    if leaf.style == "old diffusers":
        return "diffusers attention processors" if ".processor." in stem else "old diffusers"
    if stem == address.path:
        return f"bare ({blocks})" if blocks else "bare"
    return "diffusers/PEFT"
