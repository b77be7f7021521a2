"""The longer proof, by hand: 500 small jobs on the embedded model.

python -m pytest -m slow -s tests/studio/batch/test_proof.py
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import Session, StudioPipeline
from pipelines.events import Finished, Started
from pipelines.home import Home
from studio.batch.manifest import LOCK, MANIFEST
from studio.batch.run import Batch, BatchOrder
from studio.pictures.comparison import TOLERANCE
from studio.pictures.metadata import read_picture, save_picture
from studio.rendering.opening import Opening

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("BATCH_PROOF_JOBS", "500"))
MODEL = "tiny-sdxl"
METHODS = ("merge", "composite", "switch:interval=2", "cmlora")
SAMPLERS = ("Euler", "Euler a", "DPM++ 2M Karras", "Heun", "DDIM")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with copies of six of the model's adapters, as a0 … a5."""
    folder = tmp_path_factory.mktemp("proof")
    (folder / "loras").mkdir()
    own = [entry for entry in Home.resolve(folder).loras() if entry.model == MODEL]
    for number, entry in enumerate(own[:6]):
        shutil.copy(entry.path, folder / "loras" / f"a{number}.safetensors")
    return Home.resolve(folder)


@pytest.fixture(scope="module")
def jobs() -> list[dict[str, Any]]:
    source = random.Random(0)
    words = ("fox", "cat", "owl", "panda", "rocket")
    return [
        {
            "prompt": f"a {source.choice(words)} in the {source.choice(('forest', 'snow', 'garden'))}",
            "adapters": {
                f"a{n}": round(source.uniform(0.3, 1), 2)
                for n in source.sample(range(6), source.randint(1, 3))
            },
            "composer": source.choice(METHODS),
            "scheduler": source.choice(SAMPLERS),
            "steps": source.randint(4, 7),
            "guidance_scale": source.choice((1, 2.5, 3.5)),
            "seed": number,
            "width": 64,
            "height": 64,
        }
        for number in range(COUNT)
    ]


def test_fill_throughput_and_equality(home: Home, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Batch(BatchOrder(jobs, out, Opening(source=MODEL)), home) as batch:
        began, cpu = time.perf_counter(), time.process_time()
        outcomes = list(batch.run())
        together, together_cpu = time.perf_counter() - began, time.process_time() - cpu
        fill = batch.fill
    assert [outcome.error for outcome in outcomes] == [None] * COUNT
    pipe = StudioPipeline.from_pretrained(MODEL, home=home)
    for number in range(6):
        pipe.load_lora_weights(home.path / "loras" / f"a{number}.safetensors")
    files = {name: home.path / "loras" / f"{name}.safetensors" for name in pipe.adapters}
    differences = []
    alone = alone_cpu = 0.0
    for outcome in outcomes:
        assert outcome.file is not None
        request = read_picture(outcome.file).draft.build(lambda wanted: wanted.use(wanted.adapter, None))
        began, cpu = time.perf_counter(), time.process_time()
        session = Session(pipe.model)
        session.submit(request)
        for event in session.drain():
            if isinstance(event, Started):
                resolved = event.request
            elif isinstance(event, Finished):
                assert isinstance(event.image, Image.Image)
                image = event.image
                save_picture(
                    image,
                    tmp_path / "one.png",
                    request=resolved,
                    record=event.record,
                    adapters=files,
                    force=True,
                )
        alone, alone_cpu = alone + time.perf_counter() - began, alone_cpu + time.process_time() - cpu
        with Image.open(outcome.file) as stored:
            differences.append(
                int(np.abs(np.asarray(stored, dtype=int) - np.asarray(image, dtype=int)).max())
            )
    print(
        f"\n{COUNT} jobs: fill {fill.busy or 0:.3f} while work was waiting, {fill.overall:.3f} over all; "
        f"{COUNT / together:.2f} pictures/s together, {COUNT / alone:.2f} one by one: {alone / together:.2f} "
        f"times as fast (CPU time: {alone_cpu / together_cpu:.2f}); largest difference {max(differences)}/255, "
        f"{sum(map(bool, differences))} pictures not bit-equal; load {os.getloadavg()[0]:.1f}"
    )
    assert fill.busy is not None
    assert fill.busy >= 0.9
    assert max(differences) <= TOLERANCE


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_five_random_kills(home: Home, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    file, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    file.write_text("\n".join(json.dumps(job) for job in jobs))
    words = [
        sys.executable,
        "-m",
        "studio",
        "batch",
        str(file),
        "--out",
        str(out),
        "--model",
        MODEL,
        "--quiet",
    ]
    environment = {**os.environ, "LORA_STUDIO_HOME": str(home.path)}

    def done() -> int:
        return (out / MANIFEST).read_bytes().count(b"\n") if (out / MANIFEST).exists() else 0

    killed_at = []
    for _ in range(5):
        target = done() + random.randint(1, COUNT // 7)
        with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and done() < target:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        killed_at.append(done())
    assert subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    print(f"\nkilled at {killed_at} of {COUNT} pictures, then finished")
    entries = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
    assert len(entries) == len({entry["key"] for entry in entries}) == COUNT
    pictures = sorted(out.glob("*.png"))
    assert {out / entry["file"] for entry in entries} == set(pictures)
    for picture in pictures:
        with Image.open(picture) as image:
            image.load()
    assert [file.name for file in out.glob(".*")] == [LOCK]


def test_ray_with_one_and_two_workers(home: Home, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install '.[ray]'")
    jobs = jobs[: max(COUNT // 4, 20)]
    paces, starts = {}, {}
    for workers in (1, 2):
        order = BatchOrder(
            jobs, tmp_path / str(workers), Opening(source=MODEL, row_limit=8), engine="ray", workers=workers
        )
        with Batch(order, home) as batch:
            assert batch.pending == len(jobs)
            began = time.perf_counter()
            times = [time.perf_counter() - began for outcome in batch.run() if not outcome.failed]
        assert len(times) == len(jobs)
        starts[workers] = times[0]
        paces[workers] = (len(times) - 1) / (times[-1] - times[0])
    print(
        f"\n{len(jobs)} jobs over Ray: first picture after {starts[1]:.1f} s (one worker), {starts[2]:.1f} s (two); "
        f"{paces[1]:.2f} and {paces[2]:.2f} pictures/s after it, ratio {paces[2] / paces[1]:.2f}; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
