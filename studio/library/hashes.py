"""Files are recognised by their hashes, whatever they are called now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipelines.adapters import sha256
from pipelines.adapters.container import read_header
from pipelines.errors import AdapterFileError, StudioError
from pipelines.home.answers import answered
from pipelines.home.files import open_regular, sha256_of
from pipelines.home.plain import reading

SHORTEST = 8
"""Fewest digits of a hash by which a file is recognised."""
OLD_HASH = (0x100000, 0x10000)
"""Where A1111's first hash begins, and how many bytes it is of."""
STATED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""The hashes that headers state."""


def short_hash(path: Path) -> str:
    """The twelve digits by which A1111 and Civitai know an adapter: `sshs_model_hash` of its metadata, else
    the sha256 of all that follows its header. Raises AdapterError and NoAnswer."""
    return _short_hash(path, *_stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file: a remembered hash holds until they change."""
    try:
        stat = answered(path, path.stat)
    except OSError:  # reading it, which comes next, says why
        return (0, 0)
    return (stat.st_size, stat.st_mtime_ns)


@cache
def _short_hash(path: Path, size: int, changed: int) -> str:
    stated = read_header(path).metadata.get("sshs_model_hash", "")
    return (stated or _body_hash(path))[:12].lower()


def _body_hash(path: Path) -> str:
    with reading(f"{path.name}:", AdapterFileError):
        with open_regular(path) as file:
            length = int.from_bytes(answered(path, lambda: file.read(8)), "little")
        return sha256_of(path, 8 + length)


@cache
def _file_hashes(path: Path, size: int, changed: int) -> tuple[str, str, str]:
    """The sha256 of the file, of all that follows its header, and of 64 kB behind its first MB (A1111's first hash)."""
    with reading(f"{path.name}:", AdapterFileError):
        with open_regular(path) as file:
            length = int.from_bytes(answered(path, lambda: file.read(8)), "little")
            file.seek(OLD_HASH[0])
            old = hashlib.sha256(answered(path, lambda: file.read(OLD_HASH[1]))).hexdigest()
        return sha256(path), sha256_of(path, 8 + length), old


def plain_hash(said: str) -> str:
    """The digits of a hash. ModelSpec and SwarmUI write `0x` before them."""
    return said.strip().lower().removeprefix("0x")


def is_adapter(path: Path, digest: str, size: int | None = None) -> bool:
    """Whether a hash means this file. It may be, whole or its first eight digits and more: the file's sha256 (Civitai's
    SHA256 and AutoV2), the sha256 of all that follows its header (kohya's `sshs_model_hash`, A1111's short hash,
    Civitai's AutoV3, SwarmUI's), or A1111's first hash of eight digits (AutoV1).

    size: in bytes, where it is known; then only a file of that size is read. False for a file that cannot be read, or
    whose folder does not answer.
    """
    digest = plain_hash(digest)
    if len(digest) < SHORTEST:
        return False
    try:
        if size is not None and answered(path, path.stat).st_size != size:
            return False
        if states(path, digest):
            return True
        whole, body, old = _file_hashes(path, *_stamp(path))
        return whole.startswith(digest) or body.startswith(digest) or (len(digest) == 8 and old[:8] == digest)
    except (OSError, StudioError):
        return False


def states(path: Path, digest: str) -> bool:
    """Whether the file's header states this hash. Nothing else is read. Raises AdapterError and NoAnswer."""
    stated = read_header(path).metadata
    return any(plain_hash(str(stated.get(name, ""))).startswith(digest) for name in STATED)


def find_adapter(paths: Iterable[Path], digest: str, size: int | None = None) -> Path | None:
    """The first file that the hash means; None where it means none. See `is_adapter`."""
    return next((path for path in paths if is_adapter(path, digest, size)), None)
