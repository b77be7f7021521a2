"""One line says what a model is, or why it cannot be used: in lists, `inspect`, `doctor` and the picker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.checkpoints import load_checkpoint
from pipelines.errors import ModelError
from pipelines.families.family import SD1, SD2
from pipelines.home import Home
from studio.commands import doctor
from studio.library.models import list_models
from studio.terminal.progress import Teller
from studio.web.parts.model_picker import _found, _label

from ...pipelines.checkpoints.headers import published, write_header

Run = Callable[..., Any]


@pytest.fixture
def lines(home: Path) -> dict[str, str]:
    """Name -> its line, for a model of each kind."""
    folder = home / "models"
    folder.mkdir(parents=True)
    write_header(folder / "plain.safetensors", published(SD1))
    write_header(folder / "noted.safetensors", published(SD2) | {"their_version": ()})
    write_header(folder / "odd.safetensors", published(SD1) | {"their.network.weight": (4, 4)})
    write_header(folder / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (4, 4)})
    found = {entry.name: entry.base for entry in list_models(Home.resolve()) if not entry.embedded}
    assert found["plain"] == SD1.label
    assert found["noted"].startswith(
        f"{SD2.label}; left out of its file, as it holds no weight: their_version"
    )
    assert "not understood (1): their.network.weight" in found["odd"]
    assert found["flux"].startswith("flux.safetensors is a FLUX model")
    return found


def test_loading_says_what_the_list_says(home: Path, lines: dict[str, str]) -> None:
    for name in ("odd", "flux"):
        with pytest.raises(ModelError) as refused:
            load_checkpoint(name, home=Home.resolve())
        assert str(refused.value) == lines[name]


def test_commands_show_the_line(
    run: Run,
    home: Path,
    lines: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {row["name"]: row["base"] for row in json.loads(run("models", "--json").out)}
    for name, line in lines.items():
        assert rows[name].removeprefix("cannot be used: ") == line
    inspected = run("inspect", "plain", home / "models" / "noted.safetensors")
    assert inspected.code == 0
    assert [line.strip() for line in inspected.out.splitlines()][1::2] == [lines["plain"], lines["noted"]]
    refused = run("inspect", home / "models" / "odd.safetensors")
    assert refused.code == 2
    assert lines["odd"] in refused.err
    monkeypatch.setattr(doctor, "_test_picture", lambda home, problems: None)
    doctor.run(None, Home.resolve(), Teller())
    out = capsys.readouterr().out
    assert f"plain: {lines['plain']}" in out
    assert f"odd: cannot be used: {lines['odd']}" in out


def test_the_picker_shows_the_line(lines: dict[str, str]) -> None:
    entries = [entry for entry in list_models(Home.resolve()) if not entry.embedded]
    page = _found(entries)
    for entry in entries:
        assert lines[entry.name].split("'")[0] in page.replace("&#x27;", "'")
        assert lines[entry.name] in _label(entry)
