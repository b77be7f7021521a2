"""Users' files: read with distrust, and written completely or not at all.

A pipe, a socket or a device can have any name, and whoever opens one waits for its other end. So only regular files are
opened: what a name stands for is checked before it is opened, and again once it is open. No more is read than a limit
allows, and nobody waits for ever.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from pipelines.errors import SetupError
from pipelines.home.answers import answered, sign

LIMIT = 16 * 2**20
"""The most bytes that are read of a text file by default: settings, notes, descriptions of models."""

_CHUNK = 2**20

_WHAT: Mapping[int, str] = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NoRegularFile(OSError):
    """The name stands for something else than a regular file: a folder, a pipe, a socket, a device."""

    def __init__(self, path: str | Path, mode: int) -> None:
        what = _WHAT.get(stat.S_IFMT(mode), "something else")
        super().__init__(errno.EINVAL, f"it is {what}, not a file; take it away or give a file", str(path))


def is_regular(path: str | Path) -> bool:
    """Whether there is a regular file, also through a link. Raises NoAnswer."""
    return answered(path, lambda: os.path.isfile(path))


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder, also through a link. Raises NoAnswer."""
    return answered(path, lambda: os.path.isdir(path))


def exists(path: str | Path) -> bool:
    """Whether there is anything, also through a link. Raises NoAnswer."""
    return answered(path, lambda: os.path.exists(path))


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading. This never waits for the other end of a pipe.

    Reading from it may still hang, so read inside `answered`. Raises OSError, NoRegularFile (an OSError too) and
    NoAnswer.
    """
    return answered(path, lambda: _open(path))


def read_regular(path: str | Path, limit: int = LIMIT) -> bytes:
    """All bytes of a regular file. Raises OSError, also for a file of more than `limit` bytes, and NoAnswer."""

    def read() -> bytes:
        with _open(path) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise _too_large(path, limit)
            content = io.BytesIO()
            while chunk := file.read(_CHUNK):
                sign()
                content.write(chunk)
                if content.tell() > limit:  # it has grown, or its size was not known
                    raise _too_large(path, limit)
        return content.getvalue()

    return answered(path, read)


def read_text(path: str | Path, limit: int = LIMIT) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises as `read_regular`, and ValueError for other bytes."""
    return read_regular(path, limit).decode("utf-8-sig")


def whole_text(text: str) -> str:
    """The text, so that it can be written as UTF-8: halves of surrogate pairs become question marks."""
    return text if is_whole_text(text) else text.encode("utf-8", "replace").decode()


def is_whole_text(text: str) -> bool:
    """Whether a text, such as a file's name, can be written as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256_of(path: str | Path, start: int = 0) -> str:
    """The sha256 of a regular file's bytes from `start` on, 64 hex digits. Raises OSError and NoAnswer."""

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
    if not stat.S_ISREG(mode):  # a pipe may just have taken the file's place
        os.close(opened)
        raise NoRegularFile(path, mode)
    sign()
    return open(opened, "rb")


_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY")
)


def _too_large(path: str | Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than the {limit:,} bytes that such a file may have", str(path))


# -- writing ---------------------------------------------------------------------------------------------

Content = str | bytes | Callable[[Path], object]
"""What a file will hold: a text (written as UTF-8), bytes, or a function that writes it to the path it is given."""


def write_atomically(file: Path, content: Content, *, force: bool = True) -> Path:
    """Write a file completely or not at all, and return its path. Its folder must exist. Raises OSError.

    Several threads and processes may write the same file: each writes a temporary file beside it first, and readers see
    one complete file or the other. force: replace a file that is there; otherwise it is kept, and this one takes the
    next free name.
    """
    check_name(file)
    # The name is cut, because one of the greatest length would leave no room for what is added.
    temporary = file.with_name(f".{file.name[:50]}.{secrets.token_hex(6)}.part")
    try:
        match content:
            case str():
                temporary.write_bytes(content.encode())  # as text, Windows would change its line ends
            case bytes():
                temporary.write_bytes(content)
            case write:
                write(temporary)
        while not _published(temporary, file, force):
            file = next_name(file)
    finally:
        with suppress(OSError):  # an error from above is raised, rather than this one
            temporary.unlink()
    return file


def write_together(folder: Path, contents: Mapping[str, str | bytes], *, force: bool) -> None:
    """Write several files into a folder, which is made: relative name -> content. Raises OSError.

    Nothing is changed before all of them are on the disk. force: replace files that are there; otherwise they are kept,
    and FileExistsError is raised.
    """
    check_name(folder)
    staged = folder.with_name(f".{folder.name[:50]}.{secrets.token_hex(6)}.part")
    try:
        for name, content in contents.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_bytes(content.encode() if isinstance(content, str) else content)
        if not force:
            for name in contents:
                if os.path.lexists(folder / name):
                    raise FileExistsError(errno.EEXIST, "it is already there", str(folder / name))
        for name in contents:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _replace(staged / name, folder / name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_whole(file: Path, content: Content, *, force: bool) -> Path:
    """`write_atomically` for a file that a user asked for: its folder is made. Raises SetupError with the remedy."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(file, content, force=force)
    except OSError as error:
        raise SetupError(
            f"{file} cannot be written ({error.strerror or error}); choose another --out"
        ) from error


def _published(temporary: Path, file: Path, force: bool) -> bool:
    """Give the temporary file its final name. False where that is taken, and `force` is off."""
    if not force:
        try:
            os.link(temporary, file)  # unlike a rename, it never replaces
            return True
        except FileExistsError:
            return False
        except (OSError, AttributeError):  # a file system, or a system, without hard links
            return _claimed(temporary, file)
    _replace(temporary, file)
    return True


def _claimed(temporary: Path, file: Path) -> bool:
    """`_published` without hard links: an empty file takes the name, and is replaced at once. False where the name is
    taken."""
    try:
        file.open("xb").close()
    except FileExistsError:
        return False
    try:
        _replace(temporary, file)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return True


def _replace(temporary: Path, file: Path) -> None:
    """`os.replace`. On Windows a file cannot be replaced while somebody reads it, so it is tried again for a while."""
    for wait in (*_WAITS, None):
        try:
            return os.replace(temporary, file)
        except PermissionError as error:
            if wait is None or getattr(error, "winerror", None) not in _IN_USE:
                raise
            time.sleep(wait)


_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between two attempts to replace a file."""
_IN_USE = (5, 32)
"""Windows' ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION."""


def next_name(file: Path) -> Path:
    """The name to try next where one is taken: "fox.png" -> "fox~2.png" -> "fox~3.png"."""
    match = re.fullmatch(r"(.*)~(\d+)", file.stem)
    stem, number = (match[1], int(match[2])) if match else (file.stem, 1)
    return file.with_name(f"{stem}~{number + 1}{file.suffix}")


def slug(text: str) -> str:
    """The text as part of a file name: letters, digits, dots, underscores and hyphens, at most 60 characters.

    "picture" where nothing is left of it. A name of a device on Windows gets an underscore, on every system, because
    files move between computers: "con" -> "con_".
    """
    name = re.sub(r"[^\w.]+", "-", text).strip("-.")
    return _DEVICE.sub(r"\1_", name)[:60].rstrip("-.") or "picture"


def check_name(file: Path, *, windows: bool = os.name == "nt") -> Path:
    """The file. Raises OSError for a name that no file can have on Windows. Elsewhere all names pass.

    There "con.png" is a device, "a:b.png" is a hidden part of the file "a", and a last dot or space is dropped.
    """
    name = file.name
    if windows and (_DEVICE.match(name) or _RESERVED.search(name) or name.endswith((".", " "))):
        raise OSError(errno.EINVAL, "no file can have this name on Windows", str(file))
    return file


_DEVICE = re.compile(
    r"^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?= *(\.|$))", re.IGNORECASE
)
_RESERVED = re.compile(r'[<>:"|?*\0-\x1f]')
