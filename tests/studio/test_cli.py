"""The program as a user starts it: as a process, with exit codes; and the commands that list things."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.assets import embedded_loras
from pipelines.engine.residency.limits import Limits
from pipelines.errors import SetupError
from pipelines.home import Home
from studio.commands import doctor
from studio.pictures.metadata import read_picture
from studio.rendering.opening import Opening, open_pipeline, pick_device, pick_dtype
from studio.terminal.progress import Teller, duration

Run = Callable[..., Any]


def test_help_is_quick_and_writes_nothing(home: Path) -> None:
    seen = "import sys, studio.cli as c\ntry: c.main(sys.argv[1:])\nexcept SystemExit: pass\n"
    seen += "sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'rich', 'pipelines')))"
    for words in ([], ["--help"], ["render", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", seen, *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), words
        assert "lora-studio" in done.stdout
    assert not home.exists()


def test_alone_it_prints_three_commands_to_try(run: Run) -> None:
    ran = run()
    assert ran.code == 0
    assert sum(line.startswith("  lora-studio ") for line in ran.out.splitlines()) == 3
    shipped = {lora.name for lora in embedded_loras()}
    assert not shipped or set(re.findall(r"--lora (\S+)", ran.out)) <= shipped


def test_the_whole_program_once(home: Path, loras: Path, sdxl_folder: Path, tmp_path: Path) -> None:
    """Nothing but the picture's path on stdout, nothing alarming on stderr, the picture renders again."""
    file = tmp_path / "fox.png"
    words = ("-m", sdxl_folder, "-p", "a fox <lora:fox:0.3>", "--steps", 2, "--size", "32x32", "--out", file)
    done = subprocess.run(
        [sys.executable, "-m", "studio", "render", *map(str, words)],
        env={**os.environ, "LORA_STUDIO_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"{file}\n"), done.stderr
    assert "warn" not in done.stderr.lower()
    assert "seed" in done.stderr
    assert read_picture(file).record["adapters"][0]["name"] == "fox"
    assert sorted(path.name for path in home.iterdir()) == ["loras"]


def test_an_interruption_keeps_what_is_finished(run: Run, sdxl_folder: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.json"
    many.write_text(json.dumps([{"prompt": "a", "steps": 1}, {"prompt": "b", "steps": 1000}]))

    over = threading.Event()

    def interrupt() -> None:
        while not list(tmp_path.glob("out/*.png")) and not over.is_set():
            time.sleep(0.05)
        if not over.is_set():  # else it would hit whatever comes next
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    words = ("-m", sdxl_folder, "--size", "64x64", "--requests", many, "--out", tmp_path / "out", "--json")
    ran = run("render", *words)
    over.set()
    assert ran.code == 130, ran.err
    assert "Traceback" not in ran.err
    assert "interrupted; 1 picture of 2 finished and kept" in ran.err
    first, second = json.loads(ran.out)
    assert Image.open(first["file"]).size == (64, 64)
    assert second == {"file": None, "error": "interrupted"}
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_loras_are_listed(run: Run, loras: Path) -> None:
    (loras / "fox.json").write_text(json.dumps({"preferred weight": 0.7, "activation text": "red fox, snow"}))
    (loras / "broken.safetensors").write_text("no adapter")
    listed = {row["name"]: row for row in json.loads(run("loras", "--json").out)}
    assert (listed["fox"]["weight"], listed["fox"]["triggers"]) == (0.7, ["red fox", "snow"])
    assert listed["broken"]["type"].startswith("cannot be read")
    plain = run("loras").out.splitlines()
    assert plain[0].split("\t")[:3] == ["Name", "Weight", "Words"]
    assert "fox\t0.7\tred fox, snow\tunknown\tLoRA" in plain


def test_models_are_listed(run: Run, sdxl_folder: Path, home: Path) -> None:
    rows = json.loads(run("models", "--model-dir", sdxl_folder.parent, "--json").out)
    row = next(row for row in rows if row["name"] == "random-sdxl")
    assert (row["base"], row["path"]) == ("Stable Diffusion XL", str(sdxl_folder))
    assert not home.exists()


def test_only_what_a_model_may_take(
    run: Run, loras: Path, sdxl_folder: Path, sd_folder: Path, make_lora: Callable[..., Path]
) -> None:
    shutil.copy(make_lora(sd_folder, "sd", seed=3), loras)
    save_file({"unet.mid.attn2.to_k.lora_A.weight": torch.zeros(4, 2048)}, loras / "full-size.safetensors")
    rows = json.loads(run("loras", "--model", sdxl_folder, "--json").out)
    assert [row["name"] for row in rows] == ["fox", "hat"]
    assert run("loras", "--model", "nowhere").code == 2


def test_inspect_takes_files_names_and_pictures(run: Run, loras: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(picture)
    ran = run("inspect", "fox", loras / "hat.safetensors", picture)
    assert ran.code == 0
    assert "fox.safetensors" in ran.out
    assert "rank 4" in ran.out
    assert "says nothing about how it was made" in ran.out
    assert [entry["kinds"] for entry in json.loads(run("inspect", "fox", "--json").out)] == [["LoRA"]]
    assert run("inspect", "fox", "nowhere").code == 1
    assert run("inspect", "nowhere").code == 2


def test_other_programs_folders_are_taken_over(run: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "webui" / "models" / "Lora").mkdir(parents=True)
    ran = run("import-paths", tmp_path / "webui")
    assert ran.code == 0
    assert str(tmp_path / "webui" / "models" / "Lora") in ran.out
    assert Home.resolve().roots.loras == (tmp_path / "webui" / "models" / "Lora",)
    assert run("import-paths", tmp_path / "nowhere").code == 2


def test_a_faulty_config_is_named(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("modell = 'x'")
    ran = run("models")
    assert ran.code == 2
    assert "unknown key 'modell'; did you mean 'model'" in ran.err


def test_the_doctor_names_what_is_wrong(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sdxl_folder: Path
) -> None:
    monkeypatch.setattr(doctor, "_test_picture", lambda home, problems: None)
    assert doctor.run(None, Home.resolve(), Teller()) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("python", "torch", "device", str(home), "all is well"))
    home.mkdir()
    (home / "config.toml").write_text("[folders]\nloras = ['/nowhere']")
    assert doctor.run(None, Home.resolve(), Teller()) == 1
    assert "/nowhere does not exist" in capsys.readouterr().out


def test_devices_and_precisions() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_dtype(None, torch.device("cpu")) is torch.float32
    assert pick_dtype(None, torch.device("cuda")) is torch.float16
    assert pick_dtype("BF16", torch.device("cpu")) is torch.bfloat16
    for name in ("gpu", "cuda:99"):
        with pytest.raises(SetupError, match=name):
            pick_device(name)


def test_low_memory_tiles_the_decoding(sdxl_folder: Path, home: Path) -> None:
    pipe = open_pipeline(Opening(str(sdxl_folder), low_memory=True, row_limit=4), Home.resolve())
    assert pipe.model.vae.use_tiling
    assert pipe.row_limit == 4


def test_memory_for_adapters_is_as_asked_else_as_configured(
    sdxl_folder: Path, home: Path, run: Callable[..., Any]
) -> None:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text("lora_ram = 3\nlora_vram = 0.5\n")
    asked = Opening(str(sdxl_folder), lora_vram=0.25)
    store = open_pipeline(asked, Home.resolve(home)).store
    assert store.limits == Limits(host=3 * 2**30, device=2**28)
    assert store.stats.host.limit == 3 * 2**30
    assert "must be a number of GiB" in run("render", "--lora-vram", "-1").err


def test_a_long_run_says_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    with Teller().counting(10, 1, slow=True) as counter:
        counter.steps(1)
        counter.steps(1)
    assert capsys.readouterr().err.count(" left (") == 1
    assert [duration(seconds) for seconds in (40, 725, 12000)] == ["40 s", "12 min", "3 h 20 min"]
