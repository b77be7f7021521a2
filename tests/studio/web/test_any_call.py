"""Whatever is sent to the server: it answers, soon, with a message for people, and never with a fault of its own."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import gradio as gr
import pytest
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pipelines.home import Home
from studio.drafts.fields import FIELDS
from studio.jobs import Worker
from studio.jobs.gate import Trust
from studio.web import api
from studio.web.door.guard import LARGEST_EVENT, LARGEST_JSON, LARGEST_LOGIN
from studio.web.door.routes import GRADIO
from studio.web.door.theme import Look
from studio.web.server import Serving, mounted

from ...fuzzing import cases
from ...odd_values import changed_bytes, changed_texts, changed_values, json_of, one_of, plain, texts
from ..pictures.test_any_picture import files

LARGEST = 2**20
# the server's threads draw random numbers while Hypothesis makes its values
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


class Idle(Worker):
    """Takes jobs as always, and stops them at once."""

    def submit(self, owner: str, drafts: Any, **more: Any) -> str:
        id = super().submit(owner, list(drafts)[:2], **more)
        self.cancel(id, owner)
        return id


@pytest.fixture(scope="module")
def client(served_home: Home) -> Iterator[TestClient]:
    worker = Idle(served_home, trust=Trust(paths=False, downloads=False))
    with gr.Blocks(analytics_enabled=False) as pages:
        gr.Markdown("nothing to see")
        api.add(worker)
    app = mounted(pages, Look(), worker, Serving(largest=LARGEST))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client
    worker.close()


def answered(answer: Any) -> Any:
    """A fault of ours answers 500 and says nothing. What it says is JSON that browsers read, on one short line."""
    assert answer.status_code < 500, answer.text[:500]
    if answer.status_code >= 400:
        assert len(answer.text) < 4000
    if "json" in answer.headers.get("content-type", ""):
        return json.loads(answer.text, parse_constant=_never)
    return None


def _never(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def told(answer: Any) -> None:
    """As `answered`; to whatever one of our functions raises, Gradio answers 500 with our message."""
    if answer.status_code != 500:
        answered(answer)
        return
    assert answer.headers["content-type"] == "application/json", answer.text[:300]
    assert answer.json()["error"]
    assert len(answer.text) < 4000


def sent(client: TestClient, path: str, body: str | bytes) -> Any:
    content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    return client.post(path, content=content, headers={"content-type": "application/json"})


CALL = {
    "prompt": "a fox <lora:hat:0.5>",
    "negative_prompt": "",
    "seed": 7,
    "steps": 2,
    "cfg_scale": 3.5,
    "width": 32,
    "height": 32,
    "sampler_name": "Euler",
    "scheduler": "Karras",
    "batch_size": 1,
    "n_iter": 1,
    "send_images": True,
    "save_images": False,
    "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_vae": "None"},
    "enable_hr": False,
    "styles": [],
    "subseed": -1,
    "clip_skip": 2,
    "lora": [{"path": "fox.safetensors", "multiplier": "0.5", "is_high_noise": False}],
    "controlnet_units": [{"enabled": False}],
    "alwayson_scripts": {
        "LoRA Studio": {"args": ["switch:interval=3", {"reuse": 3, "crop": [0, 64]}]},
        "ADetailer": {"args": [False, {"ad_model": "None"}]},
    },
    "init_images": ["data:image/png;base64," + base64.b64encode(files()[0]).decode()],
    "resize_mode": 1,
    "denoising_strength": 0.5,
}
bodies = st.one_of(changed_values(CALL).map(json_of), plain.map(json_of), changed_texts([json.dumps(CALL)]))


@cases(ci=100, body=bodies, path=one_of(["txt2img", "img2img"]))
def test_every_call_of_a1111s_clients_is_answered(client: TestClient, body: str, path: str) -> None:
    answered(sent(client, f"/sdapi/v1/{path}", body))


@cases(
    ci=60,
    body=st.one_of(
        st.dictionaries(
            one_of(["sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "image"]), plain, max_size=2
        ).map(json_of),
        texts,
    ),
    path=one_of(["options", "png-info", "interrupt", "refresh-loras", "skip", "server-stop", "refresh-vae"]),
)
def test_every_setting_of_a1111s_clients_is_answered(client: TestClient, body: str, path: str) -> None:
    answered(sent(client, f"/sdapi/v1/{path}", body))


@cases(ci=60, data=changed_bytes(files()))
def test_every_sent_picture_is_answered(client: TestClient, data: bytes) -> None:
    body = json.dumps({"image": base64.b64encode(data).decode()})
    answered(sent(client, "/sdapi/v1/png-info", body))


NAMES = ["compose", "compare", "job", "cancel", "library", "inspect", "picture_info", "models", "methods"]
SAID = {
    **{field.argument: field.empty for field in FIELDS},
    "prompt": "a fox",
    "loras": ["fox=0.8"],
    "method": "switch",
    "methods": ["merge"],
    "count": 1,
    "model": "",
    "wait_seconds": 0,
    "id": "x",
    "first": 1,
    "search": "fox",
    "fitting_only": True,
    "name": "fox",
    "picture": {"path": "/x"},
    "init_image": None,
}


@cases(
    ci=100,
    data=st.one_of(
        st.lists(plain, max_size=16),
        changed_values(["a fox", ["fox=0.8"], "", "switch:interval=3", 7, 2, 3.5, 32, 32, "Euler", 1, "", 0]),
        plain,
    ),
    name=one_of(NAMES),
)
def test_every_call_of_a_program_is_answered(client: TestClient, data: Any, name: str) -> None:
    answer = sent(client, f"/gradio_api/run/{name}", json_of({"data": data}))
    told(answer)


@cases(
    ci=60,
    body=st.one_of(
        changed_values({"data": ["a"], "fn_index": 1, "session_hash": "s", "event_id": "e"}).map(json_of),
        texts,
    ),
    path=one_of(["run/compose", "call/compose", "call/v2/compose", "queue/join", "cancel", "reset", "api/x"]),
)
def test_every_event_is_answered(client: TestClient, body: str, path: str) -> None:
    answer = sent(client, f"/gradio_api/{path}", body)
    told(answer)


ROADS = [way.path.partition("{")[0] for way in GRADIO] + [
    "/sdapi/v1/",
    "/gradio_api/file=/",
    "/gradio_api/call/compose/",
]


@cases(
    ci=100,
    road=one_of(ROADS),
    rest=st.one_of(texts, changed_texts(["../../etc/passwd", "a/b.css", "en.js", "192"])),
    query=texts,
)
def test_every_path_is_answered(client: TestClient, road: str, rest: str, query: str) -> None:
    if road.startswith(("/gradio_api/heartbeat", "/gradio_api/queue/data")):
        return  # these go on until the client leaves
    path = road + quote(rest[:3000].encode("utf-8", "surrogatepass"), safe="/%?&=")
    for address in (path, f"{path}?{quote(query[:3000].encode('utf-8', 'surrogatepass'), safe='&=')}"):
        answered(client.get(address))


@cases(ci=60, data=changed_bytes(files()), name=texts, more=texts)
def test_every_upload_is_answered(client: TestClient, data: bytes, name: str, more: str) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name[:400]}"\r\n{more[:200]}\r\n\r\n'
    body = head.encode("utf-8", "surrogatepass") + data + b"\r\n--x--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/gradio_api/upload", content=body, headers=kind)
    kept = answered(answer) if answer.status_code != 507 else None
    if answer.status_code == 200 and kept:
        told(sent(client, "/gradio_api/run/picture_info", json.dumps({"data": [{"path": kept[0]}]})))


@pytest.mark.parametrize(
    ("path", "kind", "largest"),
    [
        ("/gradio_api/upload", "multipart/form-data; boundary=x", LARGEST),
        ("/sdapi/v1/png-info", "application/json", min(LARGEST_JSON, LARGEST)),
        ("/sdapi/v1/txt2img", "application/json", min(LARGEST_JSON, LARGEST)),
        ("/gradio_api/run/compose", "application/json", min(LARGEST_EVENT, LARGEST)),
        ("/gradio_api/queue/join", "application/json", min(LARGEST_EVENT, LARGEST)),
        ("/login", "application/x-www-form-urlencoded", LARGEST_LOGIN),
    ],
)
def test_a_body_without_a_stated_length_that_is_too_large_is_refused(
    client: TestClient, path: str, kind: str, largest: int
) -> None:
    """And no more of it is read than is allowed, and one piece."""
    piece, read, heard = 2**14, 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        head = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            if not read
            else b""
        )
        read += piece
        return {"type": "http.request", "body": head + b"x" * piece, "more_body": read < 8 * largest}

    async def send(message: dict[str, Any]) -> None:
        heard.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", kind.encode()), (b"transfer-encoding", b"chunked")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(client.app(scope, receive, send))
    assert heard[0]["status"] == 413, heard
    assert "larger than" in json.loads(heard[1]["body"])["error"]
    assert read <= largest + piece
