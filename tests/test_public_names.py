"""The names that programs may import from `composers` and `pipelines`, each with what it is."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import composers
import pipelines

ROOT = Path(__file__).resolve().parent.parent
NAMES: dict[ModuleType, set[str]] = {
    composers: {
        *("BLora", "CMLoRA", "Composite", "Merge", "Switch"),
        *("Composer", "Guidance", "Knob", "Lane", "Mix", "Plan", "Prompt", "Schedule", "Step", "Use"),
        *("ComposerError", "StudioError"),
        *("build", "guided", "knob", "methods", "parse", "settings_of", "spell"),
    },
    pipelines: {
        *("StudioPipeline", "Result", "Record", "LoadReport", "Request", "Session", "Ticket", "StudioError"),
        *("Event", "Started", "Stepped", "Finished", "Failed", "Cancelled"),
    },
}


@pytest.mark.parametrize("package", NAMES, ids=lambda package: package.__name__)
def test_the_public_names_are_these(package: ModuleType) -> None:
    """A name more is a promise more; a name less breaks somebody's program."""
    assert set(package.__all__) == NAMES[package]
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize(
    ("package", "name"),
    [(package, name) for package, names in NAMES.items() for name in sorted(names)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_public_name_says_what_it_is(package: ModuleType, name: str) -> None:
    found = getattr(package, name)
    if name == "Event":  # a union of the others
        return
    said = inspect.getdoc(found) or ""
    assert said, name
    assert not said.startswith(f"{name}("), "a dataclass' own signature is no docstring"
    if inspect.isclass(found):
        for member, value in vars(found).items():
            plain = inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
            if plain and not member.startswith("_"):
                assert inspect.getdoc(getattr(found, member)), f"{name}.{member}"


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Fox'"):
        _ = pipelines.Fox


@pytest.mark.parametrize("package", ["composers", "pipelines", "studio"])
def test_every_module_says_what_it_holds(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if file.name != "__init__.py" or file.stat().st_size:
            assert re.match(r"\S.*[.:]", said.split("\n\n")[0].replace("\n", " ")), file.relative_to(ROOT)
