"""Imports run one way: studio -> pipelines -> composers -> the standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "composers": {
        "torch",
        "numpy",
        "diffusers",
        "transformers",
        "gradio",
        "pipelines",
        "studio",
        "assets",
        "tests",
    },
    "pipelines": {"gradio", "studio", "assets", "tests"},
    "studio": {"assets", "tests"},
}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_downwards_only(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & FORBIDDEN[package], file.relative_to(ROOT)


def test_the_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert top <= {
        *("pyproject.toml", "studio", "pipelines", "composers", "tests", "assets"),
        *("README.md", "CHANGELOG.md", "BENCHMARKS.md", "LICENSE", ".ci", ".gitignore", ".gitattributes"),
    }


def test_tracked_files_stay_light() -> None:
    """A clone and a wheel must stay light: 50 MB in all."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    sizes = [(ROOT / name).stat().st_size for name in tracked.split("\0") if name and (ROOT / name).exists()]
    assert sum(sizes) <= 50_000_000


def test_importing_writes_nothing_and_warns_of_nothing(tmp_path: Path) -> None:
    code = "import composers, pipelines"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={
            "HOME": str(tmp_path),
            "LORA_STUDIO_HOME": str(tmp_path / "home"),
            "PATH": "",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "home").exists()
