"""Files are recognised by their hashes, whatever they are called now."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipelines.adapters import sha256
from pipelines.adapters.container import read_header
from pipelines.errors import AdapterFileError, StudioError
from pipelines.home.answers import answered
from pipelines.home.files import open_regular, sha256_of
from pipelines.home.plain import reading


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
def _file_hash(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def is_adapter(path: Path, digest: str, size: int | None = None) -> bool:
    """Whether a hash means this file: its sha256 or the start of that, or A1111's short hash.

    size: in bytes, where it is known; then only a file of that size is read. False for a file that cannot be read, or
    whose folder does not answer.
    """
    digest = digest.lower()
    try:
        if size is not None and answered(path, path.stat).st_size != size:
            return False
        if len(digest) == 12 and short_hash(path) == digest:
            return True
        return _file_hash(path, *_stamp(path)).startswith(digest)
    except (OSError, StudioError):
        return False


def find_adapter(paths: Iterable[Path], digest: str, size: int | None = None) -> Path | None:
    """The first file that the hash means; None where it means none. See `is_adapter`."""
    return next((path for path in paths if is_adapter(path, digest, size)), None)
