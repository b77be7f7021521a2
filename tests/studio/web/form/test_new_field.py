"""A new field of Request is in the web form without an edit of the form: one line there is all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
LINE = """    sharpness: float | None = knob(None, "Sharpness", "How sharp.", low=0, high=1)
    grainy: bool = knob(False, "Grainy", "Whether it has grain.")
    look: str | None = knob(None, "Look", "How it looks.", choices=("old", "new"))
    offset: tuple[int, int] | None = knob(None, "Offset", "Where it is.", low=0, high=9)
"""
LOOK = """
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
assert config["Sharpness"]["props"]["info"] == "How sharp. -1: the model's own."
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


def test_a_new_field_has_a_control_and_its_value_goes_there_and_back(
    tmp_path: Path,
) -> None:
    for package in ("composers", "pipelines", "studio"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
        )
    request = tmp_path / "pipelines" / "request.py"
    text = request.read_text(encoding="utf-8")
    before = "    crop: tuple[int, int] = knob("
    assert text.count(before) == 1
    request.write_text(text.replace(before, LINE + before), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LORA_STUDIO_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip().endswith("fine"), done.stderr
