"""Imports run one way: studio -> pipelines -> composers -> the standard library, and so do those within each."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.adapters.kinds import ADAPTER_KINDS

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

# The rooms of a folder, each above all that it imports. A room is an inner folder, or a module that lies in the folder
# itself; "__init__" is the folder's own. Those of one line do not import each other.
ROOMS: dict[str, list[str]] = {
    "pipelines": [
        "errors features pace turns",
        "assets bounds families faults memory schedulers",
        "home text",
        "adapters blocks checkpoints",
        "embeddings engine request",
        "inpainting model",
        "trajectory",
        "decoding denoise record texts",
        "events",
        "flight",
        "admission device_time notes preparation",
        "finishing",
        "session",
        "spectrum",
        "pipeline",
        "__init__ training",
        "blora flora",
    ],
    "pipelines.adapters": [
        "container sidecars terms",
        "adapter kinds plain",
        "keys metadata pinned",
        "origin peft_settings spellings",
        "starts structure writing",
        "stated_scales",
        "reporting",
        "factors inspection placing",
        "reading",
        "conversion",
        "__init__",
    ],
    "pipelines.engine": [
        "__init__ backends compiling products unet_call",
        "reference residency",
        "planner stage",
        "calibration engine",
    ],
    "studio": [
        "__init__ library terminal",
        "drafts",
        "pictures",
        "rendering",
        "batch jobs",
        "grid web",
        "bench",
        "commands",
        "cli",
        "__main__",
    ],
    "studio.web": [
        "__init__ arguments door form waiting",
        "api parts sdapi",
        "pages",
        "app",
        "server",
    ],
    "studio.bench": [
        "__init__ cmlora kernels quality speed workers",
        "base flora",
    ],
    "composers": [
        "errors shown",
        "plan",
        "blora cmlora composite merge switch",
        "registry",
        "__init__",
    ],
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


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for package in FORBIDDEN for file in (ROOT / package).rglob("*.py")}


def modules_imported(module: str) -> set[str]:
    """The modules of ours that one of them names in an import, wherever it stands: at the top, in a function, under
    TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found & MODULES.keys()


ARROWS = {module: modules_imported(module) for module in MODULES}


def room(module: str, folder: str) -> str | None:
    """In which room of a folder a module lies; None for one that lies elsewhere."""
    if module == folder:
        return "__init__"
    inside = module.startswith(f"{folder}.")
    return module.removeprefix(f"{folder}.").partition(".")[0] if inside else None


@pytest.mark.parametrize("folder", ROOMS)
def test_every_room_has_its_place(folder: str) -> None:
    rooms = {room(module, folder) for module in MODULES} - {None}
    listed = [name for line in ROOMS[folder] for name in line.split()]
    assert sorted(listed) == sorted(rooms)


@pytest.mark.parametrize("folder", ROOMS)
def test_rooms_import_downwards_only(folder: str) -> None:
    """Which holds for circles too: there is none where nothing leads up."""
    floor = {name: height for height, line in enumerate(ROOMS[folder]) for name in line.split()}
    upward = [
        f"{module} imports {other}"
        for module, others in ARROWS.items()
        for other in others
        if (own := room(module, folder)) is not None
        and (its := room(other, folder)) is not None
        and own != its
        and floor[its] >= floor[own]
    ]
    assert not upward


def test_every_folder_with_inner_folders_has_its_rooms_listed() -> None:
    folders = {module for module, file in MODULES.items() if file.name == "__init__.py"}
    assert {folder.rpartition(".")[0] for folder in folders} - {""} | {"composers"} == set(ROOMS)


@pytest.mark.parametrize("package", ["studio", "pipelines"])
def test_the_document_tells_the_same_order(package: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    told = text.partition(f"\n{package}  ")[2].partition("\n```")[0].partition("\npipelines")[0]
    floors = [sorted(floor.split()) for floor in told.split("<")]
    own = [sorted(set(line.split()) - {"__init__", "__main__"}) for line in ROOMS[package]]
    assert floors == [line for line in own if line]


def test_few_modules_lie_flat_in_studio() -> None:
    """What a room has not been found for soon becomes twenty-five of them."""
    assert len([module for module in MODULES if module.count(".") == 1 and module.startswith("studio.")
                and MODULES[module].name != "__init__.py"]) <= 6  # fmt: skip


def test_tags_of_prompts_are_read_in_few_places() -> None:
    """A draft holds what they ask for; nobody reads them from its prompt again."""
    callers = {
        module
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "take_tags"
    }
    assert 1 <= len(callers) <= 4, callers


READERS = {
    "json": {"load", "loads", "JSONDecoder"},
    "yaml": {"load", "load_all", "safe_load", "safe_load_all", "unsafe_load", "full_load"},
    "tomllib": {"load", "loads"},
    "Image": {"open"},
}
"""Readers that raise almost anything for a text that is made for it: module -> its functions."""

READING = {
    "pipelines.home.plain",  # the one place, within bounds
    "pipelines.home.headers",  # a safetensors header, counted before
    "pipelines.adapters.container",  # our own bytes, before they are written
    *("studio.drafts.picture_file", "studio.bench.workers"),  # pictures
    # JSON and YAML of rooms above the library, each within bounds of its own
    *("studio.batch.manifest", "studio.batch.values"),
    *("studio.pictures.identity", "studio.web.door.guard"),
}


def test_strangers_texts_are_read_in_few_places() -> None:
    """Everybody else asks `pipelines.home.plain`, which counts before it reads, and turns what a reader raises into one
    error. Benchmarks read their own files."""
    calling = {
        module
        for module, file in MODULES.items()
        if not module.startswith("studio.bench.quality.")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in READERS.get(node.value.id, ())
    }
    assert calling == READING


KINDS = "pipelines.adapters.kinds"
TERMS = {"LowRank", "Hadamard", "Whole", "Shift", "Several"}
WRITERS = {"pipelines.adapters.conversion", "pipelines.adapters.writing", "pipelines.flora.flora_training"}
"""What writes a type knows which it is."""


def outside_kinds() -> list[str]:
    """The modules that read, report and apply adapters, but for the types themselves and their terms."""
    rooms = ("pipelines.adapters.", "pipelines.engine.", "studio.")
    own = (KINDS, "pipelines.adapters.terms")
    return [module for module in MODULES if module.startswith(rooms) and not module.startswith(own)]


def test_nobody_asks_for_the_class_of_a_term() -> None:
    """A term says what it changes. So a new one is a class in `terms.py`, and what applies it."""
    asking = {
        module
        for module in outside_kinds()
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "isinstance"
            and TERMS & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
        )
        or (isinstance(node, ast.MatchClass) and isinstance(node.cls, ast.Name) and node.cls.id in TERMS)
    }
    assert not asking - WRITERS


def test_types_of_adapters_are_named_in_their_own_files_alone() -> None:
    """No type's file is imported elsewhere, and no text is its name. "LoRA" and "full" are words of other things."""
    names = {kind.name for kind in ADAPTER_KINDS} | {
        word for kind in ADAPTER_KINDS for word in kind.peft_types
    }
    types = {type(kind).__module__ for kind in ADAPTER_KINDS}
    for module in [*outside_kinds(), "pipelines.adapters.keys"]:
        if module in WRITERS:
            continue
        assert not ARROWS[module] & types - {f"{KINDS}.{shared}" for shared in ("unsupported", "papers")}, (
            module
        )
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in names - {"LoRA", "full"}:
                raise AssertionError(f"{module}:{node.lineno} names {node.value}")


def test_modules_import_each_other_in_no_circle() -> None:
    graphlib.TopologicalSorter(ARROWS).prepare()  # raises CycleError


def test_the_top_level_is_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert top <= {
        *("pyproject.toml", "studio", "pipelines", "composers", "tests", "assets"),
        *(
            "ARCHITECTURE.md",
            "CONTRIBUTING.md",
            "README.md",
            "CHANGELOG.md",
            "BENCHMARKS.md",
            "LICENSE",
            ".ci",
            ".gitignore",
            ".gitattributes",
        ),
    }


def test_tracked_files_stay_light() -> None:
    """A clone and a wheel must stay light: 55 MB in all."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    sizes = [(ROOT / name).stat().st_size for name in tracked.split("\0") if name and (ROOT / name).exists()]
    assert sum(sizes) <= 55_000_000


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
