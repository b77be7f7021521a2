"""Pictures go to the disk in a thread of their own, beside the steps: file first, then its line in the manifest."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from pipelines import StudioError
from pipelines.home.files import write_whole
from studio.batch.manifest import Manifest, Outcome
from studio.batch.plan import Job
from studio.batch.worker import Rendered
from studio.pictures.metadata import Setup, save_picture

MOST_PENDING = 32
"""Finished pictures that may wait for the disk before rendering waits for them."""


class Writer:
    """Saves what was rendered, and notes it in the manifest. Use as a context manager; leaving it waits for all."""

    def __init__(self, manifest: Manifest, setup: Setup, *, force: bool = False) -> None:
        self._manifest = manifest
        self._setup = setup
        self._force = force
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._pending: deque[Future[Outcome]] = deque()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)

    def take(self, job: Job, rendered: Rendered, adapters: Mapping[str, Path]) -> None:
        """Hands a picture over. adapters: name -> file."""
        self._pending.append(self._thread.submit(self._write, job, rendered, adapters))

    def note(self, outcome: Outcome) -> None:
        """Hands over an outcome that needs no picture written."""
        self._pending.append(self._thread.submit(self._noted, outcome))

    def finished(self, *, wait: bool = False) -> Iterator[Outcome]:
        """What is on the disk by now; `wait`: all of it. Raises SetupError where the manifest cannot be written."""
        while self._pending and (wait or self._pending[0].done() or len(self._pending) > MOST_PENDING):
            yield self._pending.popleft().result()

    def _write(self, job: Job, rendered: Rendered, adapters: Mapping[str, Path]) -> Outcome:
        if rendered.error is not None:
            return self._noted(Outcome(job, error=rendered.error))
        assert rendered.record is not None
        try:
            file = self._saved(self._manifest.folder / job.file, rendered, adapters)
        except StudioError as error:
            return self._noted(Outcome(job, error=str(error)))
        return self._noted(Outcome(job, file, rendered.record.to_dict()))

    def _saved(self, file: Path, rendered: Rendered, adapters: Mapping[str, Path]) -> Path:
        """Writes the picture; returns where it is. Raises SetupError."""
        if rendered.png is not None:
            return write_whole(file, rendered.png, force=self._force)
        assert rendered.image is not None
        assert rendered.request is not None
        assert rendered.record is not None
        return save_picture(
            rendered.image,
            file,
            request=rendered.request,
            record=rendered.record,
            adapters=adapters,
            setup=self._setup,
            force=self._force,
        )

    def _noted(self, outcome: Outcome) -> Outcome:
        self._manifest.append(outcome)
        return outcome
