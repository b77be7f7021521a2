"""`python -m studio.bench.base`: every way is the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.bench import base


def test_every_way_gives_the_same_predictions(
    sdxl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    flags = ["--model", str(sdxl_folder), "--size", "32", "--images", "1", "--repeats", "1", "--profile"]
    choice = ["--builds", "plain", "channels last", "--attention", "auto", "math", "--backend", "eager"]
    base.main([*flags, *choice, "--json", str(file)])
    ways = json.loads(file.read_text())["found"]["32"]
    assert len(ways) == 4
    assert all(way["difference"] < 1e-5 for way in ways)
    assert all(way["profile"]["parts"] for way in ways)
    assert "channels last, math" in capsys.readouterr().out
