"""A server that closes at once, and quietly: it ends the streams that pages listen to."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATIENCE = 3.0
"""Seconds that threads have to end after the server has closed."""


def end_hanging(code: int) -> None:
    """Ends the process with `code` if threads hang that nothing can end, such as one that waits for a file on a network
    that is gone. Python would wait for them for ever."""
    until = time.monotonic() + PATIENCE
    mine = threading.current_thread()
    for thread in threading.enumerate():
        if thread is not mine and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)


class ClosingServer(uvicorn.Server):
    """Ends open streams when it closes. uvicorn would wait for them and then break each off with an error; Gradio's
    pages always hold some."""

    def __init__(self, app: ASGIApp) -> None:
        self._closing = asyncio.Event()
        ending = _Ending(app, self._closing)
        super().__init__(
            uvicorn.Config(ending, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)


class _Ending:
    """Once `closing` is set, tells the application that its listeners have left, and completes answers that it then
    breaks off."""

    def __init__(self, app: ASGIApp, closing: asyncio.Event) -> None:
        self._app, self._closing = app, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        unfinished = False

        async def next_message() -> Message:
            waiting = asyncio.ensure_future(receive()), asyncio.ensure_future(self._closing.wait())
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                return waiting[0].result() if waiting[0].done() else {"type": "http.disconnect"}
            finally:
                for task in waiting:
                    task.cancel()

        async def answer(message: Message) -> None:
            nonlocal unfinished
            unfinished = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        await self._app(scope, next_message, answer)
        if unfinished and self._closing.is_set():
            await send({"type": "http.response.body"})
