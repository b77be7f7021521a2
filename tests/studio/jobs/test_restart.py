"""A server that is killed in the middle of a queue, in a process of its own; it never looks anybody up outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pipelines import Request, StudioPipeline
from pipelines.home import Home
from studio.cli import main
from studio.jobs.job import JobState, PictureRow
from studio.jobs.owner import PROGRAMS
from studio.jobs.store import NewPicture, Store

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120.0
CODE = """
import socket, sys
real = socket.getaddrinfo
def local_only(host, *rest, **more):
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"127.0.0.1"):
        open(sys.argv[1], "a").write(f"{host}\\n")
        raise OSError(f"looked up {host}")
    return real(host, *rest, **more)
socket.getaddrinfo = local_only
from studio.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Server:
    """`lora-studio web` in a process of its own."""

    def __init__(self, home: Path, looked_up: Path, *flags: str) -> None:
        command = [sys.executable, "-c", CODE, str(looked_up), "web", "--home", str(home), "--port", "7910"]
        self.process = subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "0"},
        )

    def address(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:"), self.process.communicate()
        return line

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


@pytest.fixture
def serve(home: Path, loras: Path, sdxl_folder: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*flags: str) -> Server:
        model = ("--model-dir", str(sdxl_folder.parent), "--model", sdxl_folder.name)
        started.append(Server(home, tmp_path / "looked-up", *model, *flags))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()


def ask(address: str, **body: Any) -> None:
    """A call whose answer nobody waits for, like one from a tab that is closed."""
    small = {"width": 32, "height": 32, "save_images": True, **body}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}sdapi/v1/txt2img", json=small, timeout=0.5, trust_env=False)


def until(true: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.05)):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it never came true")


def request_of(row: PictureRow) -> Request:
    """The request of a finished picture without adapters, from its record."""
    record = row.record
    assert record is not None
    return Request(
        record["prompt"],
        seed=record["seed"],
        steps=record["steps"],
        guidance_scale=record["guidance_scale"],
        scheduler=record["scheduler"],
        width=record["width"],
        height=record["height"],
    )


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest, of 255."""
    pixels, others = (np.asarray(image.convert("RGB"), dtype=int) for image in (one, other))
    return int(np.abs(pixels - others).max())


def test_killed_in_the_middle_of_a_queue_it_goes_on_with_the_same_seeds(
    serve: Callable[..., Server],
    home: Path,
    sdxl_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = serve()
    address = first.address()
    store = Store(home / "studio.sqlite")

    def jobs() -> list[Any]:
        return list(reversed(store.jobs_of(PROGRAMS, 10)))

    ask(address, prompt="a fox <lora:fox:0.5>", steps=3, batch_size=2)
    until(lambda: len(jobs()) == 1)  # on a busy machine the second call could come first
    ask(address, prompt="a hat", steps=60, batch_size=2)
    until(lambda: len(jobs()) == 2 and [str(job.state) for job in jobs()] == ["done", "running"])
    kept = store.pictures_of(jobs()[0].id)
    planned = [row.draft["seed"] for row in store.pictures_of(jobs()[1].id)]
    first.kill()
    assert jobs()[1].state is JobState.RUNNING

    second = serve("--quiet")
    address = second.address()
    assert [row.file for row in store.pictures_of(jobs()[0].id)] == [row.file for row in kept]
    assert main(["web", "--home", str(home)]) == 2
    assert f"open {address}" in capsys.readouterr().err

    progress = httpx.get(f"{address}sdapi/v1/progress", timeout=30, trust_env=False).json()
    assert progress["state"]["job"] == jobs()[1].id
    until(lambda: any(row.state is JobState.RUNNING for row in store.pictures_of(jobs()[1].id)))
    assert [row.draft["seed"] for row in store.pictures_of(jobs()[1].id)] == planned
    until(lambda: jobs()[1].state is JobState.DONE)
    rows = store.pictures_of(jobs()[1].id)
    assert [row.record["seed"] for row in rows if row.record is not None] == planned
    alone = StudioPipeline.from_pretrained(sdxl_folder)([request_of(rows[0])]).images[0]
    assert rows[0].file is not None
    assert difference(Image.open(home / rows[0].file), alone) <= 2  # of 255: as if nothing had happened
    assert second.stop() == 0
    assert not (tmp_path / "looked-up").exists(), (tmp_path / "looked-up").read_text()
    assert not (home / "studio.address").exists()
    store.close()


def test_gc_deletes_what_no_job_needs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Home.resolve(home)
    found.made(found.path)
    store = Store(found.database)
    inputs = found.made(found.path / "inputs")
    for name in ("needed.png", "needless.png"):
        (inputs / name).write_text("x")
    draft = {"prompt": "a", "seed": 1, "init_image": str(inputs / "needed.png")}
    store.add("a", "ann", [NewPicture("", draft)], kind="", title="old", model="", vae=None, settings={})
    picture = found.made(found.outputs) / "a.png"
    picture.write_text("x")
    store.finish_picture("a", 0, "outputs/a.png", {})
    store.end("a", JobState.DONE)
    store.close()
    assert main(["gc", "--dry-run"]) == 0
    assert (inputs / "needless.png").exists()
    assert main(["gc"]) == 0
    assert [file.name for file in inputs.iterdir()] == ["needed.png"]
    assert picture.exists()
    assert main(["gc", "--older-than", "0", "--pictures"]) == 0
    assert not picture.exists()
    assert list(inputs.iterdir()) == []
    assert "job a  old" in capsys.readouterr().out


DEADLY = """
import os, signal, sys
import pipelines.session as session
from pipelines.home import Home
from studio.jobs import Worker
from studio.drafts.draft import Draft
real = session.evaluate
def deadly(model, rows):
    if any(row.trajectory.request.seed == 666 for row in rows):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(model, rows)
session.evaluate = deadly
worker = Worker(Home.resolve(sys.argv[1], model_dirs=[sys.argv[2]]))
if not worker.heads("ann"):
    small = {"prompt": "a fox", "steps": 2, "width": 32, "height": 32}
    worker.submit("ann", [Draft(small | {"seed": seed}) for seed in (1, 666, 2)], model=sys.argv[3])
worker.start()
version = -1
while not worker.heads("ann")[0].state.over:
    version = worker.wait(version, 60)
worker.close()
"""


def test_a_picture_that_kills_the_process_is_found_and_costs_nobody_theirs(
    home: Path, sdxl_folder: Path
) -> None:
    command = [sys.executable, "-c", DEADLY, str(home), str(sdxl_folder.parent), sdxl_folder.name]
    codes = []
    while not codes or (codes[-1] and len(codes) < 9):
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        codes.append(ended.returncode)
        assert codes[-1] in (0, -signal.SIGKILL), ended.stderr
    assert codes == [-signal.SIGKILL] * 4 + [0]  # with the others, and three times alone
    store = Store(home / "studio.sqlite")
    [job] = store.jobs_of("ann", 1)
    rows = store.pictures_of(job.id)
    store.close()
    assert [str(row.state) for row in rows] == ["done", "failed", "done"]
    assert "died 3 times while it made this picture and no other" in job.error
