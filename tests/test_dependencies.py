"""Every package that is imported is asked for, within bounds, and the set that is tested is written down."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
NEEDED = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
OPTIONAL = [Requirement(text) for texts in EXTRAS.values() for text in texts]
DIRECT = [
    *(one for one in (*NEEDED, *OPTIONAL) if one.name != "lora-studio"),
    *map(Requirement, PROJECT["build-system"]["requires"]),
]
OURS = {"composers", "pipelines", "studio", "tests"}
WITH_TORCH = {"triton"}
"""Comes with torch where there is one for the system; `autotune.available` asks."""


def pins() -> dict[str, Version]:
    """Name -> version, from the constraints file."""
    found = {}
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([\w.!]+)", line)
            assert match, f"{line}: a line is name==version, without paths, hashes and local versions"
            name = canonicalize_name(match[1])
            assert name not in found, name
            found[name] = Version(match[2])
    return found


PINS = pins()


def imported(package: str) -> Iterator[tuple[str, Path]]:
    """The packages that are imported, anywhere in a file, and are neither Python's nor ours."""
    for file in (ROOT / package).rglob("*.py"):
        if "fixtures" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS | WITH_TORCH:
                    yield top, file


@pytest.mark.parametrize("package", sorted(OURS))
def test_every_import_is_a_direct_dependency(package: str) -> None:
    """What comes only with another package goes when that one no longer needs it."""
    sources = importlib.metadata.packages_distributions()
    asked = {canonicalize_name(one.name) for one in DIRECT}
    optional = [Requirement(text) for extra in ("ray", "mcp", "train") for text in EXTRAS[extra]]
    needed = {canonicalize_name(one.name) for one in (*NEEDED, *optional)}
    for name, file in imported(package):
        brought = {canonicalize_name(source) for source in sources.get(name, [name])}
        assert brought & (asked if package == "tests" else needed), f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("asked", DIRECT, ids=str)
def test_every_dependency_has_two_bounds(asked: Requirement) -> None:
    """A later version may break what works today; an earlier one was never tried."""
    operators = {one.operator for one in asked.specifier}
    assert operators == {">=", "<"}, asked


@pytest.mark.parametrize("asked", DIRECT, ids=str)
def test_every_dependency_is_pinned_within_its_bounds(asked: Requirement) -> None:
    pinned = PINS.get(canonicalize_name(asked.name))
    assert pinned is not None, f"{asked.name} is missing in {CONSTRAINTS.name}; make it anew"
    assert asked.specifier.contains(pinned, prereleases=True), f"{asked}: {pinned} is tested"


def test_what_they_need_is_pinned_too() -> None:
    """All that is needed on this system, except what exists on one system alone."""
    missing, seen = set(), set()
    pending = [(one, "") for one in DIRECT]
    while pending:
        asked, extra = pending.pop()
        if asked.marker is not None and not asked.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(asked.name)
        if name.startswith(("nvidia-", "cuda-")) or name in ("triton", "setuptools"):
            continue
        if name not in PINS:
            missing.add(name)
        for own in ("", *asked.extras):
            if (name, own) not in seen:
                seen.add((name, own))
                try:
                    requires = importlib.metadata.requires(name) or []
                except importlib.metadata.PackageNotFoundError:  # an extra that is not installed here
                    continue
                pending += [(Requirement(text), own) for text in requires]
    assert not missing


def test_the_set_is_of_all_systems() -> None:
    assert not [name for name in PINS if name.startswith(("nvidia-", "cuda-", "pywin")) or name == "triton"]


def test_the_set_is_what_the_checks_install_and_the_readme_names() -> None:
    assert f".ci/{CONSTRAINTS.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f'PIP_CONSTRAINT="$PWD/.ci/{CONSTRAINTS.name}"' in (ROOT / ".ci/run").read_text(encoding="utf-8")
