"""`doctor` names what is wrong, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.home import Home
from studio.commands import doctor
from studio.terminal.exits import OK, SOME_FAILED
from studio.terminal.progress import Teller


def test_the_doctor_names_what_is_wrong(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sdxl_folder: Path
) -> None:
    monkeypatch.setattr(doctor, "_test_picture", lambda home, problems: None)
    assert doctor.run(None, Home.resolve(), Teller()) == OK
    out = capsys.readouterr().out
    assert all(word in out for word in ("python", "torch", "device", str(home), "all is well"))
    home.mkdir()
    (home / "config.toml").write_text("[folders]\nloras = ['/nowhere']")
    assert doctor.run(None, Home.resolve(), Teller()) == SOME_FAILED
    assert "/nowhere does not exist" in capsys.readouterr().out
