"""Work for the device that is not a picture. It waits its turn and runs on the worker's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines import StudioError, StudioPipeline
from pipelines.errors import SetupError
from studio.jobs.gate import ModelKey
from studio.rendering.saver import as_exception

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One piece of work, and where its result goes."""

    key: ModelKey
    work: Callable[[StudioPipeline], Any]
    future: Future[Any]

    def run(self, pipe: StudioPipeline) -> None:
        """Does the work. What it returns or raises goes into the future."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work(pipe))
        except BaseException as error:  # whoever waits must hear of it, and the worker's thread go on
            self.future.set_exception(as_exception(error))


class Calls:
    """The calls that wait, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[Call] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, key: ModelKey, work: Callable[[StudioPipeline], T]) -> Future[T]:
        call = Call(key, work, Future())
        self._waiting.append(call)
        return call.future

    def next(self, key: ModelKey) -> Call | None:
        return next((call for call in self._waiting if call.key == key), None)

    def take(self, key: ModelKey) -> Call | None:
        call = self.next(key)
        if call is not None:
            self._waiting.remove(call)
        return call

    def models(self) -> list[ModelKey]:
        """The models that the calls need, in the order of the calls."""
        return list(dict.fromkeys(call.key for call in self._waiting))

    def fail(self, key: ModelKey, error: StudioError) -> None:
        """Fails every call that needs this model, which could not be loaded."""
        while (call := self.take(key)) is not None:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(error)

    def refuse(self, why: str) -> None:
        for call in self._waiting:
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(SetupError(why))
        self._waiting.clear()
