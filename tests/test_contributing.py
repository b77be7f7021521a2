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
OTHERS = """
    grainy: bool = knob(False, "Grainy", "Whether it has grain.")
    look: str | None = knob(None, "Look", "How it looks.", choices=("old", "new"))
    offset: tuple[int, int] | None = knob(None, "Offset", "Where it is.", low=0, high=9)
"""
"""Fields of the other kinds."""
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
    (folder / "tests" / "studio" / "pictures").mkdir(parents=True)
    (folder / "made").mkdir()
    shutil.copy(ROOT / "tests/studio/pictures/test_every_field.py", folder / "tests/studio/pictures")
    (folder / "composers" / "gentle.py").write_text(code_of("Add a method"), encoding="utf-8")
    file = folder / "pipelines" / "request.py"
    lines = file.read_text(encoding="utf-8")
    place = lines.index("    def __post_init__(self)", lines.index("class Request:"))
    file.write_text(
        f"{lines[:place]}{code_of('Add a request field')}{OTHERS}\n{lines[place:]}", encoding="utf-8"
    )
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
    assert "--grainy, --no-grainy whether it has grain" in told
    assert "--look old|new how it looks" in told
    assert "--offset A,B where it is" in told


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


IN_THE_FORM = """
from composers.plan import Composer
from pipelines.home import Home
from studio.drafts.draft import Draft
from studio.jobs import Trainings, Worker
from studio.web.app import build
from studio.web.form.components import Fields
from studio.web.form.form import draft_of, form_of
from studio.web.pages import compose

import tempfile
from pathlib import Path

home = Home(Path(tempfile.mkdtemp()))
drawn = []
add = compose.add
compose.add = lambda *given: drawn.append(add(*given)) or drawn[-1]
pages = build(Worker(home), Trainings(home))
fields = drawn[0][0]
said = {"sharpness": 0.123, "grainy": True, "look": "old", "offset": (3, 4)}
config = {one["props"].get("label"): one for one in pages.get_config_file()["components"]}
advanced = [one.label for one in pages.blocks.values() if getattr(one, "elem_id", None) in said]
assert advanced == ["Sharpness", "Grainy", "Look", "Offset"], advanced
assert config["Sharpness"]["props"]["info"] == "How sharp it is. -1: the model's own."
assert config["Look"]["props"]["choices"] == [("the model's own", ""), ("old", "old"), ("new", "new")]
assert {name: config[name]["type"] for name in advanced} == {
    "Sharpness": "number", "Grainy": "checkbox", "Look": "dropdown", "Offset": "textbox"}

def on_page(form):
    filled = fields.filled(form, 0).items()
    return {one: told["value"] if isinstance(told, dict) and "__type__" in told else told for one, told in filled}

for values in ({}, said, {"sharpness": None}, {"sharpness": 0.0, "grainy": False}, {"sharpness": 1, "look": None}):
    draft = Draft(values)
    assert draft_of(fields.read(on_page(form_of(draft)))) == draft, values
got = on_page(form_of(Draft(said)))
changed = {"sharpness": 0.5, "grainy": False, "look": "new", "offset": "5, 6"}
got |= {fields.controls[name]: held for name, held in changed.items()}
assert draft_of(fields.read(got)).values == {"sharpness": 0.5, "look": "new", "offset": (5, 6)}
print("fine")
"""


def test_a_new_field_has_a_control_and_its_value_goes_there_and_back(copy: Path) -> None:
    assert run(copy, IN_THE_FORM).strip().endswith("fine")


FOR_PROGRAMS = """
import inspect
from pipelines.request import Request
from studio.web.api import Functions, checked
from studio.web.arguments import draft_of
from studio.web.sdapi.fields import read_asked

assert Request.__module__ == "pipelines.request"
for function in Functions(None).all()[:2]:
    parameter = inspect.signature(checked(function)).parameters["sharpness"]
    told = "    sharpness: How sharp it is. -1" in inspect.getdoc(function)
    print(parameter.default, parameter.annotation.__name__, told)
print(draft_of({"prompt": "a", "sharpness": 0.5}).values)
print(draft_of({"prompt": "a", "sharpness": -1.0}).values)
script = {"LoRA Studio": {"args": ["merge", {"sharpness": 0.25}]}}
asked = read_asked({"prompt": "a", "alwayson_scripts": script}, with_image=False)
print(asked.drafts({})[0].build(None).sharpness)
"""


def test_a_new_field_arrives_at_programs(copy: Path) -> None:
    assert run(copy, FOR_PROGRAMS).splitlines() == [
        "-1.0 float True",
        "-1.0 float True",
        "{'prompt': 'a', 'sharpness': 0.5}",
        "{'prompt': 'a'}",
        "0.25",
    ]


IN_PICTURES = """
from pathlib import Path
from tests.studio.pictures.test_every_field import CHUNK, PARAMETERS, FACTS, Request, again, back
for name, values in {"sharpness": (None, 0.0, 0.25, 1.0), "grainy": (True, False), "look": ("old", None),
                     "offset": ((3, 4), None)}.items():
    for value in values:
        request = Request("a", **{name: value}).resolved(FACTS)
        for text in (CHUNK, PARAMETERS):
            found = back(request, text, Path("made"))
            assert again(found.draft, request) == request, (text, name, value, found)
print("came through")
"""


def test_a_new_field_stands_in_pictures_and_comes_back(copy: Path) -> None:
    assert run(copy, IN_PICTURES) == "came through\n"


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
