"""The wheel is whole: installed without dependencies it renders outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    quiet = ["--quiet", "--disable-pip-version-check"]
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        *quiet,
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    assert wheel.stat().st_size <= 50_000_000
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", *quiet, "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    return target


def test_the_wheel_brings_the_licences_of_what_it_ships(installed: Path) -> None:
    [file] = installed.glob("*.dist-info/licenses/assets/NOTICE")
    notice = file.read_text()
    for owner in ("Google", "Twitter", "Microsoft", "OpenAI"):
        assert owner in notice


def test_the_installed_wheel_renders(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "LORA_STUDIO_HOME": str(tmp_path / "home")}
    run = "import runpy, pipelines.assets; print(pipelines.assets.root()); "
    run += "runpy.run_module('studio', run_name='__main__')"
    words = ("render", "--steps", "2", "--seed", "1", "--out", "picture.png")
    result = subprocess.run(
        [sys.executable, "-c", run, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.splitlines()[0]) == installed / "pipelines" / "_assets"
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (128, 128)


def test_the_wheel_holds_data_but_no_build_scripts(installed: Path) -> None:
    shipped = {path.name for path in (installed / "pipelines" / "_assets").iterdir()}
    assert shipped == {"models", "loras", "configs", "testbed"}
    assert {path.name for path in installed.iterdir() if path.is_dir() and "dist-info" not in path.name} == {
        *("composers", "pipelines", "studio"),
        *(["bin"] if (installed / "bin").exists() else []),
    }
    for package in ("composers", "pipelines", "studio"):
        assert (installed / package / "py.typed").is_file()
