"""FLoRA's cost model: the inequality, the measured crossover, and a whole run at small size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from studio.bench.flora import Layer, main, measured_crossover, predicted_crossover


def test_the_predicted_crossover_is_the_papers_inequality() -> None:
    """2 c1 / (d c2) + 1 / r >= 1 for d = k."""
    layer = Layer("", 100, 100, 1)
    assert predicted_crossover(layer, c1=25, c2=1) == pytest.approx(2)  # 0.5 + 1 / r
    assert predicted_crossover(layer, c1=40, c2=1) == pytest.approx(5)
    assert predicted_crossover(layer, c1=0, c2=1) == 1
    assert predicted_crossover(layer, c1=50, c2=1) == math.inf
    wide = Layer("", 100, 300, 1)  # c1 (d + k) / (c2 d k) = c1 / 75
    assert predicted_crossover(wide, c1=60, c2=1) == pytest.approx(5)


def test_the_measured_crossover_lies_between_two_ranks() -> None:
    lora = {1: 2.0, 2: 2.0, 4: 2.0}
    assert measured_crossover({1: 1.0, 2: 1.5, 4: 3.5}, lora) == pytest.approx(2.5)
    assert measured_crossover({1: 1.0, 2: 1.1, 4: 1.2}, lora) == math.inf
    assert measured_crossover({1: 3.0, 2: 4.0, 4: 5.0}, lora) == 0
    assert measured_crossover({1: 1.0, 2: 2.0, 4: 2.5}, lora) == 2


def test_a_run_writes_its_figures_and_its_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.bench.flora.LAYERS", {"tiny": (Layer("a", 24, 16, 5), Layer("b", 8, 8, 1))})
    words = ["--lanes", "3", "--ranks", "1", "2", "5", "--repeats", "2"]
    assert main([*words, "--json", str(tmp_path / "f.json"), "--plot", str(tmp_path / "f.png")]) == 0
    told = json.loads((tmp_path / "f.json").read_text())
    assert [found["layer"]["name"] for found in told["layers"]] == ["a", "b"]
    for found in told["layers"]:
        assert found["difference"] < 1e-5  # both forms against merged weights
        assert found["seconds"].keys() == {"base", "LoRA", "products", "weights"}
        assert all(found["seconds"]["products"][rank] > 0 for rank in ("1", "2", "5"))
    assert (tmp_path / "f.png").stat().st_size > 10_000
    assert "products are no slower than LoRA up to rank" in capsys.readouterr().out
