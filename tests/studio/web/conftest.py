"""A server with the random SDXL model, in a thread of this process; one for all tests of this folder."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import httpx
import pytest
import uvicorn

from pipelines.home import Home
from studio.jobs import Worker
from studio.web import api
from studio.web.look import Look
from studio.web.server import Serving, mounted


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
    config = uvicorn.Config(mounted(pages, Look(), worker, serving), log_level="error", ws="none")
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
