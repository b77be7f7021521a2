"""The safetensors container, read with distrust: first a short header (`pipelines.home.headers`), and tensors only when
somebody wants them. In the data, the tensors follow one another without gaps or overlaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import safetensors.torch
from torch import Tensor

from composers.shown import shown
from pipelines.errors import AdapterFileError
from pipelines.home import files
from pipelines.home.answers import answered
from pipelines.home.headers import LONGEST_HEADER, MOST_AXES, check_header, parse_header, split_header
from pipelines.home.plain import reading

SIZE_LIMIT = 16 * 2**30
"""The largest file that is loaded, in bytes. A file is read into memory as a whole."""

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "C64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

WEIGHT_DTYPES: Mapping[str, str] = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8 e4m3", "F8_E5M2": "fp8 e5m2",
    "F8_E4M3FNUZ": "fp8 e4m3fnuz", "F8_E5M2FNUZ": "fp8 e5m2fnuz",
}  # fmt: skip
"""The data types that weights may have -> the names that people use for them."""


class TensorEntry(NamedTuple):  # thousands to a file, and a frozen dataclass takes four times as long to make
    """One tensor as the header describes it. start, end: in bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A parsed and checked header. tensors: name -> entry. size: of the file, in bytes."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(repr=False)
    size: int


def adapter_path(path: Path) -> Path:
    """The weights file that `path` means: the file itself, or the one inside a folder that PEFT or diffusers wrote.

    Raises AdapterFileError where there is none, and NoAnswer.
    """
    if files.is_folder(path):
        for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors"):
            if files.is_regular(path / name):
                return path / name
        raise AdapterFileError(
            f"{path}: this folder holds neither adapter_model.safetensors nor "
            "pytorch_lora_weights.safetensors; give the .safetensors file itself"
        )
    if not files.exists(path):
        raise AdapterFileError(f"{path}: there is no such file; check the name and the folder")
    return path


@dataclass(frozen=True)
class UnparsedHeader:
    """A header that was read, but not parsed yet.

    name, size: of the file, size in bytes. text: the header's JSON. tensors: the part of it that describes the tensors,
    which is the same to the byte in files of one make. metadata: the rest. Both are None where the two parts cannot be
    separated without parsing all of it.
    """

    name: str
    size: int
    text: bytes = field(repr=False)
    tensors: bytes | None = field(repr=False)
    metadata: Mapping[str, str] | None = field(repr=False)

    @property
    def available(self) -> int:
        """Bytes of data in the file."""
        return self.size - 8 - len(self.text)

    def parse(self) -> Header:
        """The header with every entry checked. Raises AdapterFileError."""
        with reading(f"{self.name}: the header's JSON", AdapterFileError, "download it again"):
            if self.tensors is None or self.metadata is None:
                fields, metadata = parse_header(self.text)
            else:
                fields, metadata = parse_header(self.tensors)[0], self.metadata
        tensors = {key: _entry(self.name, key, value) for key, value in fields.items()}
        _check_layout(self.name, tensors, self.available)
        return Header(tensors, metadata, self.size)


def open_header(path: Path) -> UnparsedHeader:
    """Read the header's text: a few kilobytes, however large the file. Raises AdapterFileError and NoAnswer."""

    def read() -> tuple[int, bytes]:
        with files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return size, _text(path.name, size, file)

    with reading(f"{path.name}:", AdapterFileError):
        size, text = answered(path, read)
    with reading(f"{path.name}: the header's JSON", AdapterFileError, "download it again"):
        check_header(text)
        tensors, metadata = split_header(text) or (None, None)
    return UnparsedHeader(path.name, size, text, tensors, metadata)


def read_header(path: Path) -> Header:
    """The header alone, with every entry checked. Raises AdapterFileError and NoAnswer."""
    return open_header(path).parse()


def read_tensors(path: Path, header: Header) -> tuple[dict[str, Tensor], str]:
    """(name -> tensor, the file's sha256). The file is read once, so that both describe the same bytes.

    Raises AdapterFileError, also where the shapes are not those of `header`, and NoAnswer.
    """
    if header.size > SIZE_LIMIT:
        raise AdapterFileError(
            f"{path.name}: {header.size / 2**30:.0f} GB is no adapter's size (at most {SIZE_LIMIT / 2**30:.0f})"
        )
    with reading(f"{path.name}:", AdapterFileError):
        data = files.read_regular(path, SIZE_LIMIT)
    with reading(f"{path.name}: the data", AdapterFileError, "download it again"):
        tensors = safetensors.torch.load(data)
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != {
        name: entry.shape for name, entry in header.tensors.items()
    }:
        raise AdapterFileError(f"{path.name}: changed while it was being read; load it again")
    return tensors, hashlib.sha256(data).hexdigest()


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file. Equal content gives equal bytes, so that hashes can be compared.

    The header is put together here, because the library writes metadata in a different order each time.
    """
    data = safetensors.torch.save(dict(tensors))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % 8)  # the data must begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def sha256(path: Path) -> str:
    """The sha256 of a whole file, 64 hex digits. Its first twelve are the short hash that other tools show.

    Raises AdapterFileError and NoAnswer.
    """
    with reading(f"{path.name}:", AdapterFileError):
        return files.sha256_of(path)


def _text(name: str, size: int, file: BinaryIO) -> bytes:
    """The header's JSON. Raises AdapterFileError for another kind of file, and for a length that cannot be right."""
    start = file.read(256)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:9] != b"{" or length < 2:
        raise AdapterFileError(f"{name}: {_what_it_is(start)}")
    if Path(name).suffix.lower() != ".safetensors":
        raise AdapterFileError(
            f"{name}: the content is safetensors but the file name says otherwise; rename it to .safetensors"
        )
    if length > LONGEST_HEADER:
        raise AdapterFileError(
            f"{name}: the header claims {length:,} bytes, more than the {LONGEST_HEADER:,} allowed; "
            "the file is damaged or hostile"
        )
    if length > size - 8:
        raise AdapterFileError(
            f"{name}: truncated within the header ({size:,} bytes, the header alone has {length + 8:,}); "
            "download it again"
        )
    file.seek(8)
    return file.read(length)


def _entry(name: str, key: str, value: object) -> TensorEntry:
    """One header entry, checked by itself. Raises AdapterFileError."""
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
            len(shape) <= MOST_AXES
            and all(type(length) is int and 0 <= length < 2**40 for length in shape)
            and 0 <= start <= end < 2**63
        ):
            entry = TensorEntry(dtype, tuple(shape), start, end)
        case _:
            raise AdapterFileError(
                f"{name}: the header entry of {key!r} is malformed; download the file again"
            )
    if dtype not in ITEM_BYTES:
        raise AdapterFileError(f"{name}: {key!r} has the data type {shown(dtype)}, which is not supported")
    if end - start != (needed := math.prod(shape) * ITEM_BYTES[dtype]):
        raise AdapterFileError(
            f"{name}: {key!r} claims {end - start:,} bytes, but {dtype} {list(shape)} takes "
            f"{needed:,}; the file is damaged"
        )
    return entry


def _check_layout(name: str, tensors: Mapping[str, TensorEntry], available: int) -> None:
    """Raises AdapterFileError unless the tensors follow one another without gaps and end where the file ends."""
    position = 0
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            raise AdapterFileError(
                f"{name}: {key!r} overlaps its neighbour or leaves a gap; the file is damaged"
            )
        position = entry.end
    if position > available:
        raise AdapterFileError(
            f"{name}: truncated ({available:,} of {position:,} bytes of data are there); download it again"
        )
    if position < available:
        raise AdapterFileError(
            f"{name}: {available - position:,} bytes follow the last tensor; the file is damaged"
        )


def _what_it_is(start: bytes) -> str:
    """What a file is that is not safetensors, and what to do about it; told from its first bytes."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "empty (zero bytes); the download failed, fetch it again"
    if start.startswith(b"PK") or start[:1] == b"\x80":
        return (
            "a pickle, which can run any code when it is opened, and is therefore refused; "
            "convert it to .safetensors, or fetch the .safetensors edition"
        )
    if text.startswith(b"<"):
        return "a web page, not a LoRA; the download needs a login or the link is wrong, fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; run `git lfs pull`"
    if text.startswith((b"{", b"[")):
        return "JSON text, not a LoRA; the server answered with a message, fetch it again"
    if len(start) < 16:
        return f"truncated ({len(start)} bytes); download it again"
    return "not a safetensors file, whatever its name says; only .safetensors adapters are read"
