"""Who is let in, from where, with what."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import fastapi
import gradio as gr
import httpx
import pytest
from fastapi.responses import StreamingResponse
from starlette.routing import Mount, Route

from pipelines.errors import SetupError
from studio.cli import main
from studio.jobs import Trainings
from studio.jobs.owner import owner_of
from studio.web import server
from studio.web.door.closing import ClosingServer
from studio.web.door.files import Files
from studio.web.door.guard import OF_THE_LOGIN_PAGE
from studio.web.door.theme import Look
from studio.web.door.users import read_users
from studio.web.server import Serving, make_app

SMALL = {"width": 32, "height": 32, "steps": 2}


@pytest.fixture
def stranger(guarded: Any) -> Iterator[httpx.Client]:
    with guarded.client() as opened:
        yield opened


def test_a_studio_that_nobody_asks_anything_rests(running: Any) -> None:
    with gr.Blocks(analytics_enabled=False) as pages:
        gr.Markdown("nothing to see")
    assert pages._queue.sleep_when_free < server.QUEUE_REST  # else Gradio has mended it, or named it anew
    server.mounted(pages, Look(), running.worker, Serving())
    assert pages._queue.sleep_when_free == server.QUEUE_REST


def paths_of(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every path with one of its methods, parameters filled in."""
    for route in routes:
        if isinstance(route, Mount):
            yield from paths_of(route.routes, prefix + route.path)
        elif included := getattr(route, "original_router", None):  # what FastAPI makes of include_router
            yield from paths_of(included.routes, prefix)
        elif isinstance(route, Route):
            path = route.path
            for name in route.param_convertors:
                path = path.replace(f"{{{name}:path}}", "x").replace(f"{{{name}}}", "x")
            yield prefix + path, next(iter((route.methods or {"GET"}) - {"HEAD"}), "GET")


def test_no_route_but_those_of_the_login_page_answers_without_a_login(guarded: Any, stranger: Any) -> None:
    trainings = Trainings(guarded.worker.home)
    app = make_app(guarded.worker, trainings, Serving(users={"ann": "secret"}, mcp=True))
    trainings.close()
    paths = dict(paths_of(app.routes))
    assert "/sdapi/v1/txt2img" in paths
    assert len(paths) > 50
    open_ones = [part.rstrip("/") for part in OF_THE_LOGIN_PAGE]
    for path, method in paths.items():
        if path == "/" or any(path.rstrip("/") == part or path.startswith(f"{part}/") for part in open_ones):
            continue
        assert stranger.request(method, path).status_code == 401, path
    assert stranger.get("/gradio_api/mcp/schema").status_code == 401
    assert stranger.get("/something/new").status_code == 401
    assert stranger.get("/").json is not None
    assert '"auth_required":true' in stranger.get("/").text.replace(" ", "")


def test_the_same_users_log_in_everywhere(guarded: Any, stranger: Any) -> None:
    assert stranger.get("/sdapi/v1/samplers", auth=("ann", "secret")).status_code == 200
    assert stranger.get("/sdapi/v1/samplers", auth=("ann", "hidden")).status_code == 401
    assert stranger.get("/sdapi/v1/samplers", auth=("eve", "secret")).status_code == 401
    form = {"username": "ann", "password": "secret"}
    assert stranger.post("/login", data=form).status_code == 200
    assert stranger.get("/sdapi/v1/samplers").status_code == 200  # by the cookie


def test_one_sees_only_ones_own_pictures(guarded: Any, stranger: Any) -> None:
    body = {"prompt": "a fox", "save_images": True, **SMALL}
    ann, bob = ("ann", "secret"), ("bob", "hidden")
    assert stranger.post("/sdapi/v1/txt2img", json=body, auth=ann).status_code == 200
    [picture] = guarded.worker.pictures(owner_of("ann"))
    assert guarded.worker.pictures(owner_of("bob")) == []
    answers = []
    for login in (ann, bob):
        with guarded.client() as own:
            own.post("/login", data={"username": login[0], "password": login[1]})
            answers.append(own.get(f"/gradio_api/file={picture.file}").status_code)
    assert answers == [200, 403]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:80"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({}, 200),
    ],
)
def test_pages_of_other_sites_are_not_answered(client: httpx.Client, headers: Any, status: int) -> None:
    for path in ("/", "/sdapi/v1/samplers"):
        assert client.get(path, headers=headers).status_code == status
    assert "access-control-allow-origin" not in client.get("/sdapi/v1/samplers").headers


def test_a_page_of_our_own_is_answered(running: Any, client: httpx.Client) -> None:
    assert client.get("/sdapi/v1/samplers", headers={"origin": running.address}).status_code == 200


def test_only_json_is_taken_and_not_too_much_of_it(client: httpx.Client, stranger: Any) -> None:
    plain = client.post("/sdapi/v1/txt2img", content="{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    ann = ("ann", "secret")
    large = stranger.post("/sdapi/v1/png-info", json={"image": "x" * 2**21}, auth=ann)
    assert large.status_code == 413
    assert "--max-upload" in large.json()["detail"]
    chunks = (b"x" * 2**16 for _ in range(32))  # no length is stated
    streamed = {"content": chunks, "headers": {"content-type": "application/json"}, "auth": ann}
    with pytest.raises(httpx.HTTPError):
        stranger.post("/sdapi/v1/png-info", **streamed).raise_for_status()


def test_files_are_confined(running: Any, client: httpx.Client) -> None:
    home = running.worker.home
    assert client.get(f"/gradio_api/file={home.path / 'studio.sqlite'}").status_code == 403
    assert client.get(f"/gradio_api/file={home.path / 'loras' / 'fox.safetensors'}").status_code == 403
    assert client.get("/gradio_api/file=/etc/passwd").status_code == 403
    assert all(folder.is_relative_to(home.path) for folder in Files(running.worker).shown)


def test_listening_to_others_needs_a_login(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["web", "--listen"]) == 2
    assert "--auth-file FILE" in capsys.readouterr().err
    assert not home.exists()


def test_logins_come_from_flags_a_file_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "logins"
    file.write_text("# ours\nbob:b:c\n\n")
    monkeypatch.setenv("LORA_STUDIO_AUTH", "eve:e, kim:k")
    assert read_users(["ann:a"], str(file)) == {"ann": "a", "bob": "b:c", "eve": "e", "kim": "k"}
    with pytest.raises(SetupError, match=r"--auth names nobody; write logins into a file for --auth-file"):
        read_users([" "], None)


@pytest.mark.parametrize("listening", [False, True])
def test_where_no_password_can_be_typed_a_file_is_suggested(
    monkeypatch: pytest.MonkeyPatch, listening: bool
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(
        SetupError, match=r"no terminal .* write logins into a file for --auth-file"
    ) as refused:
        read_users(["supersecret"], None, listening=listening)
    assert "supersecret" not in str(refused.value)
    assert "--auth NAME:PASSWORD" not in str(refused.value)


def test_the_next_free_port_is_taken() -> None:
    first = server._bound(Serving(port=7950))
    taken = first.getsockname()[1]
    second = server._bound(Serving(port=taken))
    assert second.getsockname()[1] > taken
    with pytest.raises(SetupError, match="no free port"):
        server._bound(Serving(port=taken, exact=True))
    first.close()
    second.close()


def test_mcp_without_its_package_is_refused_with_the_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio.mcp", None)
    assert main(["web", "--mcp"]) == 2
    assert "pip install 'lora-studio[mcp]'" in capsys.readouterr().err


def test_mcp_that_does_not_answer_is_a_problem(running: Any) -> None:
    class Listening:
        def __init__(self, port: int) -> None:
            self.port = port

        def getsockname(self) -> tuple[str, int]:
            return ("127.0.0.1", self.port)

    port = int(running.address.rsplit(":", 1)[1])
    assert server._mcp_problem(Serving(), Listening(port)) == ""  # type: ignore[arg-type]
    assert "does not answer" in server._mcp_problem(Serving(), Listening(9))  # type: ignore[arg-type]


def test_a_server_that_closes_ends_the_streams_that_pages_listen_to(caplog: pytest.LogCaptureFixture) -> None:
    app = fastapi.FastAPI()

    @app.get("/endless")
    def endless() -> StreamingResponse:
        async def beats() -> AsyncIterator[bytes]:
            while True:
                yield b"beat"
                await asyncio.sleep(0.05)

        return StreamingResponse(beats())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        closing = ClosingServer(app)
        running = threading.Thread(target=closing.run, kwargs={"sockets": [listening]})
        running.start()
        with httpx.stream("GET", f"http://127.0.0.1:{listening.getsockname()[1]}/endless") as answer:
            heard = answer.iter_raw()
            assert next(heard) == b"beat"
            closing.should_exit = True
            rest = list(heard)  # it ends, and as a whole answer
    running.join(5)
    assert not running.is_alive()
    assert len(rest) < 40
    assert caplog.records == []


def test_windows_is_asked_for_a_port_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """There SO_REUSEADDR would let a second server listen at the first one's port."""
    asked: list[int] = []

    class Listening:
        def setsockopt(self, level: int, option: int, value: int) -> None:
            asked.append(option)

    server._own(cast(socket.socket, Listening()))
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", ~socket.SO_REUSEADDR, raising=False)
    server._own(cast(socket.socket, Listening()))
    assert asked == [socket.SO_REUSEADDR, ~socket.SO_REUSEADDR]
