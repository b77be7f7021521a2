"""The Ray engine: who gets what, what workers lack, and one run on a real cluster of two."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from composers.plan import Use
from pipelines import Request
from pipelines.adapters import sha256
from pipelines.checkpoints import load_checkpoint
from pipelines.errors import SetupError
from pipelines.home import Home
from studio.batch.placement import Node, Share, share_of
from studio.batch.queue import Held, QueuedPicture, TaskQueue
from studio.batch.remote import Assignment, FileMark, RemoteWorker
from studio.batch.run import Batch, BatchOrder, render_jobs
from studio.pictures.comparison import TOLERANCE
from studio.pictures.metadata import Setup
from studio.rendering.opening import Opening


def queue(*tasks: str) -> TaskQueue:
    """queue("m/ab", "n/c"): tasks of model m with mix "ab", and so on; keys are their numbers."""
    parts = [task.partition("/") for task in tasks]
    return TaskQueue(
        QueuedPicture(str(number), model, mix) for number, (model, _, mix) in enumerate(parts, 1)
    )


def keys(tasks: list[QueuedPicture]) -> list[str]:
    return [task.key for task in tasks]


def test_jobs_of_one_mix_stay_together() -> None:
    tasks = queue("m/a", "m/b", "m/b", "m/a", "m/b")
    first, second = Held("m"), Held("m")
    assert keys(tasks.take(first, 2, 1)) == ["2", "3"]
    assert keys(tasks.take(second, 1, 1)) == ["1"]
    assert keys(tasks.take(first, 9, 1)) == ["5", "4"]
    assert len(tasks) == 0


def test_a_worker_keeps_its_model_while_there_is_work_for_it() -> None:
    tasks = queue("m/", "n/", "n/")
    assert tasks.model_for(Held()) == "n"
    held = Held("m")
    assert tasks.model_for(held) == "m"
    tasks.take(held, 5, 1)
    assert tasks.model_for(held) == "n"
    tasks.take(Held("n"), 5, 1)
    assert tasks.model_for(held) is None


def test_the_last_tasks_are_shared_out() -> None:
    tasks = queue(*["m/"] * 10)
    assert len(tasks.take(Held("m"), 100, 2)) == 5
    assert len(tasks.take(Held("m"), 100, 2)) == 3


def test_a_dead_workers_tasks_go_out_again_one_by_one() -> None:
    tasks = queue("m/", "m/", "m/")
    held = Held("m")
    tasks.take(held, 2, 1)
    assert tasks.died(held) == []
    assert len(tasks) == 3
    second = Held("m")
    assert keys(tasks.take(second, 9, 1)) == ["1"]
    assert tasks.take(second, 9, 1) == []
    assert keys(tasks.died(second)) == ["1"]
    third = Held("m")
    assert keys(tasks.take(third, 9, 1)) == ["2"]
    third.tasks.clear()
    assert keys(tasks.take(third, 9, 1)) == ["3"]


def nodes(*offers: tuple[int, int]) -> list[Node]:
    return [Node(cpus, gpus) for cpus, gpus in offers]


def test_a_worker_for_every_gpu_of_every_node() -> None:
    two, eight = nodes((16, 2)), nodes((32, 4), (32, 4), (8, 0))
    assert share_of(two, wanted=None, jobs=100, device=None) == Share(2, 1, 1, None)
    assert share_of(eight, wanted=None, jobs=100, device="auto") == Share(8, 1, 1, None)
    assert share_of(eight, wanted=3, jobs=100, device="cuda:1").workers == 3
    assert share_of(eight, wanted=None, jobs=5, device=None).workers == 5
    assert share_of(nodes((1, 4)), wanted=None, jobs=9, device=None).workers == 1  # a worker needs a CPU too


def test_without_gpus_the_cpus_are_shared_so_that_every_worker_fits() -> None:
    assert share_of(nodes((8, 2)), wanted=None, jobs=9, device="cpu") == Share(2, 0, 4, 4)
    assert share_of(nodes((2, 0)), wanted=None, jobs=9, device=None) == Share(1, 0, 2, 2)
    assert share_of(nodes((4, 0), (4, 0)), wanted=1, jobs=9, device=None) == Share(1, 0, 4, 4)  # not 8
    assert share_of(nodes((3, 0), (3, 0)), wanted=3, jobs=9, device=None) == Share(3, 0, 1, 1)  # not 2
    assert share_of(nodes((2, 0)), wanted=9, jobs=99, device=None) == Share(2, 0, 1, 1)


def test_a_cluster_without_what_is_asked_for_is_refused() -> None:
    with pytest.raises(SetupError, match="no GPU"):
        share_of(nodes((8, 0)), wanted=None, jobs=1, device="cuda")
    with pytest.raises(SetupError, match="no CPUs"):
        share_of(nodes((0, 0)), wanted=None, jobs=1, device=None)


def test_a_worker_asks_for_what_it_lacks(
    loras: Path, sdxl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORA_STUDIO_HOME")
    fox = loras / "fox.safetensors"
    digest, size = sha256(fox), fox.stat().st_size
    model_hash = load_checkpoint(sdxl_folder).hash
    away = Assignment("/nowhere/far-sdxl", model_hash, {"fox": FileMark("/nowhere/fox", digest, size)})
    worker = RemoteWorker(Opening(), Setup(), Home.resolve(tmp_path / "empty"), 1)
    opened = worker.open(away)
    assert (opened.lacks_model, opened.lacks_adapters, opened.ready) == (True, ("fox",), False)
    worker.receive_adapter(digest, fox.read_bytes())
    files = {str(f.relative_to(sdxl_folder)): f.read_bytes() for f in sdxl_folder.rglob("*") if f.is_file()}
    worker.receive_model(model_hash, away.model, files)
    opened = worker.open(away)
    assert opened.ready
    assert opened.wants > 1
    request = Request("a", adapters=(Use("fox"),), seed=1, steps=1, width=32, height=32)
    bad = Request("a", adapters=(Use("owl"),), seed=1, steps=1)
    reply = worker.advance([("bad", bad)])
    assert reply.parcels[0].error is not None
    [parcel] = worker.advance([("good", request)]).parcels
    assert parcel.png is not None
    assert parcel.png.content.startswith(b"\x89PNG")
    elsewhere = RemoteWorker(Opening(), Setup(), Home.resolve(loras.parent), 1)
    here = Assignment(str(sdxl_folder), model_hash, {"renamed": FileMark("/nowhere/fox", digest, size)})
    assert elsewhere.open(here).ready  # found by its hash


def test_on_a_cluster_with_a_killed_worker(
    loras: Path, loaded_once: None, sdxl_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="pip install '.[ray]'")
    jobs: list[dict[str, Any]] = [
        {
            "prompt": "a fox",
            "seed": seed,
            "steps": 2 + seed % 3,
            "width": 32,
            "height": 32,
            "adapters": {"fox": 0.2 * (seed % 4)},
        }
        for seed in range(12)
    ]
    opening = Opening(source=str(sdxl_folder), row_limit=4)
    home = Home.resolve(loras.parent)
    outcomes = []
    with Batch(BatchOrder(jobs, tmp_path / "ray", opening, engine="ray", workers=2), home) as batch:
        for outcome in batch.run():
            outcomes.append(outcome)
            if len(outcomes) == 1:
                assert batch.ray is not None
                os.kill(batch.ray.pids[0], signal.SIGKILL)
        assert batch.ray is not None
        assert sum(batch.ray.made.values()) == 12
    assert [outcome.error for outcome in outcomes] == [None] * 12
    alone = {o.job.index: o.file for o in render_jobs(jobs, tmp_path / "local", opening=opening, home=home)}
    for outcome in outcomes:
        assert outcome.file is not None
        found, expected = (
            np.asarray(Image.open(file), dtype=int) for file in (outcome.file, alone[outcome.job.index])
        )
        assert np.abs(found - expected).max() <= TOLERANCE
    assert list(render_jobs(jobs, tmp_path / "ray", opening=opening, home=home)) == []
