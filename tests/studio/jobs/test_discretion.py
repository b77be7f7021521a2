"""What people elsewhere are told names no place on this computer."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.home import Home
from studio.jobs import Worker
from studio.jobs.discretion import without_places
from studio.jobs.gate import Trust
from studio.web.sdapi import lists


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{home}/loras/fox.safetensors: truncated", "loras/fox.safetensors: truncated"),
        (
            "unknown LoRA 'fo': Put the file into {home}/loras, or …",
            "unknown LoRA 'fo': Put the file into loras, or …",
        ),
        ("'{more}/a b.safetensors' is gone", "'a b.safetensors' is gone"),
        ("no such file: '/etc/ssl/private/key.pem'", "no such file: 'key.pem'"),
        ("see https://huggingface.co/a/b/c for 3/4 of it", "see https://huggingface.co/a/b/c for 3/4 of it"),
        ("write <lora:name:0.8> or a</b>", "write <lora:name:0.8> or a</b>"),
        (r"C:\Users\ann\x.png is no picture", "x.png is no picture"),
        (r"'C:\\Users\\ann\\x.png' is no picture", "'x.png' is no picture"),
        (r"\\server\share\x.png is no picture", "x.png is no picture"),
        (r"'\\\\server\\share\\x.png' is no picture", "'x.png' is no picture"),
        ("see file:///home/ann/x.png", "see x.png"),
        ("~/secret/x.png", "x.png"),
        (
            "a link of that name leads to /etc. It is …",
            "a link of that name leads to a folder elsewhere. It is …",
        ),
        ("a fox", "a fox"),
    ],
)
def test_paths_are_cut_down_to_their_last_part(tmp_path: Path, said: str, told: str) -> None:
    home, more = tmp_path / "my home", tmp_path / "more models"
    for folder in (home, more):
        folder.mkdir()
    known = Home.resolve(home, lora_dirs=[more])
    assert without_places(said.format(home=home, more=more), known) == told


def test_the_worker_tells_places_to_its_owner_alone(tmp_path: Path) -> None:
    """Errors of jobs, of models and of lists are told through it."""
    here = Worker(Home.resolve(tmp_path / "mine"))
    away = Worker(Home.resolve(tmp_path / "theirs"), trust=Trust(paths=False, downloads=False))
    said = f"{tmp_path}/theirs/loras/fox.safetensors is gone"
    assert here.discreet(said) == said
    assert away.discreet(said) == "loras/fox.safetensors is gone"
    assert all(str(tmp_path) not in str(entry) for entry in lists.vaes(away))
    assert all("/" not in entry["filename"].strip("/") for entry in lists.models(away))
    for worker in (here, away):
        worker.close()
