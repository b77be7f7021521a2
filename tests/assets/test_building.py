"""The build scripts make what ships: an adapter trained anew on the CPU is as faithful as the shipped one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "assets"
MODEL, NAME, PROMPTS = "tiny-sdxl", "nilo-fox", 12


def script(name: str, *arguments: str | Path) -> None:
    command = [sys.executable, ASSETS / "build" / f"{name}.py", *arguments]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_adapter_built_on_the_cpu_is_as_faithful_as_the_shipped_one(tmp_path: Path) -> None:
    """The shipped one was trained on a GPU. The drawings come from npm; five minutes on one core."""
    if not shutil.which("npm"):
        pytest.skip("node and npm fetch the drawings: install them")
    model = ASSETS / "models" / MODEL
    script("art", "--work", tmp_path)
    script("train_loras", "--work", tmp_path, "--model", model, "--out", tmp_path / "loras", "--only", NAME)
    common = ["--model", model, "--classifier", ASSETS / "testbed/classifier", "--only", NAME]
    script("evaluate_loras", *common, "--loras", tmp_path / "loras", "--out", tmp_path, "--n", str(PROMPTS))

    def of(file: Path) -> Any:
        return json.loads(file.read_text())[NAME]

    built = of(tmp_path / f"loras-{MODEL}.json")
    shipped = of(ASSETS / f"build/figures/loras-{MODEL}.json")
    assert built["word, base"] == 0
    assert built["word, adapter"] >= shipped["word, adapter"] - 1.5 / PROMPTS
    assert built["rest, adapter"] >= shipped["rest, adapter"] - 0.1
    ours, theirs = (tmp_path / "loras" / f"{NAME}.safetensors", ASSETS / f"loras/{MODEL}/{NAME}.safetensors")
    assert abs(ours.stat().st_size - theirs.stat().st_size) < 1000
