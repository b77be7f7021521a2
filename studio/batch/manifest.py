"""`manifest.jsonl`: what has become of every job, on one line each.

    {"status": "done", "key": …, "index": 1, "name": …, "file": "00001_a-fox_7.png", "seed": 7, "where": …,
     "model": …, "record": {…}}
    {"status": "failed", "key": …, …, "error": "…"}

Every line is appended and flushed to the disk. Of several lines with one key, the last one counts. If a run ends
suddenly and leaves half a line, that line is dropped and the job is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from pipelines.errors import SetupError
from studio.batch.plan import PlannedPicture
from studio.pictures.identity import is_whole

MANIFEST = "manifest.jsonl"
LOCK = ".manifest.lock"
"""A file of its own: on Windows nobody else can read a locked file."""


@dataclass(frozen=True)
class PictureOutcome:
    """What has become of a job. file: the picture's absolute path. record: as the picture holds it."""

    job: PlannedPicture
    file: Path | None = None
    record: Mapping[str, Any] | None = None
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None


class Manifest:
    """The manifest of one folder; only one run at a time can hold it. Use as a context manager.

    entries: key -> its last line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, dict[str, Any]] = {}
        self._lock = FileLock(folder / LOCK)

    def __enter__(self) -> Manifest:
        """Opens, locks and reads it. Raises SetupError where another run holds it, or it cannot be written."""
        path = self.folder / MANIFEST
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            self._file = path.open("a+b", buffering=0)  # so that what cannot be written is not written later
        except Timeout as error:
            raise SetupError(f"another batch is at work in {self.folder}; wait for it, or stop it") from error
        except OSError as error:
            self._lock.release()
            raise SetupError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.readall()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the run ended while it wrote the last line
            self._file.truncate(whole)
        for line in content[:whole].splitlines():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                self.entries[entry["key"]] = entry

    def append(self, outcome: PictureOutcome) -> None:
        """Adds a line; it is on the disk when this returns. Raises SetupError."""
        job = outcome.job
        entry: dict[str, Any] = {
            "status": "failed" if outcome.failed else "done",
            "key": job.key,
            "index": job.index,
            "name": job.name,
            "file": None if outcome.file is None else outcome.file.relative_to(self.folder).as_posix(),
            "seed": job.seed,
            "where": job.where,
            "model": job.model,
        }
        entry |= {"error": outcome.error} if outcome.failed else {"record": outcome.record}
        whole = self._file.seek(0, os.SEEK_END)
        try:
            line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(whole)
            raise SetupError(f"{self.folder / MANIFEST} cannot be written ({error.strerror})") from error
        self.entries[job.key] = entry

    def done(self, job: PlannedPicture) -> PictureOutcome | None:
        """The job's earlier outcome: done, with a complete picture, or failed; None where there is none."""
        entry = self.entries.get(job.key)
        if entry is None:
            return None
        if entry["status"] == "failed":
            return PictureOutcome(job, error=str(entry.get("error")))
        file = self.folder / entry["file"]
        return PictureOutcome(job, file, entry.get("record")) if is_whole(file) else None

    def finished(self, jobs: Iterable[PlannedPicture]) -> int:
        """How many of these jobs have their pictures."""
        return sum(self.entries.get(job.key, {}).get("status") == "done" for job in jobs)

    def claimed(self) -> dict[Path, str]:
        """File -> key of its job, for all pictures in the manifest."""
        return {self.folder / e["file"]: key for key, e in self.entries.items() if e.get("file")}

    def sweep(self, folders: set[Path]) -> None:
        """Deletes half-written files that a sudden end has left in these folders."""
        for folder in folders:
            with suppress(OSError):
                for scrap in folder.glob(".*.part"):
                    scrap.unlink(missing_ok=True)
