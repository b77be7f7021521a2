"""Handlers that wait for the device without holding a thread. There are only a few threads, shared by all requests.

A handler awaits `Waits.of`, with a coroutine that awaits `worker_result`: the worker's future, on the event loop.
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
"""Seconds that a handler waits, by default: a model may have to be loaded."""
MOST_WAITING = 64
"""Most things that all owners together may wait for."""


async def worker_result(begin: Callable[[], Future[T]]) -> T:
    """Waits for the worker's result. begin: asks the worker; it runs in a thread, since it looks at files."""
    return await asyncio.wrap_future(await run_in_threadpool(begin))


@dataclass(frozen=True)
class _Wait:
    what: str
    task: asyncio.Task[Any]


class Waits:
    """What owners wait for; each owner waits for one thing at a time. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Wait] = {}

    async def of(
        self, owner: str, what: str, start: Callable[[], Awaitable[T]], seconds: float = PATIENCE
    ) -> T:
        """The result of `start`. If the owner asks for the same thing again meanwhile, also after a wait that took too
        long, both calls get one result, and `start` is called once.

        what: the thing's name, also for messages. Raises RequestError where the owner waits for something else, where
        too many wait, and when it takes longer than `seconds`.
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
            task.exception()  # marks it as retrieved, in case nobody waits any longer


async def _run(start: Callable[[], Awaitable[T]]) -> T:
    return await start()
