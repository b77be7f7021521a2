"""Batches: shared calls, equal pictures, resuming, failing alone, the command."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import StudioPipeline
from pipelines.errors import RequestError, SetupError
from pipelines.home import Home
from studio.batch.manifest import LOCK, MANIFEST, Manifest, PictureOutcome
from studio.batch.run import Batch, BatchOrder, render_jobs
from studio.pictures.comparison import TOLERANCE
from studio.pictures.identity import is_whole
from studio.pictures.metadata import read_picture
from studio.rendering import saver
from studio.rendering.opening import Opening
from tests.faulty_writes import full_disk

Jobs = list[dict[str, Any]]
Rendering = Callable[..., list[PictureOutcome]]


@pytest.fixture
def opening(sdxl_folder: Path) -> Opening:
    return Opening(source=str(sdxl_folder), row_limit=16)


@pytest.fixture
def rendering(opening: Opening, loras: Path, loaded_once: None, tmp_path: Path) -> Rendering:
    """rendering(jobs, …) -> the outcomes; pictures go to tmp_path/out."""

    def call(jobs: Jobs | Path, **settings: Any) -> list[PictureOutcome]:
        return list(render_jobs(jobs, tmp_path / "out", opening=opening, **settings))

    return call


def mixed(count: int) -> Jobs:
    """Jobs of different mixes, methods, steps, guidance, schedulers and sizes."""
    methods = ["merge", "composite", "switch:interval=2"]
    samplers = ["Euler", "Heun", "DPM++ 2M Karras", "Euler a"]
    return [
        {
            "prompt": "a {fox|hat} <lora:hat:0.5>" if place % 5 == 0 else "a fox",
            "adapters": {"fox": 0.1 * (place % 7)}
            if place % 5 == 0
            else {"fox": 0.4 + 0.1 * (place % 3), "hat": 0.5},
            "composer": methods[place % 3],
            "scheduler": samplers[place % 4],
            "steps": 2 + place % 3,
            "guidance_scale": [1, 3.5, 6][place // 3 % 3],
            "width": 32 if place % 6 else 48,
            "height": 32,
            "seed": place,
        }
        for place in range(count)
    ]


def difference(file: Path, image: Image.Image) -> int:
    with Image.open(file) as stored:
        found = np.asarray(stored.convert("RGB"), dtype=np.int16)
    return int(np.abs(found - np.asarray(image, dtype=np.int16)).max())


def alone(pipe: StudioPipeline, file: Path) -> Image.Image:
    """The picture of a file rendered again, alone, from what the file says."""
    draft = read_picture(file).draft
    request = draft.build(lambda wanted: wanted.use(wanted.adapter, None))
    image = pipe(request).images[0]
    assert isinstance(image, Image.Image)
    return image


@pytest.fixture
def pipe(sdxl_folder: Path, loras: Path) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    for name in ("fox", "hat"):
        pipe.load_lora_weights(loras / f"{name}.safetensors")
    return pipe


def test_every_picture_equals_a_single_render(
    opening: Opening, loras: Path, loaded_once: None, tmp_path: Path, pipe: StudioPipeline
) -> None:
    with Batch(BatchOrder(mixed(24), tmp_path / "out", opening)) as batch:
        assert batch.pending == 24
        outcomes = list(batch.run())
        assert batch.fill.busy is not None
        assert batch.fill.busy >= 0.9
    assert sorted(outcome.job.index for outcome in outcomes) == list(range(1, 25))
    shared = 0
    for outcome in outcomes:
        assert outcome.file is not None
        assert outcome.record is not None
        shared += outcome.record["shared"]
        assert difference(outcome.file, alone(pipe, outcome.file)) <= TOLERANCE
    assert shared > 12
    entries = [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines()]
    assert {entry["file"] for entry in entries} == {file.name for file in (tmp_path / "out").glob("*.png")}
    assert len(entries) == 24


def test_a_second_run_does_what_is_missing(rendering: Rendering, tmp_path: Path) -> None:
    first = rendering(mixed(4))
    assert rendering(mixed(4)) == []
    assert first[0].file is not None
    assert first[1].file is not None
    first[0].file.unlink()
    content = first[1].file.read_bytes()
    first[1].file.write_bytes(content[:-5])  # torn
    again = rendering(mixed(5))
    assert sorted(outcome.job.index for outcome in again) == sorted(
        [first[0].job.index, first[1].job.index, 5]
    )
    assert all(is_whole(file) for file in (tmp_path / "out").glob("*.png"))
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_a_changed_job_is_rendered_again_beside_its_old_picture(rendering: Rendering, tmp_path: Path) -> None:
    jobs: Jobs = [{"prompt": "a", "seed": 1, "steps": 2}, {"prompt": "b", "seed": 2, "steps": 2}]
    rendering(jobs)
    [changed] = rendering([{**jobs[0], "steps": 3}, jobs[1]])
    assert changed.file == tmp_path / "out" / "00001_a_1~2.png"
    assert rendering([{**jobs[0], "steps": 3}, jobs[1]]) == []
    assert rendering(jobs) == []


def test_a_picture_without_its_line_is_taken_over(rendering: Rendering, tmp_path: Path) -> None:
    jobs = mixed(3)
    rendering(jobs)
    manifest = tmp_path / "out" / MANIFEST
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0] + lines[1][:40])  # ended while the second line was written
    scrap = tmp_path / "out" / ".00009_x.png.1.part"
    scrap.touch()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.png")}
    assert len(rendering(jobs)) == 2
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.png")} == before
    assert len([json.loads(line) for line in manifest.read_bytes().splitlines()]) == 3
    assert not scrap.exists()


def test_foreign_files_are_not_overwritten(rendering: Rendering, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "00001_a_1.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    [outcome] = rendering([{"prompt": "a", "seed": 1, "steps": 1}])
    assert outcome.file == mine.with_name("00001_a_1~2.png")
    assert mine.read_bytes() == b"mine"
    [outcome] = rendering([{"prompt": "a", "seed": 1, "steps": 2}], force=True)
    assert outcome.file == mine
    assert mine.read_bytes() != b"mine"


def test_a_bad_job_fails_alone(rendering: Rendering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs: Jobs = [
        {"prompt": "a", "seed": 1, "steps": 2},
        {"prompt": f"(a hat:{'9' * 38})", "adapters": {"fox": 1}, "seed": 2, "steps": 2},
    ]
    outcomes = {outcome.job.index: outcome for outcome in rendering(jobs)}
    assert outcomes[1].file is not None
    assert outcomes[2].error is not None
    assert "not finite" in outcomes[2].error
    assert rendering(jobs) == []
    [again] = rendering(jobs, retry_failed=True)
    assert again.failed


def test_ten_mistakes_ten_messages(rendering: Rendering, tmp_path: Path) -> None:
    jobs: Jobs = [
        {"prompt": "a", "sede": 1},
        {"prompt": "a", "steps": 0},
        {"prompt": "a", "adapters": {"fix": 1}},
        {"prompt": "a", "width": 33},
        {"prompt": "a", "composer": "blora"},
        {"prompt": "a", "composer": "switch", "steps": 1, "adapters": {"fox": 1, "hat": 1}},
        {"prompt": "a <lora:owl:1>"},
        {"prompt": "(" * 300},
        {"prompt": "a", "scheduler": "Eulr"},
        {"steps": 3},
    ]
    with pytest.raises(RequestError) as caught:
        rendering(jobs)
    head, *messages = str(caught.value).splitlines()
    assert head == "jobs: 10 mistakes, nothing was rendered"
    assert [int(message.split(":")[0].split()[-1]) for message in messages] == list(range(1, 11))
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_fit_are_found_before_the_first_picture(
    rendering: Rendering, sd_folder: Path, make_lora: Callable[..., Path], loras: Path, tmp_path: Path
) -> None:
    other = make_lora(sd_folder, "other", seed=5)
    with pytest.raises(RequestError, match="other"):
        rendering([{"prompt": "a"}, {"prompt": "a", "adapters": {str(other): 1}}])
    assert not list(tmp_path.glob("out/*.png"))


def test_jobs_of_several_models(
    loras: Path, loaded_once: None, sd_folder: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    job = {"prompt": "a", "seed": 1, "steps": 2, "width": 32, "height": 32}
    jobs = [{**job, "model": str(folder)} for folder in (sd_folder, sdxl_folder)] * 2
    outcomes = list(render_jobs(jobs, tmp_path / "out"))
    assert [outcome.record["family"] for outcome in outcomes if outcome.record] == [
        "sd1",
        "sd1",
        "sdxl",
        "sdxl",
    ]


def test_one_run_a_folder(opening: Opening, loras: Path, loaded_once: None, tmp_path: Path) -> None:
    order = BatchOrder(mixed(1), tmp_path / "out", opening)
    with Batch(order), pytest.raises(SetupError, match="another batch"), Batch(order):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from studio.batch.manifest import Manifest
with Manifest(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_against_other_processes_until_their_end(tmp_path: Path) -> None:
    """On every system alike: the manifest's module asks none by name."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SetupError, match="another batch is at work"), Manifest(tmp_path):
            pass
        (tmp_path / MANIFEST).read_bytes()  # others may read it meanwhile
        other.kill()
        other.wait()
    for _ in range(2):
        with Manifest(tmp_path) as manifest:
            assert manifest.entries == {}


def test_a_disk_without_locks_of_its_own_is_locked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unknown(*asked: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # filelock tells that it falls back
            with Manifest(tmp_path), pytest.raises(SetupError, match="another batch"), Manifest(tmp_path):
                pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(SetupError, match="cannot be written"), Manifest(tmp_path):
        pass
    (tmp_path / MANIFEST).rmdir()
    with Manifest(tmp_path):  # nothing is left locked
        pass


def test_adapters_make_room_for_one_another(
    opening: Opening, rendering: Rendering, loras: Path, tmp_path: Path
) -> None:
    """With room for no adapter beyond those in flight: the same pictures."""
    size = {"width": 32, "height": 32, "steps": 2}
    jobs = [
        {"prompt": "a fox", "adapters": {("fox", "hat")[n % 2]: 0.5}, "seed": n, **size} for n in range(4)
    ]
    whole = {outcome.file.name: outcome.file for outcome in rendering(jobs) if outcome.file}
    said: list[str] = []
    small = replace(opening, row_limit=2, lora_ram=0.0, lora_vram=0.0)
    with Batch(BatchOrder(jobs, tmp_path / "small", small), Home.resolve(), said.append) as batch:
        paged = {outcome.file.name: outcome.file for outcome in batch.run() if outcome.file}
    assert len(whole) == 4
    assert paged.keys() == whole.keys()
    for name, file in paged.items():
        with Image.open(whole[name]) as picture:
            assert difference(file, picture) <= TOLERANCE
    assert any("evictions" in line for line in said)


# -- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def command(run: Callable[..., Any], sdxl_folder: Path, loras: Path) -> Callable[..., Any]:
    """command(JOBS, …): lora-studio batch with the random model."""

    def call(*words: object) -> Any:
        model = ("--model-dir", sdxl_folder.parent, "--model", sdxl_folder.name)
        return run("batch", *words, *model, "--set", "width=32", "--set", "height=32", "--set", "steps=2")

    return call


def test_the_command(command: Callable[..., Any], tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text(f"a {{fox|hat}} --seed 1-2 --lora fox\n(a hat:{'9' * 38}) --seed 3 --lora fox\n")
    ran = command(jobs, "--check")
    assert (ran.code, ran.out) == (0, "")
    assert "3 pictures, no mistakes" in ran.err
    out = tmp_path / "out"
    ran = command(jobs, "--out", out, "--name", "{seed}")
    assert ran.code == 1
    assert ran.out.split() == [str(out / "1.png"), str(out / "2.png")]
    assert "jobs.txt, line 2 ((a hat:99" in ran.err.splitlines()[-1]
    ran = command(jobs, "--out", out, "--name", "{seed}", "--json")
    assert (ran.code, ran.out) == (1, "")
    assert "3 of 3 pictures are there already" in ran.err
    ran = command(jobs, "--out", out, "--name", "{seed}", "--json", "--retry-failed", "--quiet")
    assert json.loads(ran.out)["error"]
    assert ran.code == 1


def test_the_command_refuses(command: Callable[..., Any], run: Callable[..., Any], tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a", "stepz": 1}\n{"prompt": "a", "seed": -2}\n')
    ran = command(jobs, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "2 mistakes" in ran.err
    assert "line 1: unknown field 'stepz'" in ran.err
    for words in (
        [jobs],
        [jobs, "--out", "x", "--set", "steps"],
        [jobs, "--out", "x", "--wildcards", "nowhere"],
    ):
        assert command(*words).code == 2
    assert run("batch").code == 2
    assert json.loads(run("batch", "--schema").out)["title"]


# -- the end at any moment ---------------------------------------------------------------------------------


def _start(jobs: Path, out: Path, model: Path, home: Path, rows: int = 8) -> subprocess.Popen[bytes]:
    words = ("batch", jobs, "--out", out, "--model", model, "--row-limit", rows, "--quiet")
    environment = {**os.environ, "LORA_STUDIO_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-m", "studio", *map(str, words)], env=environment)


def _lines(out: Path) -> int:
    file = out / MANIFEST
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _killed_after(process: subprocess.Popen[bytes], out: Path, pictures: int) -> None:
    until = time.monotonic() + 120
    while process.poll() is None and _lines(out) < pictures and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _complete(out: Path, count: int) -> None:
    """All pictures, each once, none torn, each with its line."""
    files = sorted(out.glob("*.png"))
    assert len(files) == count
    for file in files:
        with Image.open(file) as image:
            image.load()
    entries = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
    assert len(entries) == len({entry["key"] for entry in entries}) == count
    assert {out / entry["file"] for entry in entries} == set(files)
    assert [file.name for file in out.glob(".*")] == [LOCK]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_and_resumed(
    opening: Opening, loras: Path, loaded_once: None, sdxl_folder: Path, tmp_path: Path
) -> None:
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    jobs.write_text("\n".join(json.dumps(job) for job in mixed(24)))
    _killed_after(_start(jobs, out, sdxl_folder, loras.parent), out, 7)
    kept = _lines(out)
    assert 7 <= kept < 24
    rest = list(render_jobs(jobs, out, opening=opening, home=Home.resolve(loras.parent)))
    assert len(rest) == 24 - kept
    _complete(out, 24)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_eleven_times_at_moving_moments(
    opening: Opening, loras: Path, loaded_once: None, sdxl_folder: Path, tmp_path: Path
) -> None:
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    jobs.write_text("\n".join(json.dumps(job) for job in mixed(72)))
    for kill in range(11):
        _killed_after(_start(jobs, out, sdxl_folder, loras.parent), out, min(_lines(out) + kill % 7, 71))
    kept = _lines(out)
    rest = list(render_jobs(jobs, out, opening=opening, home=Home.resolve(loras.parent)))
    assert len(rest) == 72 - kept
    _complete(out, 72)


# -- a full disk -------------------------------------------------------------------------------------------


class FullManifest:
    """The manifest's file on a disk that is full from some line on: half of the line is written."""

    def __init__(self, real: Any, lines: int) -> None:
        self._real, self._left = real, lines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, line: bytes) -> int:
        self._left -= 1
        if self._left < 0:
            self._real.write(line[: len(line) // 2])
            raise full_disk()
        return int(self._real.write(line))


@pytest.mark.parametrize("place", ["pictures", "manifest"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    jobs, out = tmp_path / "jobs.txt", tmp_path / "out"
    jobs.write_text("\n".join(f"a fox --seed {seed}" for seed in range(6)))
    with monkeypatch.context() as patch:
        if place == "pictures":
            save, saved = saver.save_picture, itertools.count()

            def full(*picture: Any, **options: Any) -> Path:
                if next(saved) >= 2:
                    raise full_disk()
                return save(*picture, **options)

            patch.setattr(saver, "save_picture", full)
        else:
            enter = Manifest.__enter__

            def opened(self: Manifest) -> Manifest:
                enter(self)
                self._file = FullManifest(self._file, 2)
                return self

            patch.setattr(Manifest, "__enter__", opened)
        ran = command(jobs, "--out", out, "--quiet")
    assert ran.code == 2
    [line] = [line for line in ran.err.splitlines() if line.strip()]
    assert line.startswith("error: the disk is full")
    assert "make room" in line
    assert "run the same command again to go on: 2 of 6 pictures are done and kept" in line
    assert _lines(out) == 2
    again = command(jobs, "--out", out, "--quiet")
    assert again.code == 0
    _complete(out, 6)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_below_stdout_is_one_line(loras: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    jobs, out = tmp_path / "jobs.txt", tmp_path / "out"
    jobs.write_text("a fox --seed 1 --width 32 --height 32 --steps 1\n")
    words = ("batch", jobs, "--out", out, "--model", sdxl_folder, "--quiet")
    environment = {**os.environ, "LORA_STUDIO_HOME": str(loras.parent), "HF_HUB_OFFLINE": "1"}
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "studio", *map(str, words)],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
        )
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "stdout cannot be written: the disk is full" in ran.stderr
    assert len(list(out.glob("*.png"))) == 1
