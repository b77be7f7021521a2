"""CONTRIBUTING.md is true: its method and its field of a request are added to a copy of the packages, and arrive."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
HELP = "import sys, studio.cli as c\ntry: c.main(sys.argv[1:])\nexcept SystemExit: pass\n"


def code_of(section: str) -> str:
    """The code in a section of CONTRIBUTING.md."""
    _, _, rest = CONTRIBUTING.partition(f"\n## {section}\n")
    found = re.search(r"```python\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
    assert found, section
    return found[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, with what CONTRIBUTING.md adds and nothing else."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("composers", "pipelines", "studio"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "_assets")
        )
    (folder / "assets").symlink_to(ROOT / "assets")
    (folder / "composers" / "gentle.py").write_text(code_of("Add a method"), encoding="utf-8")
    file = folder / "pipelines" / "request.py"
    lines = file.read_text(encoding="utf-8")
    place = lines.index("    def __post_init__(self)", lines.index("class Request:"))
    file.write_text(f"{lines[:place]}{code_of('Add a request field')}\n{lines[place:]}", encoding="utf-8")
    return folder


def run(copy: Path, code: str, *words: str) -> str:
    """What a program says that runs on the copy."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=copy,
        env={
            "PYTHONPATH": str(copy), "PATH": "", "HOME": str(copy), "PYTHONDONTWRITEBYTECODE": "1",
            "LORA_STUDIO_HOME": str(copy / "home"),
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- a field of a request ------------------------------------------------------------------------------------


def test_a_new_field_arrives_on_the_command_line(copy: Path) -> None:
    told = " ".join(run(copy, HELP, "render", "--help").split())
    assert "--sharpness X how sharp it is (0 … 1)" in told


def test_a_new_field_arrives_in_job_files(copy: Path) -> None:
    code = (
        "import json\nfrom studio.batch.schema import schema\n"
        "print(json.dumps(schema()['$defs']['job']['properties']['sharpness']))"
    )
    told = json.loads(run(copy, code))
    assert told["description"] == "How sharp it is."
    assert told["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    table = copy / "jobs.csv"
    table.write_text("prompt,sharpness\na fox,0.1-0.3 (+0.1)\n")
    code = (
        "import sys\nfrom pathlib import Path\nfrom studio.batch.jobfile import read_jobs\n"
        "from studio.batch.plan import Ground, plan\nfrom studio.batch.problems import Problems\n"
        "from studio.batch.variants import Wildcards\nproblems = Problems()\nfile = Path(sys.argv[1])\n"
        "jobs = plan(read_jobs(file, problems), Ground('tiny-sdxl', {}, Wildcards(file.parent)), problems)\n"
        "print(problems.messages, [job.draft.values['sharpness'] for job in jobs])"
    )
    assert run(copy, code, str(table)).strip() == "[] [0.1, 0.2, 0.3]"


def test_a_new_field_is_judged_at_the_gate(copy: Path) -> None:
    code = (
        "from pipelines.request import Request\nfrom pipelines.errors import RequestError\n"
        "assert Request('a fox', sharpness=0.5).sharpness == 0.5\n"
        "try: Request('a fox', sharpness=2)\nexcept RequestError as error: print(error)"
    )
    assert run(copy, code).strip() == "sharpness=2 must be a number in 0 … 1"


# -- a method ------------------------------------------------------------------------------------------------


def test_a_new_method_arrives_on_the_command_line(copy: Path) -> None:
    told = run(copy, HELP, "render", "--help")
    assert "gentle     all LoRAs together, weaker at first" in told
    assert "start=0.5  The strengths' factor in the first half." in told


def test_a_new_method_arrives_in_job_files_and_draws(copy: Path) -> None:
    code = (
        "import json\nfrom studio.batch.schema import schema\nfrom composers import methods\n"
        "assert 'gentle' in json.dumps(schema())\n"
        "from pipelines import Request, StudioPipeline\n"
        "pipe = StudioPipeline.from_pretrained('tiny-sd')\n"
        "image = pipe(Request('a fox', composer=methods()['gentle'](0.25), steps=2, seed=1)).records[0]\n"
        "print(image.composer)"
    )
    assert run(copy, code).strip() == "gentle:start=0.25"


# -- the documents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [ARCHITECTURE, CONTRIBUTING], ids=["ARCHITECTURE", "CONTRIBUTING"])
def test_what_the_documents_name_is_there(text: str) -> None:
    named = re.findall(r"`((?:studio|pipelines|composers|tests|assets)/[\w/.-]+)`", text)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_folders_are_those_of_the_tree() -> None:
    tree = ARCHITECTURE.partition("## Folders\n")[2].partition("```\n")[2].partition("```")[0]
    package = ""
    for line in tree.splitlines():
        name = line.split()[0]
        package = package if line.startswith(" ") else name
        inner = [] if name == package else re.findall(r"(?:^|\s)([\w]+(?:/|\.py))", line)
        assert (ROOT / package).is_dir()
        for one in inner:
            assert (ROOT / package / one).exists() or list((ROOT / package).rglob(one.rstrip("/"))), line


def test_the_documents_are_short() -> None:
    assert max(len(text.splitlines()) for text in (ARCHITECTURE, CONTRIBUTING)) <= 160
