"""The program as a user starts it: as a process, with exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.assets import embedded_loras
from studio.pictures.metadata import read_picture

Run = Callable[..., Any]


def test_help_is_quick_and_writes_nothing(home: Path) -> None:
    seen = "import sys, studio.cli as c\ntry: c.main(sys.argv[1:])\nexcept SystemExit: pass\n"
    seen += "sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'rich', 'numpy', 'diffusers')))"
    for words in ([], ["--help"], ["render", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", seen, *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), words
        assert "lora-studio" in done.stdout
    assert not home.exists()


def test_a_lora_is_inspected_without_diffusers(home: Path, loras: Path) -> None:
    """Its import takes longer than all the rest."""
    seen = "import sys, studio.cli as c\ncode = c.main(sys.argv[1:])\nsys.exit(code or 'diffusers' in sys.modules)"
    file = next(loras.rglob("*.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", seen, "inspect", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, file.name in done.stdout) == (0, True), done.stderr


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
        timeout=300,
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


def test_a_faulty_config_is_named(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("modell = 'x'")
    ran = run("models")
    assert ran.code == 2
    assert "unknown key 'modell'; did you mean 'model'" in ran.err


def test_a_console_of_few_characters_is_no_fault(home: Path) -> None:
    """Windows' consoles and pipes often hold one alphabet only."""
    done = subprocess.run(
        [sys.executable, "-c", "from studio.cli import main\nmain([])\nprint('fox → 狐')"],
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.decode("cp1252").splitlines()[-1]) == (0, "fox ? ?"), done.stderr
