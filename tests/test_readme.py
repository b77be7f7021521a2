"""What the README tells people to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from studio.cli import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    inline = re.findall(r"`(lora-studio [^`]+)`", README)
    return [line for line in text.splitlines() if line.startswith("lora-studio ")] + inline


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str) -> None:
    words = shlex.split(command.split(" #")[0])[1:]
    assert parser().parse_args(words).command == words[0]


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = blocks("python")  # the first one is run against a server, in tests/studio/web
    assert code.count("steps=30") == 1
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    exec(code.replace("steps=30", "steps=3"), {})  # else its second picture takes eight seconds
    assert (tmp_path / "fox.png").is_file()
    assert "nilo-fox" in capsys.readouterr().out


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
