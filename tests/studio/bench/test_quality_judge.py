"""The judge: an OpenAI-compatible endpoint, here a local one, asked in both orders."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.errors import SetupError
from studio.bench.quality.cells import QualityCell
from studio.bench.quality.drawing import Shot
from studio.bench.quality.elements import Composition, Element
from studio.bench.quality.judge import KEY, Endpoint, Verdict, both_orders, endpoint, judge_all, read_answer
from studio.bench.quality.methods import read_method

MIX = Composition((Element("Fox", "fox", "character", "red fox"), Element("Ink", "ink", "style", "ink")))
Answer = Callable[[list[bytes]], str]


class Server:
    """Answers by a function of the two pictures it is shown; keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.asked.append(body)
                owner.headers.append(dict(self.headers))
                parts = body["messages"][0]["content"]
                pictures = [
                    part["image_url"]["url"].encode() for part in parts if part["type"] == "image_url"
                ]
                said = {"choices": [{"message": {"content": answer(pictures)}}]}
                self.send_response(200 if self.path == "/v1/chat/completions" else 404)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = []
    for name, colour in (("good", "white"), ("bad", "black")):
        files.append(tmp_path / f"{name}.png")
        Image.new("RGB", (8, 8), colour).save(files[-1])
    return files


def scores(a: float, b: float) -> str:
    return json.dumps({"A": {"composition": a, "quality": 5}, "B": {"composition": b, "quality": 5}})


def test_a_judge_that_favours_the_first_picture_ends_in_a_tie(
    serve: Callable[[Answer], Server], pictures: list[Path]
) -> None:
    server = serve(lambda shown: scores(9, 6))
    verdict = both_orders(Endpoint(server.url, "m"), MIX, *pictures)
    assert verdict == Verdict((7.5, 5.0), (7.5, 5.0))
    assert len(server.asked) == 2


def test_a_judge_that_sees_is_heard(
    serve: Callable[[Answer], Server], pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[bytes] = []

    def sees(shown: list[bytes]) -> str:
        first.append(shown[0])
        return "Sure:\n" + (scores(9, 2) if shown[0] == first[0] else scores(2, 9))

    monkeypatch.setenv(KEY, "secret")
    server = serve(sees)
    judge = endpoint(server.url, "vision")
    assert both_orders(judge, MIX, *pictures) == Verdict((9.0, 5.0), (2.0, 5.0))
    asked = server.asked[0]
    assert asked["model"] == "vision"
    assert "Fox (red fox)" in asked["messages"][0]["content"][0]["text"]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_every_method_is_judged_against_the_baseline(
    serve: Callable[[Answer], Server], pictures: list[Path]
) -> None:
    import base64

    good = base64.b64encode(pictures[0].read_bytes())
    server = serve(lambda shown: scores(8, 3) if good in shown[0] else scores(3, 8))
    cells = [QualityCell(MIX, read_method(name), 1) for name in ("switch", "merge")]
    shots = {cell: Shot(file, 1, 0, 0.1, "", "", "") for cell, file in zip(cells, pictures, strict=True)}
    (found,) = judge_all(Endpoint(server.url, "m"), shots, cells, "merge", 5)
    assert (found.method, found.pairs) == ("switch", 1)
    assert found.scores["composition"] == (8.0, 3.0)
    assert found.shares["composition"] == (1.0, 0.0, 0.0)
    assert found.shares["quality"] == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("answer", ["no idea", '{"A": {"composition": 11, "quality": 1}}', scores(-1, 2)])
def test_answers_without_scores(answer: str, serve: Callable[[Answer], Server], pictures: list[Path]) -> None:
    assert read_answer(answer) is None
    server = serve(lambda shown: answer)
    with pytest.raises(SetupError, match="with scores, 3 times"):
        Endpoint(server.url, "m").compare(MIX, *pictures)
    assert len(server.asked) == 3


def test_an_endpoint_that_is_not_there(pictures: list[Path]) -> None:
    with pytest.raises(SetupError, match="check the address"):
        Endpoint("http://127.0.0.1:9", "m").compare(MIX, *pictures)
    with pytest.raises(SetupError, match="localhost:8000"):
        Endpoint("file:///etc/passwd", "m")
