"""Hashes that tell one model's weights from another's.

Every byte of a file is read once. Hashes of large files are remembered in the user's cache for as long as the file's
size and date stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipelines.home.answers import answered
from pipelines.home.files import sha256_of, write_atomically
from pipelines.home.plain import read_kept

REMEMBERED_BYTES = 64 * 2**20
"""The hash of a file of at least so many bytes is kept beyond the process. Smaller files are read again in no time."""


def short_hash(files: Iterable[Path], folder: Path | None = None) -> str:
    """The first 10 hexadecimal digits of one file's SHA-256; for several, of the SHA-256 of their hashes in order.

    Other programs write ten digits of a whole file's hash into their pictures, too.
    folder: where hashes of large files are remembered (made if need be); None is nowhere.
    Raises OSError and NoAnswer.
    """
    hashes = [_remembered(file, folder) for file in files]
    if len(hashes) == 1:
        return hashes[0][:10]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:10]


def _remembered(file: Path, folder: Path | None) -> str:
    file, stat = answered(file, lambda: (Path(os.path.realpath(file)), file.stat()))
    stamp = [str(file), stat.st_size, stat.st_mtime_ns]
    if folder is None or stat.st_size < REMEMBERED_BYTES:
        return _sha256(file, stat.st_size, stat.st_mtime_ns)
    note = folder / f"{hashlib.sha256(str(file).encode()).hexdigest()[:16]}.json"
    said = read_kept(note, lambda said: (said["of"], str(said["sha256"])))
    if said is not None and said[0] == stamp:
        return said[1]
    found = _sha256(file, stat.st_size, stat.st_mtime_ns)
    with suppress(OSError):  # where the home cannot be written to, this only costs time later
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps({"of": stamp, "sha256": found}))
    return found


@cache
def _sha256(file: Path, size: int, changed: int) -> str:
    return sha256_of(file)
