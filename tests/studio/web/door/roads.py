"""Every road to an event of the pages, as a client takes it."""

from __future__ import annotations

from typing import Any

import httpx

from ..conftest import House

FILE = {"_type": "gradio.FileData"}
"""By which Gradio knows an object for a file."""


def outcome(client: httpx.Client, house: House, road: str, number: int, data: list[Any]) -> str:
    """What an event answers, by one of the roads to it; its results and its errors are text."""
    function = house.pages.fns[number]
    session = f"walk{id(client)}"
    body: dict[str, Any] = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None}
    if road in ("run", "api"):
        return client.post(f"/gradio_api/{road}/predict", json=body).text
    if road == "queue":
        client.post("/gradio_api/queue/join", json=body)
        return told(client, f"/gradio_api/queue/data?session_hash={session}")
    name = str(function.api_name)
    if road == "v2":
        begun = client.post(f"/gradio_api/call/v2/{name}", json={"picture": data[0]})
    else:
        begun = client.post(f"/gradio_api/call/{name}", json={"data": data})
    event = begun.json().get("event_id") if begun.status_code == 200 else None
    return told(client, f"/gradio_api/call/{name}/{event}") if event else begun.text


def told(client: httpx.Client, path: str) -> str:
    """What a stream of events tells, to its end."""
    heard = []
    with client.stream("GET", path) as answer:
        for line in answer.iter_lines():
            heard.append(line)
            if "process_completed" in line or heard[-2:-1] in (["event: complete"], ["event: error"]):
                break
    return "\n".join(heard)


def takers(house: House) -> list[tuple[int, Any]]:
    """The events that are given anything by a client."""
    return [
        (number, function)
        for number, function in house.pages.fns.items()
        if any(not block.stateful for block in function.inputs) and function.fn is not None
    ]
