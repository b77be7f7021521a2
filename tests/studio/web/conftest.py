"""A server with the random SDXL model, in a thread of this process; one for all tests of this folder."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import uvicorn

from pipelines.home import Home
from studio.drafts.draft import Draft
from studio.jobs import Trainings, Worker
from studio.jobs.owner import owner_of
from studio.web import api
from studio.web.door.theme import Look
from studio.web.server import Serving, make_app, mounted


@dataclass(frozen=True)
class Running:
    """A server that answers. model: the one that is the default."""

    address: str
    worker: Worker
    model: str

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=120, trust_env=False, **options)  # type: ignore[arg-type]


def run(home: Home, model: str, serving: Serving) -> Iterator[Running]:
    """Serves the functions for programs, without the pages, until the generator is closed."""
    worker = Worker(home)
    worker.start()
    with gr.Blocks(analytics_enabled=False) as pages:
        gr.Markdown("nothing to see")
        api.add(worker)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        mounted(pages, Look(), worker, serving), log_level="error", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", worker, model)
    server.should_exit = True
    thread.join(30)
    worker.close()


@pytest.fixture(scope="session")
def served_home(
    tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path, make_lora: Callable[..., Path]
) -> Home:
    """With `fox` and `hat`, and the random model as the default."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "loras").mkdir()
    for name, seed in (("fox", 1), ("hat", 2)):
        shutil.copy(make_lora(sdxl_folder, name, seed=seed), folder / "loras")
    (folder / "config.toml").write_text(f'model = "{sdxl_folder.name}"\n')
    return Home.resolve(folder, model_dirs=[sdxl_folder.parent])


@pytest.fixture(scope="session")
def running(served_home: Home, sdxl_folder: Path) -> Iterator[Running]:
    yield from run(served_home, sdxl_folder.name, Serving(mcp=True))


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path) -> Iterator[Running]:
    """One that asks for a login; uploads of a megabyte at most."""
    home = Home.resolve(tmp_path_factory.mktemp("guarded"), model_dirs=[sdxl_folder.parent])
    users = {"ann": "secret", "bob": "hidden"}
    yield from run(home, sdxl_folder.name, Serving(users=users, largest=2**20, mcp=True))


@pytest.fixture(scope="session")
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as opened:
        yield opened


USERS = {"ann": "secret of ann", "bob": "secret of bob"}


@dataclass(frozen=True)
class House:
    """The whole studio, with logins. pages: its events. anns: a finished picture and an upload of hers."""

    address: str
    app: Any
    pages: gr.Blocks
    worker: Worker
    anns: tuple[Path, Path]

    @contextmanager
    def client(self, name: str | None = None, **options: Any) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.address, timeout=60, trust_env=False, **options) as opened:
            if name is not None:
                answer = opened.post("/login", data={"username": name, "password": USERS[name]})
                assert answer.status_code == 200, answer.text
            yield opened


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory, sdxl_folder: Path) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    home = Home.resolve(folder, model_dirs=[sdxl_folder.parent])
    worker, trainings = Worker(home), Trainings(home)
    worker.start()
    app = make_app(worker, trainings, Serving(users=USERS, mcp=True))
    [pages] = [
        route.app.get_blocks() for route in app.routes if hasattr(getattr(route, "app", None), "get_blocks")
    ]
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    draft = Draft({"prompt": "a fox", "width": 32, "height": 32, "steps": 2})
    job = worker.submit(owner_of("ann"), [draft], model=sdxl_folder.name)
    until = time.monotonic() + 120
    while not (view := worker.view(job, owner_of("ann"))).state.over:  # type: ignore[union-attr]
        assert time.monotonic() < until
        time.sleep(0.05)
    assert view is not None
    assert view.finished, view.error
    [picture] = view.finished
    assert picture.file is not None
    built = House(address, app, pages, worker, (picture.file, picture.file))
    with built.client("ann") as ann:
        [upload] = ann.post(
            "/gradio_api/upload", files={"files": ("mine.png", picture.file.read_bytes())}
        ).json()
    yield House(address, app, pages, worker, (picture.file, Path(upload)))
    server.should_exit = True
    thread.join(30)
    trainings.close()
    worker.close()
