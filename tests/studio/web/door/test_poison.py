"""Whatever is sent to whatever event: it is answered at once, and costs nobody else anything.

The events are the server's own, so one that is added is tried by itself.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from studio.drafts.draft import Draft
from studio.jobs import JobState
from studio.jobs.owner import owner_of

from ..conftest import House
from .roads import takers

POISONS: dict[str, Any] = {
    "a megabyte in one word": "x" * 2**20,
    "a megabyte of spaces": " " * 2**20,
    "brackets": "(" * 100_000,
    "tags": "<lora:a:1>" * 50_000,
    "words": "fox " * 200_000,
    "commas": "1," * 200_000,
    "half a character": "\ud800",
    "a NUL": "a\0b",
    "a large number": 1e308,
    "a larger whole number": 10**30,
    "a negative number": -1e30,
    "nothing": None,
    "a list": ["x"] * 100_000,
    "a list of lists": [[[[]]]],
    "an object": {"a": {"b": 1}},
    "true": True,
}
LONGEST = 10.0
"""Seconds within which anything is answered on a busy machine; a quiet one takes a tenth."""


@pytest.mark.parametrize("poison", POISONS)
def test_every_event_answers_whatever_is_sent(house: House, poison: str) -> None:
    value = POISONS[poison]
    slow = {}
    with house.client("bob") as bob:
        for number, function in takers(house):
            if function.name in ("loaded", "chosen"):  # they may load a model, which takes its time
                continue
            data = [None if block.stateful else value for block in function.inputs]
            body = json.dumps({"data": data, "fn_index": number, "session_hash": f"poison{number}"})
            began = time.monotonic()
            headers = {"content-type": "application/json"}
            answer = bob.post("/gradio_api/run/predict", content=body, headers=headers)
            seconds = time.monotonic() - began
            assert answer.status_code in (200, 400, 403, 404, 413, 422, 500), (
                function.name,
                answer.text[:200],
            )
            if seconds > LONGEST:
                slow[str(function.name)] = round(seconds, 1)
    assert slow == {}


def test_a_victim_draws_while_poison_rains(house: House, sdxl_folder: Any) -> None:
    """Somebody else's job is done, and not much later than it would be."""
    stop = threading.Event()

    def rain() -> None:
        with house.client("bob") as bob:
            while not stop.is_set():
                for prompt in ("x" * 2**20, "\ud800", "(" * 50_000, "a" * 19_000):
                    for size in (32, 16384, 10**30):
                        call = {
                            "data": [prompt, [], "", "merge", -1, 2, -1, size, size, "", 2_000_000, "", 0]
                        }
                        headers = {"content-type": "application/json"}
                        bob.post("/gradio_api/run/compose", content=json.dumps(call), headers=headers)
                        if stop.is_set():
                            return

    raining = threading.Thread(target=rain)
    raining.start()
    try:
        draft = Draft({"prompt": "a victim", "width": 32, "height": 32, "steps": 4})
        job = house.worker.submit(owner_of("ann"), [draft] * 3, model=sdxl_folder.name)
        until = time.monotonic() + 120
        while not (view := house.worker.view(job, owner_of("ann"))).state.over:  # type: ignore[union-attr]
            assert time.monotonic() < until
            time.sleep(0.1)
        assert view is not None
        assert view.state is JobState.DONE, view.error
    finally:
        stop.set()
        raining.join()


@pytest.mark.parametrize(
    "body", [{"count": 2_000_000}, {"seed": 2**64}, {"loras": ["a"] * 100_000}, {"wait_seconds": 1e308}]
)
def test_the_loop_stays_free(house: House, body: dict[str, Any]) -> None:
    """A function for programs runs where everybody's requests are answered; it never counts to millions there."""
    slowest = 0.0
    done = threading.Event()

    def ask() -> None:
        with house.client("bob") as bob:
            named = {"prompt": "a fox", "steps": -1, "wait_seconds": 0, **body}
            bob.post("/gradio_api/call/v2/compose", json=named)
            done.set()

    asking = threading.Thread(target=ask)
    asking.start()
    with httpx.Client(base_url=house.address, trust_env=False, timeout=60) as other:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            began = time.monotonic()
            assert other.get("/gradio_api/app_id").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
    asking.join()
    assert slowest < 5
