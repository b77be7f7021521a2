"""What a key says without a model: which component, which layer by which name, and which part of the layer.

A key is prefixes + layer name + leaf. Names may be flattened, with "_" for ".". The prefixes, by their writers:
    kohya-ss/sd-scripts, LyCORIS    lora_unet, lora_te, lora_te1, lora_te2, lycoris, lycoris_unet, oft_unet
    OneTrainer                      these, dotted too, and unet, clip_l, clip_g
    diffusers and PEFT              unet, text_encoder, text_encoder_2, base_model.model, or nothing at all
    ComfyUI                         diffusion_model, text_encoders.clip_l.transformer
    the original checkpoints        model.diffusion_model, cond_stage_model, conditioner.embedders.0
Any of them may stand before any other, if they do not contradict one another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from pipelines.adapters.kinds import ADAPTER_KINDS, NAMELESS, SHARED, AdapterKind, Leaf
from pipelines.adapters.kinds.unsupported import peft_part

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
COMPONENTS = (UNET, TEXT, TEXT_2)
COMPONENT = "lora_studio.component"
"""The metadata of a file whose keys are all of one component, without its name."""

LEAVES: Mapping[str, Leaf] = {end: leaf for kind in ADAPTER_KINDS for end, leaf in kind.leaves.items()}
_REFUSED = {leaf.part: kind for kind in ADAPTER_KINDS if kind.refusal for leaf in kind.leaves.values()}

_PREFIX = re.compile(
    r"(?:(?P<second>te_?2|text_?encoder_?2|clip_g|(?:embedders|text_encoders)[._]1|1(?=[._](?:transformer|model)[._]))"
    r"|(?P<first>te1|te_1(?![._](?:transformer|model)[._])|text_?encoder_?1|clip_[lh]|(?:embedders|text_encoders)[._]0"
    r"|0(?=[._](?:transformer|model)[._]))"
    r"|(?P<either>te|text_?encoder|cond_stage_model)"
    r"|(?P<unet>unet|diffusion_model)"
    r"|lora|lycoris|oft|base_model|model|module|_orig_mod|_fsdp_wrapped_module|transformer|text_encoders|conditioner"
    r"|pipe|pipeline|network|adapter|generator|state_dict)[._]"
)
_MOST_PREFIXES = 8  # one after another; real keys have five

_SGM = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)[._]\d")
_DIFFUSERS_UNET = re.compile(
    r"(down_blocks|up_blocks)[._]\d|(mid_block|time_embedding|add_embedding)[._]|conv_(in|out|norm_out)$"
)
_TEXT = re.compile(r"text_model[._]|encoder[._]layers[._]|(transformer[._])?resblocks[._]\d|text_projection$")
_OTHER_UNETS = re.compile(r"[._](motion_modules|temporal_\w+|spatial_res_block)[._]")
_OF_TEXT = re.compile(r"(^|[._])(te\d?|text_?encoders?\d?|text_model|clip_\w|t5\w*)[._]")
_BUNDLED = "bundle_emb."
_PEFT = "base_model.model."
_SET_BIAS = ".base_layer.bias"
_DEFAULT = ".default"
_BOOKKEEPING = re.compile(
    r"(.*[._])?(position_ids|logit_scale|inv_freq|num_batches_tracked|exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer"
    r"|num_updates)"
    r"|(optimizer|optimizer_states?|lr_scheduler|scheduler|grad_scaler|scaler|param_groups|state(?!_dict)|rng_state|random_state"
    r"|modelspec|ss|sshs)[._].*"
    r"|(global_|max_|train_|val_|avg_|running_)*(step|epoch|iteration|loss|lr|learning_rate)(es|s)?"
    r"|betas|(log_)?sigmas|alphas_cumprod(_prev)?|timesteps|v_pred|ztsnr|rng_state|random_state|grad_norm",
    re.DOTALL,
)


@dataclass(frozen=True)
class Address:
    """The layer that a key points to.

    components: the components that it may mean; two where it does not say which text encoder.
    path: the layer's name in the file's own spelling; its dots may be replaced by underscores.
    """

    components: tuple[str, ...]
    path: str


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

    keys: those of adapter layers. unknown: those that follow no known scheme. bookkeeping: counters, the state of an
    optimizer, and buffers that change nothing. bundled: embeddings that come along: word -> name of a tensor -> key.
    halves: those among `unknown` that are some unknown part of a layer whose name is known.
    shared: what all layers share: part -> key.
    """

    keys: tuple[Key, ...]
    unknown: tuple[str, ...]
    bookkeeping: tuple[str, ...]
    bundled: Mapping[str, Mapping[str, str]]
    halves: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def strangers(self) -> tuple[str, ...]:
        """Keys that look like no layer of a UNet or a CLIP text encoder, with a known prefix or without."""
        return (*self.unknown, *(key.text for key in self.keys if not key.familiar))

    @cached_property
    def foreign(self) -> bool:
        """Whether so many keys are strangers that the file is for another model, or is no adapter.

        Those that speak of no text encoder are compared with the keys of the UNet alone: a file whose text encoders are
        whole may have another model's UNet.
        """
        familiar = [key for key in self.keys if key.familiar]
        unet = sum(UNET in key.address.components for key in familiar)
        elsewhere = sum(_OF_TEXT.search(text, 0, _LONGEST_REMEMBERED) is None for text in self.strangers)
        whole = is_handful(len(self.strangers), len(familiar)) and is_handful(elsewhere, unet)
        return bool(self.halves) or not whole

    @cached_property
    def unsupported(self) -> tuple[str, AdapterKind] | None:
        """(a key, the type that it shows) where the file is of a type that is not applied; else None."""
        found: dict[str, str] = {}
        for key in self.keys:
            if key.familiar or self.foreign:
                found.setdefault(key.part, key.text)
        for text in self.unknown if self.foreign else ():  # PEFT keeps what layers share beside them
            if (split := split_leaf(text)) is not None:
                found.setdefault(split[1].part, text)
        kinds = {
            _REFUSED[part].name: (text, _REFUSED[part]) for part, text in found.items() if part in _REFUSED
        }
        return next((kinds[kind.name] for kind in ADAPTER_KINDS if kind.name in kinds), None)

    @property
    def namings(self) -> tuple[str, ...]:
        """The naming schemes in use, the most frequent first. Plain "kohya" is left out beside a "kohya (…)"."""
        counts = Counter(key.naming for key in self.keys if key.naming and key.familiar)
        counts = counts or Counter(key.naming for key in self.keys if key.naming)
        if any(name.startswith("kohya (") for name in counts):
            counts.pop("kohya", None)
        return tuple(name for name, _ in counts.most_common())


def is_handful(some: int, rest: int) -> bool:
    """Whether `some` keys are so few beside `rest` that the file is whole without them."""
    return some <= max(rest // 50, min(rest // 5, 20))


def quoted(key: str) -> str:
    """A key as messages show it. No real one is shortened."""
    return repr(key) if len(key) <= _LONGEST_REMEMBERED else repr(f"{key[:_LONGEST_REMEMBERED]}…")


def some(keys: Iterable[str], most: int = 3) -> str:
    """The number of keys and the first few of them, as a text."""
    keys = list(keys)
    return f"{len(keys)} ({', '.join(map(quoted, keys[:most]))}{', …' if len(keys) > most else ''})"


def sort_keys(texts: Iterable[str]) -> Contents:
    """Sort the keys of a file. Each goes into exactly one field of the result (`halves` are among `unknown`)."""
    texts = sorted(texts)
    beside = {
        text.removesuffix(f".{end}"): (end, part)
        for text in texts
        for end, part in NAMELESS.items()
        if text.endswith(f".{end}")
    }
    biases = any(text.startswith(_PEFT) and text.endswith(_SET_BIAS) for text in texts)
    shared: dict[str, str] = {}
    keys: list[Key] = []
    unknown, bookkeeping, halves = [], [], []
    bundled: dict[str, dict[str, str]] = {}
    for text in texts:
        if text.startswith(_BUNDLED):
            word, name = _word_and_name(text.removeprefix(_BUNDLED))
            bundled.setdefault(word, {})[name] = text
        elif _is_bookkeeping(text):
            bookkeeping.append(text)
        elif (part := text.removeprefix("base_model.").removesuffix(_DEFAULT)) in SHARED:
            shared[part] = text
        elif (key := read_key(text)) is not None:
            keys.append(key)
        elif (stem := text.removesuffix(".weight")) in beside and (
            key := read_key(f"{stem}.{beside[stem][0]}")
        ):
            keys.append(replace(key, text=text, part=beside[stem][1]))
        elif biases and text.startswith(_PEFT) and (key := _new_bias(text)):
            keys.append(key)
        else:
            unknown.append(text)
            if _is_half(text):
                halves.append(text)
    return Contents(tuple(keys), tuple(unknown), tuple(bookkeeping), bundled, tuple(halves), shared)


def _new_bias(text: str) -> Key | None:
    """PEFT's `bias="all"` saves the biases of layers without an adapter too, by their own names."""
    stem = text.removesuffix(".bias")
    key = read_key(stem + _SET_BIAS) if stem != text else None
    return None if key is None else replace(key, text=text)


def read_key(text: str) -> Key | None:
    """One key taken apart; None where it follows no known scheme."""
    return _remembered(text) if len(text) <= _LONGEST_REMEMBERED else _read_key(text)


_LONGEST_REMEMBERED = 300  # characters; real ones are shorter


@lru_cache(2**16)  # a library's files repeat the names of a few bases
def _remembered(text: str) -> Key | None:
    return _read_key(text)


def _read_key(text: str) -> Key | None:
    split = split_leaf(text)
    if split is None:
        return None
    stem, leaf = split
    address, familiar = _address(stem)
    if address is None:
        return None
    return Key(text, address, leaf.part, _naming(stem, leaf, address), familiar)


def split_leaf(text: str) -> tuple[str, Leaf] | None:
    """(what comes before the leaf, the leaf); the longest known leaf wins. None where no leaf is known."""
    if "_lora." in text:  # to_q_lora.up.weight -> to_q.lora.up.weight
        text = text.replace("_lora.", ".lora.")
    pieces = text.rsplit(".", 5)
    if len(pieces) > 3 and (pieces[-1] in ("weight", "bias") or pieces[-2] == "default"):
        named = f"{pieces[-3]}.{pieces[-1]}"  # PEFT puts the adapter's name between: lora_A.default.weight
        if named in LEAVES and f"{pieces[-2]}.{pieces[-1]}" not in LEAVES:
            return ".".join(pieces[:-3]), LEAVES[named]
    for length in (3, 2, 1):
        leaf = LEAVES.get(".".join(pieces[-length:]))
        if leaf is not None and len(pieces) > length:
            return ".".join(pieces[:-length]), leaf
    leaf = LEAVES.get(pieces[-2]) if len(pieces) > 2 else None
    if leaf is not None and (leaf.part in _REFUSED or text.endswith(_DEFAULT)):
        return ".".join(pieces[:-2]), leaf  # the adapter's name again: hada_w1_a.default
    return peft_part(text)


def _address(stem: str) -> tuple[Address | None, bool]:
    """(the layer that a key means, whether its name is familiar); (None, False) where nothing tells the component."""
    path, owner, sure = stem, "", False
    named = wrapped = False  # whether a text encoder was named just before, and then called `model`
    for _ in range(_MOST_PREFIXES):
        if _TEXT.match(path):
            if wrapped and path == "text_projection":  # OpenCLIP's, whose rows are the columns of the others'
                return None, True
            if owner in ("", UNET):  # some writers put everything under `lora_unet_`
                return Address((TEXT, TEXT_2), path), True
            return Address((owner,), path), True
        if _SGM.match(path) or _DIFFUSERS_UNET.match(path):
            if owner in (TEXT, TEXT_2):
                return None, False
            return Address((UNET,), path), _OTHER_UNETS.search(path) is None
        found = _PREFIX.match(path)
        if found is None:
            break
        path = path[found.end() :]
        said = _OWNERS.get(found.lastgroup or "", "")
        wrapped = found[0][:-1] == "model" and named
        named = said in (TEXT, TEXT_2)
        if found.lastgroup in ("first", "second"):
            if sure and said != owner:
                return None, False
            owner, sure = said, True
        elif said and not sure:
            owner = said
    return (Address((owner,), path), False) if owner else (None, False)


_OWNERS = {"first": TEXT, "second": TEXT_2, "either": TEXT, "unet": UNET}


def _word_and_name(text: str) -> tuple[str, str]:
    """(the word, the tensor's name) of a bundled embedding, "fox.clip_l". A word may hold dots."""
    word, marker, rest = text.partition(".string_to_param.")
    if marker:
        return word, f"string_to_param.{rest}"
    word, _, name = text.rpartition(".")
    return (word, name) if word else (name, "")


def _is_bookkeeping(text: str) -> bool:
    return len(text) <= _LONGEST_REMEMBERED and _BOOKKEEPING.fullmatch(text) is not None


def _is_half(text: str) -> bool:
    """Whether the key is some part of a layer whose name is known, though nobody knows which part."""
    pieces = text.rsplit(".", 3)
    return len(text) <= _LONGEST_REMEMBERED and any(
        _address(".".join(pieces[:-length]))[1] for length in range(1, len(pieces))
    )


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
    if leaf.naming:
        return leaf.naming
    if "." not in stem and stem != address.path:
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
