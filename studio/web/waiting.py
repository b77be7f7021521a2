"""Waiting for the device: handlers that do so hold no thread, of which everybody's requests share a few.

A handler awaits `Waits.of`, and what it gives it awaits `asked`: the worker's future, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from pipelines.errors import RequestError

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds for a model to come."""
MOST_WAITING = 64
"""Things that all owners together wait for."""


async def asked(begin: Callable[[], Future[T]]) -> T:
    """What the worker makes of it. begin: asks the worker, in a thread, since it looks at files."""
    return await asyncio.wrap_future(await run_in_threadpool(begin))


@dataclass(frozen=True)
class _Wait:
    what: str
    task: asyncio.Task[Any]


class Waits:
    """What owners wait for, of each owner one thing at a time. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Wait] = {}

    async def of(
        self, owner: str, what: str, start: Callable[[], Awaitable[T]], seconds: float = PATIENCE
    ) -> T:
        """The result of `start`. Whoever asks for the same while it is waited for gets the same, and nothing is asked
        twice; so does who asks again after it took too long.

        what: names it, for messages too. Raises RequestError where the owner waits for something else, and when it
        takes longer than `seconds`.
        """
        wait = self._waiting.get(owner)
        if wait is None:
            if len(self._waiting) >= MOST_WAITING:
                raise RequestError(
                    f"{what} has to wait: {MOST_WAITING} people wait for the device; ask again in a minute"
                )
            wait = _Wait(what, asyncio.ensure_future(_run(start)))
            self._waiting[owner] = wait
            wait.task.add_done_callback(lambda task: self._over(owner, task))
        elif wait.what != what:
            raise RequestError(
                f"{what} has to wait: {wait.what} was asked for first; ask again when it is there"
            )
        try:
            return await asyncio.wait_for(asyncio.shield(wait.task), seconds)
        except TimeoutError:
            if wait.task.done():
                raise
            raise RequestError(
                f"{what} took longer than {seconds:g} seconds, and goes on; ask again to wait for it"
            ) from None

    def _over(self, owner: str, task: asyncio.Task[Any]) -> None:
        del self._waiting[owner]
        if not task.cancelled():
            task.exception()  # looked at, where nobody waits any longer


async def _run(start: Callable[[], Awaitable[T]]) -> T:
    return await start()
