"""Faults of the machine: a full disk, a folder that cannot be written, a database that another program has locked.

Such a fault is of no picture. It lasts until somebody mends it, and then the same work succeeds.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import SetupError, StudioError

ROOM = 16 * 2**20
"""A disk with fewer free bytes counts as full."""

_NEVER_READING = {
    errno.ENOSPC: ("the disk is full", "make room on it"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EROFS: ("the disk is read-only", "let the studio write there"),
}
"""Errors that only writing meets, so they are the machine's whatever was done."""
_WRITING = {
    errno.EIO: ("the disk has a fault", "check the disk"),
    errno.EACCES: ("a file or folder may not be written", "let the studio write there"),
    errno.EPERM: ("a file or folder may not be written", "let the studio write there"),
    errno.ENOTDIR: ("there is a file where a folder should be", "move it away"),
    errno.EEXIST: ("there is a file where a folder should be", "move it away"),
    errno.ENOENT: ("a folder is gone", "put it back"),
    errno.EMFILE: ("too many files are open", "raise the limit of open files"),
    errno.ENFILE: ("too many files are open", "close other programs"),
    errno.ENODEV: ("the disk is gone", "connect it again"),
    errno.ENXIO: ("the disk is gone", "connect it again"),
    errno.ETIMEDOUT: ("the disk does not answer", "see to the drive or the network"),
    **{
        getattr(errno, name): ("the disk does not answer", "see to the drive or the network")
        for name in ("ESTALE", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ENOLINK")
        if hasattr(errno, name)
    },
}
_DATABASE = (
    (13, "full", "the disk is full", "make room on it"),
    (5, "locked", "the database is locked by another program", "close that program"),
    (6, "locked", "the database is locked by another program", "close that program"),
    (8, "readonly", "the database may not be written", "let the studio write there"),
    (14, "unable to open", "the database cannot be opened", "let the studio write there"),
    (10, "i/o", "the disk has a fault or is full", "check the disk, and make room on it"),
    (7, "memory", "memory ran out", "close other programs"),
    (11, "malformed", "the database is damaged", "stop the studio, and put a copy of it in its place"),
    (26, "not a database", "the database is damaged", "stop the studio, and put a copy of it in its place"),
)
"""SQLite's primary codes (https://www.sqlite.org/rescode.html), and a word of their messages."""


class MachineFault(SetupError):
    """The machine stands in the way of every picture, until somebody mends it."""


def machine_fault(error: BaseException, *, writing: bool = True) -> MachineFault | None:
    """The fault of the machine that an error, or what caused it, reports; None for any other error.

    writing: whether files were being written. If not, an error that reading may meet too counts as none.
    """
    link: BaseException | None = error
    judged = False
    for _ in range(20):
        if link is None:
            return None
        if isinstance(link, MachineFault):
            return link
        if isinstance(link, StudioError) and not isinstance(link, SetupError):
            judged, writing = True, False  # somebody has said already whose fault it is
        told = (
            _of_files(link, writing) if isinstance(link, OSError) else None if judged else _of_database(link)
        )
        if told is not None:
            fault = MachineFault(told)
            fault.__cause__ = error
            return fault
        link = link.__cause__
    return None


@contextmanager
def machine_faults(*, writing: bool = True) -> Iterator[None]:
    """Raises MachineFault for what the block raises because of the machine. Other errors pass."""
    try:
        yield
    except Exception as error:
        fault = machine_fault(error, writing=writing)
        if fault is None or fault is error:
            raise
        raise fault from error


def has_room(folder: Path) -> bool:
    """Whether the disk of a folder, or of the nearest folder above it, has room for pictures."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free >= ROOM
    except OSError:
        return False


def _of_files(error: OSError, writing: bool) -> str | None:
    known = _NEVER_READING | (_WRITING if writing else {})
    if error.errno not in known:
        return None
    what, remedy = known[error.errno]
    at = "" if error.filename is None else str(error.filename)
    if at.endswith(".part"):  # nobody knows these names
        at = str(Path(at).parent)
    return f"{what} ({at}: {error.strerror}); {remedy}" if at else f"{what} ({error.strerror}); {remedy}"


def _of_database(error: BaseException) -> str | None:
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(
        error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.DataError
    ):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    said = str(error).lower()
    for number, word, what, remedy in _DATABASE:
        if (code is not None and code & 0xFF == number) or (code is None and word in said):
            return f"{what} (studio.sqlite: {error}); {remedy}"
    if isinstance(error, sqlite3.OperationalError):
        return f"the database cannot be used (studio.sqlite: {error}); close other programs that use it"
    return None
