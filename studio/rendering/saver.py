"""The one place where finished pictures go to the disk: in a thread of its own, beside the steps.

    take -> [pending] -> its file is written -> `then`: its row, its line, its message -> told

The file comes first, and only then is anybody told. A picture that cannot be saved fails alone.
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
"""Finished pictures that may wait for the disk before rendering waits for them."""


class Written(Protocol):
    """A finished picture as it can be written."""

    @property
    def record(self) -> Record: ...

    def write(self, file: Path, *, force: bool) -> Path:
        """Returns where it is: without `force`, beside a file that is there already. Raises SetupError."""


@dataclass(frozen=True)
class Made:
    """A picture that was made here, and what its file will say. adapters: name -> file of those that are loaded."""

    image: Image.Image = field(repr=False)
    request: Request
    record: Record
    adapters: Mapping[str, Path]
    setup: Setup

    @staticmethod
    def of(event: Finished, adapters: Mapping[str, Path], setup: Setup) -> Made:
        """What a session has finished, with "pil" pictures."""
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
    """A picture that was made elsewhere, as its file's bytes."""

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
    """Writes pictures. Use as a context manager: leaving it waits until all are on the disk.

    then: makes of each what `told` returns, on the saver's thread, once its file is written. What it raises, `told`
    raises. threads: more than one where the pictures' order does not matter.
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
        """Hands a picture over; waits where the disk cannot keep up.

        file: where to write it, or what says so, asked on the saver's thread. force: replace what is there already.
        """
        self._hand_over(lambda: self._written(picture, made, file, force))

    def fail(self, picture: P, error: StudioError) -> None:
        """There is no such picture, which is told in its turn."""
        self._hand_over(lambda: Saved(picture, error=error))

    def told(self, *, least: int = 0) -> Iterator[T]:
        """What has become of pictures by now, in the order they were handed over; waits for so many."""
        count = 0
        while self._pending and (count < least or self._pending[0].done()):
            wait([self._pending[0]])  # it stays there meanwhile: an interruption loses nothing
            count += 1
            yield self._pending.popleft().result()

    def rest(self) -> Iterator[T]:
        """What has become of all pictures; waits for them."""
        yield from self.told(least=sys.maxsize)

    @property
    def pending(self) -> int:
        """How many were handed over and not told."""
        return len(self._pending)

    def settle(self) -> None:
        """Returns when all that was handed over is on the disk."""
        wait(self._pending)

    def close(self) -> None:
        """Returns when all is on the disk. Nothing is handed over any more."""
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
        except Exception as error:  # it is of this picture alone
            return Saved(picture, error=not_saved(error))
        return Saved(picture, path, made.record)


def not_saved(error: Exception) -> StudioError:
    """Why a picture could not be saved, as its owner is told it."""
    if not isinstance(error, OSError):
        return own_error(error, "the picture could not be saved")
    forget_tensors(error)
    said = error.strerror or str(error)
    return SetupError(
        f"the picture could not be saved ({said}); make room on the disk, and let the studio write there"
    )
