"""The one broker of files: it knows whose each file is, and which files a client may name.

Uploads lie in `uploads/<owner>/…` in the home, so that a path says whose a file is; other users of the computer cannot
read them. Files that pages show lie in folders that each have a rule. All other files are nobody's, whatever a client
writes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.bounds import check_text
from pipelines.errors import RequestError
from studio.drafts.input_images import InputImage
from studio.drafts.picture_file import check_upload
from studio.jobs import Worker
from studio.jobs.owner import PROGRAMS, folder_of

LIFETIME = 86_400.0
"""Seconds for which an upload is kept after it was last used."""
SWEEP_EVERY = 600.0
MOST_HELD = 2 * 2**30
"""Most bytes of one owner's uploads."""
MOST_FILES = 5_000
"""Most files and folders of one owner's uploads."""
MOST_DEEP = 64
"""Deepest nesting of lists and objects that a client may send."""
LONGEST_TEXT = 2 * 2**20
"""Most characters of one text that a client sends; its field may allow fewer."""
LONGEST_PATH = 4096
FILE_DATA = "gradio.FileData"
NOT_YOURS = "a file that is named here is not yours, or not here any more; upload it again"


class Files:
    """The files of one home. Safe for several threads; two brokers of one home agree.

    owner, everywhere: as `owner_of` gives it; None where nobody logs in: then whoever reaches the studio owns all
    files.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.uploads = _closed(worker.home.made(worker.home.path) / "uploads")
        self._lock = threading.Lock()
        self._swept = 0.0

    @property
    def made(self) -> Path:
        """Where Gradio puts copies that it makes of uploads. Nobody may fetch files from there."""
        return _closed(_closed(self.uploads) / "made")

    @property
    def shown(self) -> tuple[Path, ...]:
        """The folders of files that pages show, uploads included."""
        return tuple(folder for folder, _ in self._rules())

    def discreet(self, text: str) -> str:
        """A message as clients may read it: without paths of this computer, unless jobs may name such paths."""
        return self._worker.discreet(text)

    def _rules(self) -> Iterator[tuple[Path, Callable[[Path, str], bool]]]:
        """Each folder with its rule: whether a file, given by its path in the folder, is an owner's."""
        home, worker = self._worker.home, self._worker

        def of_job(inside: Path, owner: str) -> bool:
            return worker.owns(inside.name.partition("-")[0], owner)

        def of_folder(inside: Path, owner: str) -> bool:
            return inside.parts[0] == folder_of(owner)

        yield home.outputs, lambda inside, owner: worker.is_of(home.outputs / inside, owner)
        yield home.cache / "previews", of_job
        yield home.cache / "live", of_job
        yield home.cache / "training", of_folder
        yield self.uploads, of_folder
        yield (
            home.cache / "web",
            lambda inside, owner: True,
        )  # small pictures of the library and of the first screen

    # -- who may have what -------------------------------------------------------------------------------

    def may_see(self, path: str | Path, owner: str | None) -> bool:
        """Whether a file is there and is the owner's, both by the given path and by the one with links resolved."""
        return self._found(str(path), owner) is not None

    def _found(self, path: str, owner: str | None) -> Path | None:
        """The regular file of a path, if the owner may have it; else None. Outside our own folders, nothing is even
        looked at."""
        if not path or len(path) > LONGEST_PATH or "\0" in path or not os.path.isabs(path):
            return None
        plain = Path(os.path.normpath(path))
        for folder, belongs in self._rules():
            places = [folder, Path(os.path.realpath(folder))]
            if not any(plain.is_relative_to(place) for place in places):
                continue
            try:
                real = Path(os.path.realpath(plain))
                inside = real.relative_to(places[1])
                regular = stat.S_ISREG(real.stat().st_mode)
            except (OSError, ValueError):  # gone, a circle of links, or a link that leads out
                return None
            if regular and inside.parts and (owner is None or belongs(inside, owner)):
                return real
            return None
        return None

    def admitted(self, value: Any, owner: str | None, depth: int = 0) -> Any:
        """What a client sent, with every file in it replaced by its checked path, without other claims about it.

        Raises RequestError for a file that is not the owner's, for an address instead of a file, for text that cannot
        be encoded, and for nesting deeper than `MOST_DEEP`.
        """
        if depth > MOST_DEEP:
            raise RequestError(f"what was sent lies deeper than {MOST_DEEP} levels; send it flat")
        if isinstance(value, str):
            return check_text("what was sent", value, LONGEST_TEXT)
        if isinstance(value, list | tuple):
            return [self.admitted(one, owner, depth + 1) for one in value]
        if not isinstance(value, dict):
            return value
        if _names_file(value):
            return self._file_data(value, owner)
        return {
            check_text("a name of what was sent", key, LONGEST_PATH): self.admitted(one, owner, depth + 1)
            for key, one in value.items()
        }

    def _file_data(self, value: dict[str, Any], owner: str | None) -> dict[str, Any]:
        """A https://www.gradio.app/docs/gradio/filedata with only checked values. Raises RequestError."""
        path = value.get("path")
        found = self._found(path, owner) if isinstance(path, str) else None
        if found is None:
            raise RequestError(NOT_YOURS)
        check_upload(found)  # Gradio decodes some pictures before our handlers run
        self._touch(found)
        name = value.get("orig_name")
        return {
            "path": str(found),
            "url": None,
            "size": found.stat().st_size,
            "orig_name": Path(name).name[:255] if isinstance(name, str) else found.name,
            "mime_type": None,
            "is_stream": False,
            "meta": {"_type": FILE_DATA},
        }

    # -- uploads -----------------------------------------------------------------------------------------

    def folder(self, owner: str | None) -> Path:
        """The folder for an owner's uploads. It is made if needed, and closed to other users of the computer. Raises
        RequestError where there are too many uploads, or it cannot be made."""
        self._sweep()
        try:
            made = _closed(_closed(self.uploads) / folder_of(owner or PROGRAMS))
            sizes = [_size(file) for file in made.rglob("*")]
        except OSError as error:
            raise RequestError(f"uploads cannot be kept ({error.strerror}); is the disk full?") from error
        if sum(sizes) > MOST_HELD or len(sizes) > MOST_FILES:
            raise RequestError(
                f"your uploads are {len(sizes)} files and {sum(sizes) / 2**30:.1f} GiB; {MOST_FILES} and "
                f"{MOST_HELD / 2**30:.0f} GiB are allowed, and they go {LIFETIME / 3600:.0f} hours after they were "
                "last used"
            )
        return made

    def place(self, name: str, owner: str | None) -> Path:
        """A new path among an owner's uploads, for a file that the studio makes. Raises RequestError."""
        folder = self.folder(owner) / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        return folder / Path(name).name

    def lent(self, source: InputImage, owner: str | None) -> Path:
        """A copy of a picture among an owner's uploads, so that the page may show it. Raises RequestError."""
        name = source.name if isinstance(source, Path) else f"{source.field}.png"
        copy = self.place(name, owner)
        try:
            if isinstance(source, Path):
                shutil.copyfile(source, copy)
            else:
                copy.write_bytes(source.data)
        except OSError as error:
            raise RequestError(f"{name} cannot be shown ({error.strerror})") from error
        return copy

    def _touch(self, file: Path) -> None:
        """Notes that a file is used, so that it is kept."""
        if file.is_relative_to(os.path.realpath(self.uploads)):
            os.utime(file)

    def _sweep(self) -> None:
        """Deletes uploads that have not been used for long."""
        now = time.time()
        with self._lock:
            if now - self._swept < SWEEP_EVERY:
                return
            self._swept = now
        for folder, folders, files in os.walk(self.uploads, topdown=False):
            for name in files:
                file = Path(folder, name)
                try:
                    if now - file.lstat().st_mtime > LIFETIME:
                        file.unlink()
                except OSError:
                    continue
            for name in folders if folder != str(self.uploads) else ():
                empty = Path(folder, name)
                try:
                    if now - empty.lstat().st_mtime > LIFETIME:
                        empty.rmdir()
                except OSError:  # it is not empty
                    continue


def _closed(folder: Path) -> Path:
    """Makes the folder if it is not there, and closes it to other users of the computer; returns it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _names_file(value: dict[str, Any]) -> bool:
    """Whether Gradio, or one of our functions, could take the object for a file."""
    meta = value.get("meta")
    typed = isinstance(meta, dict) and meta.get("_type") == FILE_DATA
    return typed or "path" in value or isinstance(value.get("url"), str)


def harmless(value: Any) -> Any:
    """A value that goes out, without any object that Gradio would take for a file of the server and open.

    Our pages name the files that they show as paths. An object in the form of a file comes from a stranger: from a
    file's header, a note or a record.
    """
    if isinstance(value, list):
        return [harmless(one) for one in value]
    if isinstance(value, tuple):
        return tuple(harmless(one) for one in value)
    if not isinstance(value, dict):
        return value
    is_file = "path" in value and "meta" in value
    return {key: harmless(one) for key, one in value.items() if not (is_file and key == "meta")}


def _size(file: Path) -> int:
    try:
        found = file.lstat()
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
