"""Nobody comes where they do not belong: a walk over all routes, spellings and events of the whole studio, as nobody,
as somebody else, and as the owner. The lists are the server's own, so what is added later is walked over too."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import httpx
import pytest
from PIL import Image

from studio.jobs.owner import owner_of
from studio.web.door.attempts import FREE, Attempts
from studio.web.door.claims import Claims
from studio.web.door.files import LIFETIME, NOT_YOURS, Files, harmless
from studio.web.door.guard import _check_values
from studio.web.door.routes import GRADIO, HEALTH, MCP, way_to
from studio.web.door.uploads import router as uploads
from studio.web.parts.words import words_of

from ..conftest import USERS, House
from ..test_server import paths_of
from .roads import FILE, outcome, takers, told


@pytest.fixture(scope="module")
def ann(house: House) -> Iterator[httpx.Client]:
    with house.client("ann") as opened:
        yield opened


@pytest.fixture(scope="module")
def bob(house: House) -> Iterator[httpx.Client]:
    with house.client("bob") as opened:
        yield opened


# -- the ways in -------------------------------------------------------------------------------------------


def spelled(path: str) -> Iterator[str]:
    """The path in other words."""
    yield path
    yield f"{path}/"
    yield f"/{path}"
    yield path.replace("/", "//", 2)
    yield f"/.{path}"
    yield f"/x/..{path}"
    yield path.replace("a", "%61", 1)
    yield path.upper()


def test_what_is_not_listed_is_not_there(house: House, bob: httpx.Client) -> None:
    """Whatever Gradio answers to, and however it is written, is either a way in or 404; and nobody gets beyond the
    login page."""
    walked = 0
    with house.client() as nobody:
        for route, method in sorted(set(paths_of(house.app.routes))):
            for path in spelled(route):
                sent = bob.build_request(method, path).url.path  # a client takes dots out by itself
                way = way_to(sent, method, (*GRADIO, *MCP, HEALTH))
                if way is None and not sent.startswith("/sdapi/"):
                    assert nobody.request(method, path).status_code in (401, 404), path
                    assert bob.request(method, path).status_code == 404, path
                elif way is None or not way[0].open:
                    assert nobody.request(method, path).status_code == 401, path
                walked += 1
    assert walked > 400


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/component_server", "/gradio_api/deep_link", "/gradio_api/process_recording", "/gradio_api/runs",
        "/gradio_api/vibe-code", "/gradio_api/dev/reload", "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/token",
        "/gradio_api/file/etc/passwd", "/gradio_api/stream/a/b/1/playlist-file", "/monitoring", "/gradio_api/new",
        "/gradio_api/custom_component/a/server/b/c", "/docs", "/openapi.json", "/?deep_link=abc",
    ],
)  # fmt: skip
def test_what_the_studio_does_not_need_is_shut(bob: httpx.Client, path: str) -> None:
    assert bob.get(path).status_code == 404
    assert bob.post(path, json={}).status_code == 404


def test_a_way_stands_for_whole_paths(house: House) -> None:
    found = way_to("/gradio_api/call/compose/abc", "GET", GRADIO)
    assert found is not None
    assert found[1] == {"name": "compose", "event": "abc"}
    assert way_to("/gradio_api/call/compose/abc/more", "GET", GRADIO) is None
    assert way_to("/gradio_api/upload", "GET", GRADIO) is None
    assert way_to("//login", "POST", GRADIO) is None


# -- files that are somebody's -----------------------------------------------------------------------------


def named_by_an_attacker(house: House, fifo: Path) -> list[str]:
    picture, upload = house.anns
    home = house.worker.home.path
    return [
        "/etc/passwd", "/proc/self/environ", str(home / "studio.sqlite"), str(picture), str(upload), str(fifo),
        f"/{picture}", f"{picture.parent}/./{picture.name}", f"{home}/uploads/../studio.sqlite", "studio.sqlite",
        os.path.relpath(picture), str(picture.parent), str(home / "uploads"), "", "/", "\0", "http://127.0.0.1:9/x.png",
        "https://example.com/x.png", f"file://{picture}", "~/.ssh/id_rsa", "C:\\Windows\\win.ini", "x" * 10_000,
    ]  # fmt: skip


def names(path: str) -> list[Any]:
    """The shapes in which a file can be named."""
    return [
        {"path": path, "meta": FILE},
        {"path": path},
        {"path": path, "url": f"http://127.0.0.1:9/{path[:100]}", "meta": FILE, "is_stream": True},
        [{"image": {"path": path, "meta": FILE}, "caption": None}],
    ]


def copies_of(secret: bytes, house: House) -> list[Path]:
    return [
        file
        for file in (house.worker.home.path / "uploads").rglob("*")
        if file.is_file() and secret in file.read_bytes()
    ]


def test_no_event_opens_what_is_not_ones_own(house: House, bob: httpx.Client, tmp_path: Path) -> None:
    """Every event, every input, directly: refused with the same words, whatever the file is."""
    events = takers(house)
    assert len(events) > 40
    for number, function in events:
        for place, block in enumerate(function.inputs):
            if block.stateful:
                continue
            data = [None] * len(function.inputs)
            data[place] = {"path": str(house.anns[0]), "meta": FILE}
            answer = outcome(bob, house, "run", number, data)
            assert NOT_YOURS in answer, (function.name, place, answer)


@pytest.mark.parametrize("road", ["run", "api", "queue", "call", "v2"])
def test_no_road_leads_to_a_file_that_is_not_ones_own(
    house: House, bob: httpx.Client, road: str, tmp_path: Path
) -> None:
    fifo = house.worker.home.outputs / f"pipe-{road}.png"
    os.mkfifo(fifo)
    [number] = [n for n, function in house.pages.fns.items() if function.api_name == "picture_info"]
    for path in named_by_an_attacker(house, fifo):
        for value in names(path)[: None if road == "run" else 1]:  # all roads end in one place
            answer = outcome(bob, house, road, number, [value])
            assert NOT_YOURS in answer or "must be an uploaded file" in answer, (path, value, answer)
            assert not path or len(path) < 3 or path not in answer
    assert copies_of(b"root:", house) == []


@pytest.mark.parametrize("road", ["run", "api", "queue", "call", "v2"])
def test_an_owner_uses_uploads_and_pictures_by_every_road(house: House, ann: httpx.Client, road: str) -> None:
    [number] = [n for n, function in house.pages.fns.items() if function.api_name == "picture_info"]
    for file in house.anns:
        assert "LoRA Studio" in outcome(ann, house, road, number, [{"path": str(file), "meta": FILE}])


def test_mcp_is_such_a_road(house: House, ann: httpx.Client, bob: httpx.Client) -> None:
    def called(client: httpx.Client, path: str) -> str:
        call = {"name": "picture_info", "arguments": {"picture": {"path": path, "meta": FILE}}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        accepted = {"accept": "application/json, text/event-stream"}
        return client.post("/gradio_api/mcp/", json=message, headers=accepted).text

    for path in ("/etc/passwd", *map(str, house.anns), "http://127.0.0.1:9/"):
        assert NOT_YOURS in called(bob, path)
    assert "LoRA Studio" in called(ann, str(house.anns[1]))


def test_programs_of_two_users_do_not_see_each_others_jobs(house: House) -> None:
    """MCP tells no name to Gradio, so the guard's counts."""

    def called(name: str, tool: str, arguments: Any) -> str:
        message = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments},
        }
        accepted = {"accept": "application/json, text/event-stream"}
        with house.client(auth=(name, USERS[name])) as client:
            return client.post("/gradio_api/mcp/", json=message, headers=accepted).text

    small = {"prompt": "a hat", "width": 32, "height": 32, "steps": 1, "wait_seconds": 0}
    told = called("ann", "compose", small)
    [job] = [view.id for view in house.worker.heads(owner_of("ann"), limit=1)]
    assert job in told
    assert "you have no job" in called("bob", "job", {"id": job})
    assert "you have no job" not in called("ann", "job", {"id": job, "wait_seconds": 30})


def test_files_are_served_to_their_owner_alone(house: House, ann: httpx.Client, bob: httpx.Client) -> None:
    for file in house.anns:
        for spelling in (str(file), f"{file.parent}/./{file.name}", f"{file.parent}//{file.name}"):
            assert ann.get(f"/gradio_api/file={spelling}").status_code == 200
            assert bob.get(f"/gradio_api/file={spelling}").status_code == 403
            assert bob.get(f"/gradio_api/file/{spelling}").status_code == 404
    for path in (
        "http://127.0.0.1:9/x",
        "https://example.com/x",
        "/etc/passwd",
        "",
        "//etc/passwd",
        "%00",
        "x" * 9000,
    ):
        assert ann.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_a_link_among_ones_files_leads_nowhere_else(house: House, ann: httpx.Client) -> None:
    link = house.anns[1].with_name("link.png")
    link.symlink_to(house.worker.home.path / "studio.sqlite")
    assert ann.get(f"/gradio_api/file={link}").status_code == 403
    link.unlink()
    link.symlink_to(link)
    assert ann.get(f"/gradio_api/file={link}").status_code == 403
    link.unlink()


def test_uploads_are_closed_to_other_users_of_the_computer(house: House) -> None:
    folder = house.anns[1]
    while folder != house.worker.home.path / "uploads":
        folder = folder.parent
        if folder.parent.name in ("uploads", house.worker.home.path.name):
            assert folder.stat().st_mode & 0o077 == 0, folder


def test_gradio_itself_refuses_what_was_not_uploaded(house: House) -> None:
    """As after `launch()`; where this fails, Gradio sets it when pages are mounted, or checks by another name."""
    with gr.Blocks(analytics_enabled=False) as pages:
        gr.Markdown("nothing")
    assert pages.has_launched is False
    assert house.pages.has_launched is True
    from gradio.context import LocalContext
    from gradio.exceptions import InvalidPathError
    from gradio.processing_utils import _check_allowed

    token = LocalContext.blocks.set(house.pages)
    try:
        with pytest.raises(InvalidPathError):
            _check_allowed("/etc/passwd", True)
    finally:
        LocalContext.blocks.reset(token)


def test_gradio_has_the_parts_that_the_door_hangs_on(house: House) -> None:
    for owner, name in (
        (gr.Blocks, "process_api"), (gr.Blocks, "postprocess_data"), (gr.Blocks, "preprocess_data"),
        (type(house.pages._queue), "push"),
    ):  # fmt: skip
        assert callable(getattr(owner, name))
    assert all(
        block.GRADIO_CACHE.startswith(str(house.worker.home.path)) for block in house.pages.blocks.values()
    )


def test_a_dropped_picture_is_read_by_the_pages_own_events(house: House, ann: httpx.Client) -> None:
    """Gradio makes a file of its own of what its components are given."""
    [number] = [n for n, function in house.pages.fns.items() if function.name == "made_with"]
    answer = outcome(ann, house, "run", number, [{"path": str(house.anns[1]), "meta": FILE}, None])
    assert "A picture by LoRA Studio" in answer


def test_what_goes_out_names_no_file_of_the_server() -> None:
    said = {"note": [{"path": "/etc/passwd", "meta": FILE, "orig_name": "x"}], "meta": "kept", "path": "kept"}
    assert harmless({"a": 1, "meta": {"b": 2}}) == {"a": 1, "meta": {"b": 2}}
    assert harmless(said["note"]) == [{"path": "/etc/passwd", "orig_name": "x"}]
    assert harmless({"path": "x", "meta": "no object"}) == {"path": "x"}


def test_a_header_that_names_a_file_as_gradio_does_opens_nothing(house: House, ann: httpx.Client) -> None:
    """Notes beside a LoRA are JSON, and are shown as JSON."""
    lora = house.worker.home.made(house.worker.home.path / "loras") / "trap.safetensors"
    lora.write_bytes((2).to_bytes(8, "little") + b"{}")
    lora.with_suffix(".json").write_text(
        json.dumps({"notes": "x", "tags": [{"path": "/etc/passwd", "meta": FILE}]})
    )
    ann.post("/gradio_api/run/library", json={"data": ["", "", False]})
    ann.post("/gradio_api/run/inspect", json={"data": ["trap"]})
    assert copies_of(b"root:", house) == []
    lora.unlink()
    lora.with_suffix(".json").unlink()


def test_uploads_go_when_nobody_uses_them(house: House, tmp_path: Path) -> None:
    files = Files(house.worker)
    kept, old = files.place("kept.txt", "somebody"), files.place("old.txt", "somebody")
    for file in (kept, old):
        file.write_text("x")
    os.utime(old, (time.time() - 2 * LIFETIME,) * 2)
    files._swept = 0.0
    files.folder("somebody")
    assert kept.exists()
    assert not old.exists()


def test_an_owner_may_hold_so_much(house: House, monkeypatch: pytest.MonkeyPatch, bob: httpx.Client) -> None:
    monkeypatch.setattr("studio.web.door.files.MOST_HELD", 1000)
    assert bob.post("/gradio_api/upload", files={"files": ("a.bin", b"x" * 2000)}).status_code == 200
    refused = bob.post("/gradio_api/upload", files={"files": ("b.bin", b"x")})
    assert refused.status_code == 507
    assert "hours after they were last used" in refused.json()["detail"]


@pytest.mark.parametrize("name", ["../../x.png", "x" * 300 + ".png", ".", "a/b.png", "\\..\\x", "é.png"])
def test_an_upload_lands_in_its_owners_folder_whatever_its_name(
    house: House, bob: httpx.Client, name: str
) -> None:
    answer = bob.post("/gradio_api/upload", files={"files": (name, b"x")})
    if answer.status_code == 200:
        [path] = answer.json()
        assert Files(house.worker).may_see(path, owner_of("bob"))
        assert not Files(house.worker).may_see(path, owner_of("ann"))
    else:
        assert answer.status_code in (400, 507)


# -- sessions ----------------------------------------------------------------------------------------------


def test_a_session_is_its_logins(house: House, ann: httpx.Client, bob: httpx.Client) -> None:
    begun = ann.post("/gradio_api/call/models", json={"data": []}).json()["event_id"]
    body = {"data": [], "session_hash": "anns-own"}
    assert ann.post("/gradio_api/run/models", json=body).status_code == 200
    assert bob.post("/gradio_api/run/models", json=body).status_code == 403
    assert bob.post("/gradio_api/call/models", json=body).status_code == 403
    assert bob.post("/gradio_api/queue/join", json={**body, "fn_index": 0}).status_code == 403
    assert bob.get("/gradio_api/queue/data", params={"session_hash": "anns-own"}).status_code == 403
    assert bob.get("/gradio_api/queue/data?session_hash=bobs&session_hash=anns-own").status_code == 403
    assert bob.get("/gradio_api/heartbeat/anns-own").status_code == 403
    assert (
        bob.post(
            "/gradio_api/cancel", json={"session_hash": "b", "fn_index": 0, "event_id": begun}
        ).status_code
        == 403
    )
    assert bob.get(f"/gradio_api/call/models/{begun}").status_code == 403
    assert "complete" in told(ann, f"/gradio_api/call/models/{begun}")


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 200, 7, None, ["a"], {"a": 1}])
def test_malformed_sessions_are_nobodys(name: Any) -> None:
    assert not Claims().belongs(name, "ann")


def test_a_flood_of_sessions_costs_its_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.web.door.claims.MOST_OF_ONE", 10)
    claims = Claims()
    assert claims.belongs("anns", "ann")
    for number in range(100):
        assert claims.belongs(f"b{number}", "bob")
    assert not claims.belongs("anns", "bob")
    assert claims.belongs("b0", "ann")  # bob's first ones are forgotten
    assert len(claims._login_of) == 12


# -- logins ------------------------------------------------------------------------------------------------


def test_wrong_passwords_wait_longer_and_longer() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for _ in range(FREE + 1):
        assert attempts.begin("1.2.3.4", "ann") == 0
    assert attempts.begin("1.2.3.4", "ann") == 1
    assert attempts.begin("5.6.7.8", "ann") == 0  # another address
    assert attempts.begin("1.2.3.4", "bob") == 0  # another name
    now[0] += 1
    assert attempts.begin("1.2.3.4", "ann") == 0
    assert attempts.begin("1.2.3.4", "ann") == 2
    now[0] += 2
    assert attempts.begin("1.2.3.4", "ann") == 0
    attempts.succeeded("1.2.3.4", "ann")
    assert attempts.begin("1.2.3.4", "ann") == 0


@pytest.mark.parametrize("way", ["basic", "page"])
def test_a_guesser_is_slowed_down_and_nobody_else_is(house: House, way: str) -> None:
    name = f"guessed-{way}"
    with house.client() as client:

        def guess(number: int) -> int:
            if way == "basic":
                return client.get("/sdapi/v1/samplers", auth=(name, f"{number}")).status_code
            return client.post("/login", data={"username": name, "password": f"{number}"}).status_code

        found = [guess(number) for number in range(60)]
        assert found.count(429) > 40
        assert client.get("/sdapi/v1/samplers", auth=("bob", USERS["bob"])).status_code == 200
        assert client.post("/login", data={"username": "ann", "password": USERS["ann"]}).status_code == 200


@pytest.mark.parametrize("kind", ["urlencoded", "multipart", "multipart with another name hidden in it"])
def test_a_guess_is_counted_by_the_name_that_gradio_reads(house: House, kind: str) -> None:
    name = f"hidden {kind}"
    found = []
    with house.client() as client:
        for number in range(FREE + 12):
            fields = {"username": name, "password": f"{number}"}
            if kind == "urlencoded":
                sent: dict[str, Any] = {"data": fields}
            else:
                hidden = {"z": f"&username=r{number}&"} if kind.endswith("it") else {}
                sent = {"files": {key: (None, value) for key, value in (fields | hidden).items()}}
            found.append(client.post("/login", **sent).status_code)
    assert found[: FREE + 1] == [400] * (FREE + 1)
    assert found.count(429) >= 9


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"username": "ann", "password": "secret of ann"}}, 415),
        ({"content": b"username=ann", "headers": {"content-type": "text/plain"}}, 415),
        ({"data": {"username": ["ann", "bob"], "password": "x"}}, 400),
        ({"data": {"password": "x"}}, 400),
        ({"data": {f"field{number}": "x" for number in range(200)}}, 400),
    ],
)
def test_a_login_is_one_form_with_one_name(house: House, sent: Any, status: int) -> None:
    with house.client() as client:
        answer = client.post("/login", **sent)
        assert answer.status_code == status
        assert answer.headers["x-frame-options"] == "DENY"


def test_made_up_names_push_out_no_guessers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.web.door.attempts.MOST_REMEMBERED", 50)
    attempts = Attempts(lambda: 0.0)
    for _ in range(FREE + 1):
        attempts.begin("1.2.3.4", "ann")
    for number in range(1000):
        attempts.begin("1.2.3.4", f"made up {number}")
    assert attempts.begin("1.2.3.4", "ann") > 0


def test_a_program_that_logs_in_by_basic_has_all_that_a_page_has(house: House) -> None:
    [file, _] = house.anns
    with house.client(auth=("ann", USERS["ann"])) as program:
        assert program.get("/config").status_code == 200
        assert program.get(f"/gradio_api/file={file}").status_code == 200
        assert program.post("/gradio_api/run/models", json={"data": []}).status_code == 200
        assert program.get("/gradio_api/user").json() == "ann"
    with house.client(auth=("bob", USERS["bob"])) as program:
        assert program.get(f"/gradio_api/file={file}").status_code == 403


def test_many_guesses_at_once_get_no_further(house: House) -> None:
    found: list[int] = []

    def guess(number: int) -> None:
        with house.client() as client:
            answer = client.post("/login", data={"username": "all-at-once", "password": f"{number}"})
            found.append(answer.status_code)

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(400) <= FREE + 4
    assert 200 not in found


def test_nobody_is_logged_out_by_another_site(house: House) -> None:
    with house.client("ann") as client:
        assert client.get("/logout").status_code == 403
        assert client.get("/logout", headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert client.get("/logout", headers={"origin": "http://evil.example"}).status_code == 403
        assert client.get("/sdapi/v1/samplers").status_code == 200


def test_one_logs_out_from_here(house: House) -> None:
    with house.client("ann") as client:
        client.get("/logout", params={"all_session": "false"}, headers={"sec-fetch-site": "same-origin"})
        assert client.get("/sdapi/v1/samplers").status_code == 401


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "/gradio_api/file=/x", 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, "/config", 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "/", 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "/config", 403),
        ({"sec-fetch-site": "same-origin"}, "/config", 200),
        ({"sec-fetch-site": "none"}, "/config", 200),
    ],
)
def test_other_sites_may_link_to_the_first_page_alone(
    bob: httpx.Client, headers: dict[str, str], path: str, status: int
) -> None:
    assert bob.get(path, headers=headers).status_code == status


def test_a_page_is_framed_by_nobody_and_fetches_from_nowhere_else(house: House, ann: httpx.Client) -> None:
    page = ann.get("/").headers
    assert page["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in page["content-security-policy"]
    assert "img-src 'self' data: blob:" in page["content-security-policy"]
    file = ann.get(f"/gradio_api/file={house.anns[0]}").headers
    assert "sandbox" in file["content-security-policy"]
    assert file["x-content-type-options"] == "nosniff"
    with house.client() as nobody:
        for answer in (
            nobody.get("/sdapi/v1/samplers"),
            nobody.get("/nowhere"),
            nobody.get("/assets/none.js"),
        ):
            assert answer.headers["x-frame-options"] == "DENY"


def test_an_uploaded_page_is_not_run(house: House, bob: httpx.Client) -> None:
    page = ("x.html", b"<script>alert(1)</script>", "text/html")
    [path] = bob.post("/gradio_api/upload", files={"files": page}).json()
    answer = bob.get(f"/gradio_api/file={path}")
    assert "sandbox" in answer.headers["content-security-policy"]


def test_notes_are_words() -> None:
    note = (
        '<p>Use <b>0.8</b></p><img src="http://evil.example/x.png"><script>alert(1)</script>a &lt; b<br>end'
    )
    assert words_of(note) == ["Use 0.8", "a < b", "end"]


# -- bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 4_000, 400),
        (b'{"data": [' + b"[" * 4_000 + b"]" * 4_000 + b"]}", 400),
        (b"\xff\xfe", 400),
        (b'{"data": ["' + b"x" * 5 * 2**20 + b'"]}', 413),
        (b'{"data": [], "session_hash": {"a": 1}}', 403),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_before_it_is_read(bob: httpx.Client, body: bytes, status: int) -> None:
    began = time.monotonic()
    answer = bob.post("/gradio_api/run/models", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("path", ["/gradio_api/run/inspect", "/gradio_api/call/inspect", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize("part", ['{"a":[]}', "[]", "1"])
def test_a_request_of_many_values_is_refused_before_any_is_made(
    bob: httpx.Client, path: str, part: str
) -> None:
    body = '{"data": [[' + ",".join([part] * 300_000) + "]]}"
    began = time.monotonic()
    answer = bob.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "values" in answer.json()["detail"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text", [b'"' + b'\\"' * 500_000, b'"' + b"\\" * 1_000_001, b'"' * 1_000_001, b'"a' + b"a" * 10**6]
)
def test_texts_that_never_end_are_read_once(text: bytes) -> None:
    """Each would take minutes if every sign began anew."""
    began = time.process_time()
    _check_values(b'{"data": ' + text)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "part", ["<", "<!", "<!--", "</", "<a ", "<a b='", "<p", "<script>", "<![CDATA[", "&#"]
)
def test_broken_notes_are_read_once(part: str) -> None:
    began = time.process_time()
    words_of(part * 100_000)
    assert time.process_time() - began < 3


def test_commas_in_a_text_are_no_values(bob: httpx.Client) -> None:
    said = {"prompt": 'a, \\ "b", [c], {d}' * 900, "steps": 0, "save_images": False, "width": 7}
    assert bob.post("/sdapi/v1/txt2img", json=said).status_code == 422


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(
    house: House, bob: httpx.Client, tmp_path: Path
) -> None:
    """For every event, before Gradio decodes it; a picture inside of the address of one is no file at all."""
    large = tmp_path / "large.png"
    Image.new("L", (13_000, 13_000)).save(large)
    with large.open("rb") as file:
        [path] = bob.post("/gradio_api/upload", files={"files": ("large.png", file)}).json()
    [number] = [n for n, function in house.pages.fns.items() if function.api_name == "picture_info"]
    began = time.monotonic()
    assert "pixels" in outcome(bob, house, "run", number, [{"path": path, "meta": FILE}])
    assert time.monotonic() - began < 3
    data = {"path": None, "url": "data:image/png;base64,AAAA", "meta": FILE}
    assert NOT_YOURS in outcome(bob, house, "run", number, [data])


def test_pictures_that_are_given_are_not_decoded_by_gradio(house: House) -> None:
    given = [
        block
        for function in house.pages.fns.values()
        for block in function.inputs
        if isinstance(block, gr.Image) and block.type == "filepath"
    ]
    assert given
    assert all(block.image_mode is None for block in given)


def test_events_lie_only_so_deep(house: House, bob: httpx.Client) -> None:
    value: Any = "a"
    for _ in range(200):
        value = [value]
    answer = bob.post("/gradio_api/run/inspect", json={"data": [value]})
    assert "deeper than" in answer.text


def test_sessions_that_fetch_nothing_end_nothing(house: House) -> None:
    """Gradio drops the messages of the oldest session when there are too many. Its queue ended for everybody when it
    then had a message for that session."""
    queue = house.pages._queue
    boxes: Any = queue.pending_messages_per_session
    for place in range(boxes.max_size + 1):
        boxes[f"unread{place}"] = object()
    assert "unread0" not in boxes
    queue.send_message(
        cast(Any, SimpleNamespace(alive=True, _id="x", session_hash="unread0")), SimpleNamespace()
    )
    boxes.clear()


def test_only_json_is_an_event(bob: httpx.Client) -> None:
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        answer = bob.post("/gradio_api/run/models", content=b'{"data": []}', headers={"content-type": kind})
        assert answer.status_code == 415
    chunked = bob.post(
        "/gradio_api/run/models",
        content=iter([b"x" * 2**20] * 6),
        headers={"content-type": "application/json"},
    )
    assert chunked.status_code == 413


def test_uploads_need_a_form(bob: httpx.Client) -> None:
    assert bob.post("/gradio_api/upload", json={"files": "x"}).status_code == 400
    assert bob.post("/gradio_api/upload", data={"files": "no file"}, files={"x": b"y"}).status_code == 400


def test_the_upload_route_is_ours(house: House) -> None:
    own = uploads(Files(house.worker), 10)
    assert [getattr(route, "path", "") for route in own.routes] == ["/gradio_api/upload"]


@pytest.mark.parametrize("field", ["init_image", "mask"])
@pytest.mark.parametrize("said", ["/etc/passwd", {"png": "/etc/passwd"}])
def test_pictures_of_others_are_not_read_from_their_recipes(
    house: House, ann: httpx.Client, tmp_path: Path, field: str, said: Any
) -> None:
    """A picture's text may name a place on the server; it is not looked at."""
    from PIL.PngImagePlugin import PngInfo

    content = json.loads(Image.open(house.anns[0]).info["lora-studio"])
    content["request"][field] = said
    info = PngInfo()
    info.add_text("lora-studio", json.dumps(content))
    file = tmp_path / "forged.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    [path] = ann.post("/gradio_api/upload", files={"files": ("forged.png", file.read_bytes())}).json()
    told = ann.post("/gradio_api/run/picture_info", json={"data": [{"path": path, "meta": FILE}]}).text
    assert "/etc/passwd" not in told
