"""Downloads, from a hub of our own: diffusers and huggingface_hub talk to it as they do to the real one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines import pipeline_utils
from huggingface_hub import constants, hf_api

from pipelines.checkpoints.hub import fetch

MODEL, COMMIT = "someone/random", "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves one folder as the model MODEL. sent: bytes of files that went out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        self.sent = 0


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/{MODEL}/resolve/"):
            content = self.server.files.get(path.split("/", 5)[5])
        elif "/tree/" in path:
            content = json.dumps([
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]).encode()  # fmt: skip
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            content = json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings, "tags": []}).encode()
        if content is None:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:])
            self.server.sent += len(content) - start if "/resolve/" in path else 0


@pytest.fixture
def hub(sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(sdxl_folder) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hf_api.api, "endpoint", address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def weights(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.safetensors")}


def test_a_download_tells_how_it_goes(hub: Hub, sdxl_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, int]] = []
    folder = fetch(MODEL, torch.float32, True, lambda done, total: told.append((done, total)))
    assert weights(folder) == weights(sdxl_folder)
    assert all(0 <= done <= total for done, total in told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] >= sum(map(len, weights(sdxl_folder).values()))
    assert capfd.readouterr().err == ""  # nothing is drawn besides
    told.clear()
    sent = hub.sent
    assert fetch(MODEL, torch.float32, True, lambda done, total: told.append((done, total))) == folder
    assert (told, hub.sent) == ([], sent)  # it was here


def test_what_is_told_can_end_a_download_and_the_next_one_goes_on(hub: Hub, sdxl_folder: Path) -> None:
    class Enough(Exception): ...

    def enough(done: int, total: int) -> None:
        if done:
            raise Enough

    library = pipeline_utils.snapshot_download
    with pytest.raises(Enough):
        fetch(MODEL, torch.float32, True, enough)
    assert pipeline_utils.snapshot_download is library
    assert weights(fetch(MODEL, torch.float32, True)) == weights(sdxl_folder)
