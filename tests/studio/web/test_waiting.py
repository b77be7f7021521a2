"""Nobody who waits for the device keeps others from being answered."""

from __future__ import annotations

import ast
import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest

import studio.web
from pipelines.errors import RequestError, StudioError
from pipelines.home import Home
from studio.jobs import Trainings, Worker
from studio.web import waiting
from studio.web.server import Serving, make_app
from studio.web.waiting import Waits, worker_result

from ...loops import finished

OF_THE_LOOP = {"closing.py"}
"""Files whose `result()` is that of a task of the event loop, and done."""


def test_no_handler_waits_for_a_future_in_a_thread() -> None:
    """Forty threads answer everybody; a model takes minutes to come."""
    folder = Path(studio.web.__path__[0])
    found = [
        f"{file.relative_to(folder)}:{node.lineno}"
        for file in sorted(folder.rglob("*.py"))
        if file.name not in OF_THE_LOOP
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "result"
    ]
    assert found == []


class Device:
    """Counts what is asked of it, and answers when it is told to."""

    def __init__(self) -> None:
        self.futures: list[Future[str]] = []

    def ask(self) -> Future[str]:
        self.futures.append(Future())
        return self.futures[-1]

    async def begun(self, count: int) -> None:
        while len(self.futures) < count:
            await asyncio.sleep(0.005)


def test_who_asks_for_the_same_again_waits_for_the_same() -> None:
    async def scene() -> None:
        device, waits = Device(), Waits()
        ask = partial(waits.of, "ann", "model A", partial(worker_result, device.ask))
        several = [asyncio.ensure_future(ask()) for _ in range(60)]
        await device.begun(1)
        several[0].cancel()  # one who goes away takes nothing from the others
        await asyncio.sleep(0.05)
        device.futures[0].set_result("here")
        assert await asyncio.gather(*several[1:]) == ["here"] * 59
        assert len(device.futures) == 1
        again = asyncio.ensure_future(ask())
        await device.begun(2)
        device.futures[1].set_exception(RequestError("it is gone"))
        with pytest.raises(RequestError, match="it is gone"):
            await again

    finished(scene())


def test_of_each_owner_one_thing_is_waited_for() -> None:
    async def scene() -> None:
        device, waits = Device(), Waits()
        start = partial(worker_result, device.ask)
        anns = asyncio.ensure_future(waits.of("ann", "model A", start))
        await device.begun(1)
        with pytest.raises(RequestError, match="model B has to wait: model A was asked for first; ask again"):
            await waits.of("ann", "model B", start)
        bobs = asyncio.ensure_future(waits.of("bob", "model B", start))
        await device.begun(2)
        for future in device.futures:
            future.set_result("here")
        assert await asyncio.gather(anns, bobs) == ["here", "here"]

    finished(scene())


def test_a_wait_that_is_too_long_is_told_and_can_be_taken_up_again() -> None:
    async def scene() -> None:
        device, waits = Device(), Waits()
        start = partial(worker_result, device.ask)
        with pytest.raises(
            RequestError, match=r"model A took longer than 0\.1 seconds, and goes on; ask again"
        ):
            await waits.of("ann", "model A", start, 0.1)
        again = asyncio.ensure_future(waits.of("ann", "model A", start))
        await asyncio.sleep(0.05)
        device.futures[0].set_result("here")
        assert await again == "here"
        assert len(device.futures) == 1

    finished(scene())


def test_all_owners_together_wait_for_so_many_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 2)

    async def scene() -> None:
        device, waits = Device(), Waits()
        start = partial(worker_result, device.ask)
        two = [asyncio.ensure_future(waits.of(owner, "model A", start)) for owner in ("ann", "bob")]
        await device.begun(2)
        with pytest.raises(RequestError, match="model A has to wait: 2 people wait for the device"):
            await waits.of("cid", "model A", start)
        for future in device.futures:
            future.set_result("here")
        await asyncio.gather(*two)
        assert waits._waiting == {}

    finished(scene())


def test_sixty_who_wait_for_a_model_keep_nobody_waiting(running: Any) -> None:
    go, held = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        go.wait(60)

    def choose(_: int) -> int:
        with running.client() as client:
            return client.post("/sdapi/v1/options", json={"sd_model_checkpoint": running.model}).status_code

    running.worker.call(hold, model=running.model)
    assert held.wait(60)
    pool = ThreadPoolExecutor(60)
    try:
        waiters = [pool.submit(choose, n) for n in range(60)]
        time.sleep(2)
        with running.client() as client:
            began = time.monotonic()
            assert client.get("/sdapi/v1/sd-models").status_code == 200
            assert time.monotonic() - began < 5
            other = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nothing-like-it"})
            assert "has to wait" in other.json()["detail"]
            assert not any(waiter.done() for waiter in waiters)
    finally:
        go.set()
    assert {waiter.result(60) for waiter in waiters} == {200}


def test_pages_ask_for_reports_and_measurements_on_the_event_loop(
    served_home: Home, sdxl_folder: Path
) -> None:
    worker, trainings = Worker(served_home), Trainings(served_home)
    app = make_app(worker, trainings, Serving())
    [pages] = [
        route.app.get_blocks() for route in app.routes if hasattr(getattr(route, "app", None), "get_blocks")
    ]
    events = {function.name: function.fn for function in pages.fns.values()}
    request = gr.Request(httpx.Request("GET", "http://studio"))
    request.request.scope = {}  # type: ignore[union-attr]
    worker.start()
    try:
        reports = [events["loaded"]("fox", "", "browser", request) for _ in range(3)]
        [report, *others] = finished(together(reports))
        assert "fox" in report
        assert others == [report, report]
        measured = Path(finished(events["measured"](["fox"], "", "browser", request, lambda *_, **__: None)))
        assert measured.read_bytes().startswith(b"\x89PNG")
        for names, said in (([], "choose at least one"), (["fox"] * 9, "9 LoRAs are more"), (["no"], "no")):
            with pytest.raises(StudioError, match=said):  # the door tells it
                finished(events["measured"](names, "", "browser", request, lambda *_, **__: None))
    finally:
        trainings.close()
        worker.close()


async def together(several: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*several))
