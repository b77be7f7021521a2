"""A file in `studio/commands` is a command: cheap to know, and handed one value instead of flags."""

from __future__ import annotations

import ast
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import studio.commands
from studio.cli import parser
from studio.commands import registry
from studio.commands.flags import Command, CommandGroup

STUDIO = Path(studio.commands.__file__).parent.parent
FILES = sorted(
    path for path in (STUDIO / "commands").glob("*.py") if path.stem not in ("__init__", "registry")
)
HEAVY = ("torch", "gradio", "numpy", "PIL", "diffusers", "transformers", "rich", "yaml", "pipelines")

HELLO = """
from studio.commands.flags import Command

def run(name, home, teller):
    print(f"hello {name}")
    return 0

COMMANDS = (
    Command(
        "hello",
        help="greet somebody",
        add=lambda command: command.add_argument("name"),
        read=lambda args: args.name,
        run=run,
    ),
)
"""


def commands() -> list[Command[Any]]:
    return [each for each in registry.commands() if isinstance(each, Command)]


def imported_at_the_top(body: list[ast.stmt]) -> Iterator[str]:
    """Modules that are imported when the file is; those for types alone are not."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from imported_at_the_top(node.body)


def test_the_whole_parser_is_built_without_anything_heavy() -> None:
    code = f"import sys; from studio.cli import parser; parser(); print({HEAVY} & sys.modules.keys())"
    code = code.replace(f"{HEAVY}", repr(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["render", "--help"], {"render", "flags", "registry"}),
        (["probe-blocks", "tiny-sdxl"], {"probe_blocks", "flags", "registry"}),
        (["bench", "speed"], {file.stem for file in FILES} | {"registry"}),  # others share its group
        (["models"], {file.stem for file in FILES} | {"registry"}),  # its file has another name
        (["flags"], {file.stem for file in FILES} | {"registry"}),  # a file without commands
        (["--help"], {file.stem for file in FILES} | {"registry"}),
        ([], {file.stem for file in FILES} | {"registry"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_is_named_is_the_only_one_imported(words: list[str], files: set[str]) -> None:
    code = (
        f"import sys; from studio.cli import parser; parser({words}); "
        "print(*(name.split('.')[2] for name in sys.modules if name.startswith('studio.commands.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == files


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_command_imports_the_standard_library_composers_and_the_flags(file: Path) -> None:
    cheap = ("composers", "studio.commands.flags", "studio.terminal.exits")
    for name in imported_at_the_top(ast.parse(file.read_text(encoding="utf-8")).body):
        assert name.split(".")[0] in sys.stdlib_module_names or name.startswith(cheap), name


def test_adding_a_file_adds_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any, home: Path
) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    monkeypatch.setattr(studio.commands, "__path__", [*studio.commands.__path__, str(tmp_path)])
    registry.commands.cache_clear()
    try:
        assert "greet somebody" in parser().format_help()
        assert run("hello", "fox").out == "hello fox\n"
    finally:
        sys.modules.pop("studio.commands.hello", None)
        registry.commands.cache_clear()


def test_no_flags_go_further_than_the_door() -> None:
    """Files that are run by `python -m` have doors of their own."""
    for file in STUDIO.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        at_the_door = file.parent.name == "commands" or file.name == "cli.py"
        assert at_the_door or "Namespace" not in text, file.relative_to(STUDIO)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_run_takes_values_not_flags(file: Path) -> None:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any("Namespace" in ast.unparse(a) for a in node.args.args):
            assert node.name.startswith(("read", "_read")), node.name


def test_every_command_reads_its_flags_into_a_value() -> None:
    words = {
        "batch": ["jobs.yaml", "--out", "pictures"],
        "inspect": ["fox"],
        "import-paths": ["webui"],
        "convert": ["fox", "--to", "kohya"],
        "split": ["fox", "--style", "style.safetensors"],
        "probe-blocks": ["tiny-sdxl"],
        "train-blora": ["cat.png", "--prompt", "a cat", "--out", "cat.safetensors"],
        "train-flora": ["cat.png", "--prompt", "a cat", "--out", "cat.safetensors"],
        "advise": ["--lora", "fox", "--lora", "hat"],
    }
    for command in commands():
        line = [*command.name.split(), *words.get(command.name, [])]
        args = parser(line).parse_args(line)
        assert args.chosen is command
        assert not isinstance(command.read(args), Namespace)


def test_names_and_places_are_taken_once() -> None:
    names = [each.name for each in registry.commands()]
    places = [each.place for each in registry.commands()]
    assert len(set(names)) == len(names)
    assert len(set(places)) == len(places)
    groups = {each.name for each in registry.commands() if isinstance(each, CommandGroup)}
    assert {name.split()[0] for name in names if " " in name} <= groups
