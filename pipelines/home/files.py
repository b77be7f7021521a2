"""Files of users: read with distrust, and written whole or not at all.

A pipe, a socket or a device may bear any name, and whoever opens one waits for its other end. So only regular files
are opened: what a name means is looked at before it is opened, and again once it is open. No more is read than a
limit allows, and nobody waits for ever.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from pipelines.errors import SetupError
from pipelines.home.answers import answered, sign

LIMIT = 16 * 2**20
"""Bytes of a file that is read as text: settings, notes, descriptions of models."""

_CHUNK = 2**20

_WHAT: Mapping[int, str] = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NoRegularFile(OSError):
    """The name means something else: a folder, a pipe, a socket, a device."""

    def __init__(self, path: str | Path, mode: int) -> None:
        what = _WHAT.get(stat.S_IFMT(mode), "something else")
        super().__init__(errno.EINVAL, f"it is {what}, not a file; take it away or give a file", str(path))


def is_regular(path: str | Path) -> bool:
    """Whether there is a regular file, links followed. Raises NoAnswer."""
    return answered(path, lambda: os.path.isfile(path))


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder, links followed. Raises NoAnswer."""
    return answered(path, lambda: os.path.isdir(path))


def exists(path: str | Path) -> bool:
    """Whether there is anything, links followed. Raises NoAnswer."""
    return answered(path, lambda: os.path.exists(path))


def open_regular(path: str | Path) -> io.BufferedReader:
    """A regular file, open for reading; it does not wait for the other end of a pipe.

    What is read from it may still not come: read inside `answered`. Raises OSError, NoRegularFile for what is no
    regular file, and NoAnswer.
    """
    return answered(path, lambda: _open(path))


def read_regular(path: str | Path, limit: int = LIMIT) -> bytes:
    """All bytes of a regular file. Raises OSError, also where there are more than `limit`, and NoAnswer."""

    def read() -> bytes:
        with _open(path) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise _too_large(path, limit)
            content = io.BytesIO()
            while chunk := file.read(_CHUNK):
                sign()
                content.write(chunk)
                if content.tell() > limit:  # it grows, or tells no size
                    raise _too_large(path, limit)
        return content.getvalue()

    return answered(path, read)


def read_text(path: str | Path, limit: int = LIMIT) -> str:
    """All of a UTF-8 file, without a mark of byte order. Raises OSError, ValueError for other bytes, and NoAnswer."""
    return read_regular(path, limit).decode("utf-8-sig")


def parse_json(text: str | bytes) -> object:
    """Any JSON. Raises ValueError for whatever is none, also for what is nested too deep or has endless numbers.

    Texts can be written as UTF-8 again: halves of surrogate pairs become question marks.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8-sig")
        value = json.loads(text)
        return _whole_texts(value) if "\\ud" in text or "\\uD" in text else value
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def whole_text(text: str) -> str:
    """A text that can be written as UTF-8: halves of surrogate pairs become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def is_whole_text(text: str) -> bool:
    """Whether a text, as the name of a file, can be written as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256_of(path: str | Path, start: int = 0) -> str:
    """The sha256 of a regular file's bytes from `start`, 64 hex digits. Raises OSError and NoAnswer."""

    def read() -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        with _open(path) as file:
            file.seek(start)
            while size := file.readinto(buffer):
                sign()
                digest.update(buffer[:size])
        return digest.hexdigest()

    return answered(path, read)


def _open(path: str | Path) -> io.BufferedReader:
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    if not stat.S_ISREG(mode):
        raise NoRegularFile(path, mode)
    sign()
    opened = os.open(path, _FLAGS)
    mode = os.fstat(opened).st_mode
    if not stat.S_ISREG(mode):  # not even a pipe that took the file's place just now is waited for
        os.close(opened)
        raise NoRegularFile(path, mode)
    sign()
    return open(opened, "rb")


_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY")
)


def _too_large(path: str | Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than the {limit:,} bytes that such a file may have", str(path))


def _whole_texts(value: object) -> object:
    match value:
        case str():
            return whole_text(value)
        case list():
            return [_whole_texts(item) for item in value]
        case dict():
            return {whole_text(key): _whole_texts(item) for key, item in value.items()}
    return value


# -- writing ---------------------------------------------------------------------------------------------

Content = str | bytes | Callable[[Path], object]
"""What a file will hold: a text, written as UTF-8, bytes, or whoever writes it to a path."""


def write_atomically(file: Path, content: Content, *, force: bool = True) -> Path:
    """Writes a file whole or not at all; returns where it is. Its folder is there already. Raises OSError.

    Several threads and processes may write one file: each has a temporary file of its own beside it, and readers see
    one whole file or the other. Without `force`, a file that is there already is kept, and this one takes the next
    free name.
    """
    # A name as long as a file's may be leaves no room for more.
    temporary = file.with_name(f".{file.name[:50]}.{secrets.token_hex(6)}.part")
    try:
        match content:
            case str():
                temporary.write_text(content, encoding="utf-8")
            case bytes():
                temporary.write_bytes(content)
            case write:
                write(temporary)
        while not _published(temporary, file, force):
            file = next_name(file)
    finally:
        with suppress(OSError):  # what has gone wrong before is told, not this
            temporary.unlink()
    return file


def write_whole(file: Path, content: Content, *, force: bool) -> Path:
    """`write_atomically`, for what somebody wants written: its folder is made, and errors name the remedy.

    Raises SetupError.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(file, content, force=force)
    except OSError as error:
        raise SetupError(
            f"{file} cannot be written ({error.strerror or error}); choose another --out"
        ) from error


def _published(temporary: Path, file: Path, force: bool) -> bool:
    if not force:
        try:
            os.link(temporary, file)  # unlike a rename, it never replaces
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if file.exists():
                return False
    os.replace(temporary, file)
    return True


def next_name(file: Path) -> Path:
    """The name to try next where a file is there already: "fox.png", "fox~2.png", "fox~3.png"."""
    match = re.fullmatch(r"(.*)~(\d+)", file.stem)
    stem, number = (match[1], int(match[2])) if match else (file.stem, 1)
    return file.with_name(f"{stem}~{number + 1}{file.suffix}")


def slug(text: str) -> str:
    """The text as part of a file name: words, digits and hyphens, 60 characters at most."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:60].rstrip("-.") or "picture"
