"""A home of one's own for every test, and the command line called in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import StudioPipeline
from pipelines.home import Home
from studio.cli import main
from studio.rendering.opening import Opening, model_name, open_pipeline


@dataclass(frozen=True)
class Ran:
    """What a command gave."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


_opened: dict[object, StudioPipeline] = {}


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model takes a second: commands that open it in the same way share it, without its adapters."""

    def shared(opening: Opening, home: Home, notify: Callable[[str], None] | None = None) -> StudioPipeline:
        found = home.find_model(model_name(opening, home))
        key = (found, opening)
        if key not in _opened:
            _opened[key] = open_pipeline(opening, home, notify)
        _opened[key].unload_lora_weights()
        return _opened[key]

    monkeypatch.setattr("studio.batch.run.open_pipeline", shared)
    monkeypatch.setattr("studio.rendering.opening.open_pipeline", shared)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that is not there yet."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LORA_STUDIO_HOME", str(folder))
    return folder


@pytest.fixture
def loras(home: Path, sdxl_folder: Path, make_lora: Callable[..., Path]) -> Path:
    """The home's LoRA folder with `fox` and `hat`, for the random SDXL model."""
    folder = home / "loras"
    folder.mkdir(parents=True)
    for name, seed in (("fox", 1), ("hat", 2)):
        shutil.copy(make_lora(sdxl_folder, name, seed=seed), folder)
    return folder


@pytest.fixture
def run(home: Path, loaded_once: None, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("render", …) -> exit code, stdout, stderr."""

    def call(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call


@pytest.fixture
def render(run: Run, sdxl_folder: Path) -> Run:
    """run("render") with the random model and very small pictures."""

    def call(*words: object) -> Ran:
        model = ("--model-dir", sdxl_folder.parent, "--model", sdxl_folder.name)
        return run("render", *model, "--steps", 3, "--size", "32x32", *words)

    return call
