"""The one place from which finished pictures are written to the disk, on threads of its own, beside the steps.

    take -> [pending] -> the file is written -> `then` notes it (a row, a line, a message) -> told

The file is written first; only then does anybody hear of it. A picture that cannot be saved fails alone.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Semaphore
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from PIL import Image

from pipelines import Finished, Record, Request, StudioError
from pipelines.errors import SetupError
from pipelines.faults import forget_tensors, own_error
from pipelines.home.files import write_whole
from studio.pictures.metadata import Setup, save_picture

P = TypeVar("P")
T = TypeVar("T")

MOST_PENDING = 32
"""Finished pictures that may wait for the disk. Where so many wait, rendering waits too."""


class Written(Protocol):
    """A finished picture that can be written to a file."""

    @property
    def record(self) -> Record: ...

    def write(self, file: Path, *, force: bool) -> Path:
        """Writes the picture; returns its path.

        force: overwrite a file. Without it, an existing file stays, and the picture gets another name. Raises
        SetupError.
        """


@dataclass(frozen=True)
class Made:
    """A picture that was made here, and what its file will say. adapters: name of a loaded adapter -> its file."""

    image: Image.Image = field(repr=False)
    request: Request
    record: Record
    adapters: Mapping[str, Path]
    setup: Setup

    @staticmethod
    def of(event: Finished, adapters: Mapping[str, Path], setup: Setup) -> Made:
        """The picture of an event, whose session must give "pil" pictures."""
        assert isinstance(event.image, Image.Image)
        return Made(event.image, event.request, event.record, adapters, setup)

    def write(self, file: Path, *, force: bool) -> Path:
        return save_picture(
            self.image,
            file,
            request=self.request,
            record=self.record,
            adapters=self.adapters,
            setup=self.setup,
            force=force,
        )


@dataclass(frozen=True)
class Png:
    """A picture that was made on another computer or in another process. content: the bytes of its file."""

    content: bytes = field(repr=False)
    record: Record

    def write(self, file: Path, *, force: bool) -> Path:
        return write_whole(file, self.content, force=force)


@dataclass(frozen=True)
class Saved(Generic[P]):
    """What has become of a picture: its file and its record, or why there is none."""

    picture: P
    file: Path | None = None
    record: Record | None = None
    error: StudioError | None = None


class Saver(Generic[P, T]):
    """Writes pictures. Use it as a context manager: leaving it waits until all are on the disk.

    then: called on a thread of the saver with each picture, once its file is written or that has failed. `told` gives
    its result, and raises what it raises. threads: more than one only where the order does not matter in which files
    are written and `then` is called.
    """

    def __init__(self, then: Callable[[Saved[P]], T], *, threads: int = 1) -> None:
        self._then = then
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
        self._room = Semaphore(MOST_PENDING)
        self._pending: deque[Future[T]] = deque()

    def __enter__(self) -> Saver[P, T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def take(
        self, picture: P, made: Written, file: Path | Callable[[], Path], *, force: bool = False
    ) -> None:
        """Hands a picture over. Waits while MOST_PENDING others wait for the disk.

        file: where to write it, or a function that says so, which a thread of the saver calls. force: overwrite a file.
        """
        self._hand_over(lambda: self._written(picture, made, file, force))

    def fail(self, picture: P, error: StudioError) -> None:
        """Hands over a picture that could not be made, so that `then` and `told` have it in its turn."""
        self._hand_over(lambda: Saved(picture, error=error))

    def told(self, *, least: int = 0) -> Iterator[T]:
        """The results of the pictures that are done, in the order in which they were handed over.

        least: wait for at least so many, where so many are pending.
        """
        count = 0
        while self._pending and (count < least or self._pending[0].done()):
            wait([self._pending[0]])  # it stays pending meanwhile, so that Ctrl+C loses nothing
            count += 1
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[T]:
        """Waits for all pictures; gives the results that `told` did not give yet."""
        yield from self.told(least=sys.maxsize)

    @property
    def pending(self) -> int:
        """How many of the pictures that were handed over have results that `told` did not give yet."""
        return len(self._pending)

    def settle(self) -> None:
        """Waits until every picture that was handed over is on the disk, or has failed."""
        wait(self._pending)

    def close(self) -> None:
        """Waits as `settle` does, and ends the threads. Nothing may be handed over after that."""
        self._threads.shutdown(wait=True)

    def _hand_over(self, saved: Callable[[], Saved[P]]) -> None:
        def work() -> T:
            try:
                return self._then(saved())
            finally:
                self._room.release()

        self._room.acquire()
        self._pending.append(self._threads.submit(work))

    def _written(self, picture: P, made: Written, file: Path | Callable[[], Path], force: bool) -> Saved[P]:
        try:
            path = made.write(file if isinstance(file, Path) else file(), force=force)
        except BaseException as error:  # this thread is nobody's: what is raised here would be lost
            return Saved(picture, error=not_saved(error))
        return Saved(picture, path, made.record)


def not_saved(error: BaseException) -> StudioError:
    """Why a picture could not be saved, in words for its owner. What an OSError is about stays its cause."""
    if not isinstance(error, OSError):
        return own_error(as_exception(error), "the picture could not be saved")
    forget_tensors(error)
    said = error.strerror or str(error)
    own = SetupError(
        f"the picture could not be saved ({said}); make room on the disk, and let the studio write there"
    )
    own.__cause__ = error
    return own


def as_exception(error: BaseException) -> Exception:
    """The error; in place of one that would end a thread or the program, an ordinary one that names it."""
    if isinstance(error, Exception):
        return error
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    plain.__cause__ = error
    return plain
