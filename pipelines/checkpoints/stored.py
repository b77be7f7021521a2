"""How one weight is stored in a file, and how it is read: its data type, its scale, its turns.

A stored number times its scale is the weight. Where a scale stands, writers differ (`SCALES`). Numbers that mean
nothing without a scale, or whose packing is not known here, are refused by name. Nothing is read at a guessed scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from composers.shown import shown
from pipelines.checkpoints.weights import WeightsHeader
from pipelines.errors import ModelError
from pipelines.home.plain import read_json, reading, short

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
"""Data types whose numbers are weights as they are."""
SCALE_FLOATS = ("F64", "F32", "F16", "BF16")

SCALES: tuple[tuple[str, str, float], ...] = (
    (".scale_weight", ".weight", 1),  # ComfyUI's scaled fp8
    (".weight_scale", ".weight", 1),  # ComfyUI's comfy_quant, ModelOpt, compressed-tensors
    (".weight.scale", ".weight", 1),
    (".weight_scale_inv", ".weight", 1),  # DeepSeek's: a factor all the same
    (".scale", ".weight", 1),
    (".SCB", ".weight", 1 / 127),  # bitsandbytes' int8: the largest number of a row
    (".weight.SCB", ".weight", 1 / 127),
    ("_scale", "", 1),
)
"""(ending of a scale's name, ending of its weight's name, what the scale itself is multiplied by)."""

BESIDE = (
    ".scale_input",
    ".input_scale",
    ".output_scale",
    ".comfy_quant",
    ".weight_format",
    ".weight.weight_format",
)
"""Endings of what stands beside a scaled weight, and is for calculating in 8 bits only; or says how it is packed."""
MARK = "scaled_fp8"
"""ComfyUI's mark of a file with scaled weights. It holds no number."""

PACKED: Mapping[str, str] = {
    "is quantized to 4 bits (bitsandbytes NF4 or FP4)": (
        r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.|bitsandbytes__(nf4|fp4)"
    ),
    "is quantized to 4 bits (NVFP4)": r"\.weight_scale_2$|\.weight_packed$",
    "is quantized to 4 bits (GPTQ, AWQ or SVDQuant)": r"\.(qweight|qzeros|wscales|wzeros|g_idx)$",
    "is quantized by quanto": r"\._(data|scale|packed)$",
    "is quantized with offsets or tables": (
        r"(_|\.)zero_?points?$|\.weight_(codebook|s_rel|s_channel)$|\.pre_quant_scale$"
    ),
}
"""What to say of a packed file -> what some key of it matches."""
_PACKED = re.compile("|".join(f"(?:{pattern})" for pattern in PACKED.values()))
UNPACK = "which is not supported; use its fp16 or fp8 form"

FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""Formats of ComfyUI's `comfy_quant` whose weight is its number times its scale."""
HARMLESS = ("format", "full_precision_matrix_mult", "per_channel", "params")
LONGEST_ENDING = 60
"""Characters at the end of a key that tell how its tensor is packed."""
LONGEST_KEY = 120
"""Characters of a key that is quoted in full."""
LONGEST_MARK = 4096
"""Bytes of a `comfy_quant` entry."""

Turn = Literal["", "transposed", "linear", "first", "second", "third"]
"""What is done to a stored tensor: nothing; its axes swapped; a 1x1 convolution made a linear layer; or the first,
second or third of three parts, one below the other, taken."""
_THIRDS = {"first": 0, "second": 1, "third": 2}


@dataclass(frozen=True)
class Weight:
    """Where a weight is. key: of the file. shape: when it is read."""

    key: str
    shape: tuple[int, ...]
    turn: Turn = ""


@dataclass(frozen=True)
class Storage:
    """How a file's tensors are stored.

    scales: key of a weight -> (key of its scale, a factor of it). beside: keys that were looked at and hold no weight.
    promised: keys of the weights that a note of their own says to have a scale.
    """

    file: str
    header: WeightsHeader = field(repr=False)
    scales: Mapping[str, tuple[str, float]]
    beside: frozenset[str]
    promised: frozenset[str] = frozenset()

    @property
    def unscaled(self) -> list[str]:
        """The weights in 8 bits without a scale where a mark says that such have one."""
        without = self.header.shapes.keys() - self.scales.keys() - self.beside
        marked = tuple(key.removesuffix(MARK) for key in self.beside if _is_mark(key))
        return [
            key
            for key, dtype in self.header.dtypes.items()
            if dtype.startswith("F8_") and key.startswith(marked) and key in without
        ]

    def check(self, keys: Iterable[str]) -> None:
        """Raises ModelError where the numbers of one of the weights cannot be read. No tensor is looked at."""
        odd: dict[str, list[str]] = {}
        for key in keys:
            dtype = self.header.dtypes[key]
            if key in self.scales:
                self._check_scale(key)
            elif key in self.promised and dtype.startswith(("F8_", "I8")):
                raise ModelError(
                    f"{self.file} is quantized: {listed([key])} is said to have a scale (comfy_quant or "
                    "_quantization_metadata), but none is in the file; use another copy"
                )
            if dtype not in FLOATS and not (dtype == "I8" and key in self.scales):
                odd.setdefault(dtype, []).append(key)
        for dtype, found in odd.items():
            what = {"I8": "int8 without scales", "U8": "packed bytes (uint8)"}.get(dtype, shown(dtype))
            raise ModelError(
                f"{self.file} is quantized: {len(found)} of its weights, such as {listed(found[:1])}, are stored as "
                f"{what}, {UNPACK}"
            )

    def _check_scale(self, key: str) -> None:
        scale = self.scales[key][0]
        shape, of = self.header.shapes[scale], self.header.shapes[key]
        if self.header.dtypes[scale] not in SCALE_FLOATS:
            raise ModelError(
                f"{self.file} is quantized: the scale {listed([scale])} is stored as "
                f"{self.header.dtypes[scale]} (as in MXFP8 and NVFP4), {UNPACK}"
            )
        if _spread(shape, of) is None:
            raise ModelError(
                f"{self.file} is quantized: the scale {listed([scale])} has the shape {list(shape)}, its weight "
                f"{list(of)}, {UNPACK}"
            )


def storage_of(file: str, header: WeightsHeader) -> Storage:
    """Find the scales. file: the name to show. Raises ModelError for a packing that is not known here."""
    keys = header.shapes
    for key in keys:
        ending = key[-LONGEST_ENDING:]
        if _PACKED.search(ending):
            what = next(what for what, pattern in PACKED.items() if re.search(pattern, ending))
            raise ModelError(f"{file} {what}: {listed([key])}, {UNPACK}")
    scales: dict[str, tuple[str, float]] = {}
    beside = set()
    for key in keys:
        if _is_mark(key) or key.endswith(BESIDE):
            beside.add(key)
            continue
        for ending, of, factor in SCALES:
            weight = key.removesuffix(ending) + of
            if key.endswith(ending) and weight in keys:
                if weight in scales:
                    raise ModelError(
                        f"{file}: {listed([weight])} has two scales, {listed([scales[weight][0], key])}; use "
                        "another copy"
                    )
                scales[weight] = (key, factor)
                beside.add(key)
                break
    marked = {key.removesuffix(".comfy_quant") for key in beside if key.endswith(".comfy_quant")}
    promised = frozenset(f"{layer}.weight" for layer in (*marked, *_layers_of_metadata(file, header)))
    return Storage(file, header, scales, frozenset(beside), promised)


def _is_mark(key: str) -> bool:
    return key.rpartition(".")[2] == MARK


class Reader:
    """Reads weights of one file, each in the data type that is wanted."""

    def __init__(self, storage: Storage, tensors: Any) -> None:
        self._storage, self._tensors = storage, tensors
        self._last: tuple[str, Tensor] | None = None

    def __call__(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        """The weight. Raises ModelError for a scale that is 0, and for numbers that are not finite in this dtype."""
        stored = self._stored(weight.key)
        if weight.turn == "transposed":
            stored = stored.T
        elif weight.turn == "linear":
            stored = stored.reshape(weight.shape)
        elif weight.turn:
            size = stored.shape[0] // 3
            stored = stored[_THIRDS[weight.turn] * size :][:size]
        made = stored.to(dtype, copy=True).contiguous()
        refuse_infinite(self._storage.file, weight.key, made)
        return made

    def _stored(self, key: str) -> Tensor:
        """The tensor as it is stored, times its scale if it has one (float32, or float64 where either is)."""
        if (
            self._last is not None and self._last[0] == key
        ):  # the three parts of one tensor follow one another
            return self._last[1]
        tensor: Tensor = self._tensors.get_tensor(key)
        if key in self._storage.scales:
            name, factor = self._storage.scales[key]
            scale: Tensor = self._tensors.get_tensor(name)
            wide = torch.float64 if torch.float64 in (tensor.dtype, scale.dtype) else torch.float32
            scale = scale.to(wide) * factor if factor != 1 else scale.to(wide)
            if not bool(scale.isfinite().all()):
                raise ModelError(
                    f"{self._storage.file}: the scale {listed([name])} is not finite; use another copy"
                )
            if not bool(scale.any()):
                raise ModelError(f"{self._storage.file}: the scale {listed([name])} is 0; use another copy")
            spread = _spread(tuple(scale.shape), tuple(tensor.shape))
            assert spread is not None
            tensor = tensor.to(wide) * spread(scale)
        self._last = (key, tensor)
        return tensor


def refuse_infinite(file: str, key: str, weight: Tensor) -> None:
    """Raises ModelError where one of the numbers is NaN or infinite. file: the name to show."""
    if weight.numel() and not all(map(math.isfinite, map(float, weight.aminmax()))):
        dtype = str(weight.dtype).removeprefix("torch.")
        larger = (
            "" if weight.dtype == torch.float32 else ", or load it with dtype float32 if they are too large"
        )
        raise ModelError(
            f"{file}: the weight {listed([key])} holds numbers that are NaN or infinite in {dtype}, which would ruin "
            f"every picture; use another copy{larger}"
        )


@contextmanager
def opened(path: Path, storage: Storage) -> Iterator[Reader]:
    """Within: the file's weights can be read. Raises ModelError for a layer that is stored in an unknown way."""
    from safetensors import safe_open

    with reading(str(path), ModelError, "download it again"), safe_open(str(path), framework="pt") as tensors:
        for key in storage.beside:
            if key.endswith(".comfy_quant"):
                _check_mark(storage, key, tensors)
            elif key.endswith("weight_format") and bool(tensors.get_tensor(key).any()):
                raise ModelError(
                    f"{storage.file} is quantized: {listed([key])} says another order of rows, {UNPACK}"
                )
        yield Reader(storage, tensors)


def _spread(scale: tuple[int, ...], of: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
    """How a scale is brought to a weight's shape: one number, one a row, or one a block. None where it cannot be."""
    if all(length == 1 for length in scale):
        return lambda tensor: tensor.reshape(())
    if of and scale[0] == of[0] and all(length == 1 for length in scale[1:]):
        return lambda tensor: tensor.reshape(-1, *(1 for _ in of[1:]))
    if len(scale) != len(of) or any(not part or whole % part for part, whole in zip(scale, of, strict=True)):
        return None

    def repeated(tensor: Tensor) -> Tensor:
        for axis, (part, whole) in enumerate(zip(scale, of, strict=True)):
            tensor = tensor.repeat_interleave(whole // part, axis)
        return tensor

    return repeated


def _check_mark(storage: Storage, key: str, tensors: Any) -> None:
    """Raises ModelError for a `comfy_quant` entry, JSON in bytes, that says more than is known here."""
    shape, dtype = storage.header.shapes[key], storage.header.dtypes[key]
    if dtype != "U8" or len(shape) != 1 or shape[0] > LONGEST_MARK:
        raise ModelError(f"{storage.file} is quantized: {listed([key])} is no text, {UNPACK}")
    text = bytes(tensors.get_tensor(key).tolist()).decode("utf-8", "replace").strip("\0 ")
    _check_format(storage.file, key, read_json(text, f"{storage.file}: {short(key)}", error=ModelError))


def _layers_of_metadata(file: str, header: WeightsHeader) -> tuple[str, ...]:
    """The layers whose formats ComfyUI has written into the header. Raises ModelError as `_check_mark` does."""
    text = header.metadata.get("_quantization_metadata")
    if text is None:
        return ()
    said = read_json(text, f"{file}: its _quantization_metadata", error=ModelError)
    layers = said.get("layers") if isinstance(said, dict) else None
    if not isinstance(layers, dict):
        return ()
    for name, layer in layers.items():
        _check_format(file, str(name), layer)
    return tuple(map(str, layers))


def _check_format(file: str, key: str, said: object) -> None:
    known = isinstance(said, dict) and said.get("format") in FORMATS
    odd = [name for name in said if name not in HARMLESS and said[name]] if isinstance(said, dict) else []
    if not known or odd:
        what = said.get("format") if isinstance(said, dict) and not known else odd or said
        raise ModelError(f"{file} is quantized: {listed([key])} says {shown(what)}, {UNPACK}")


def listed(keys: Iterable[str], most: int = 3) -> str:
    """A few keys, to be named in a message."""
    keys = list(keys)
    some = (key if len(key) <= LONGEST_KEY and key.isprintable() else short(key) for key in keys[:most])
    return ", ".join(some) + (", …" if len(keys) > most else "")
