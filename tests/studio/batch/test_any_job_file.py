"""Whatever a job file, an override or a grid's axis holds: it becomes jobs, or messages, soon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from studio.batch.jobfile import from_objects, read_jobs
from studio.batch.plan import Ground, plan
from studio.batch.problems import Problems
from studio.batch.values import read_override
from studio.batch.variants import Wildcards, draw, every, read_template
from studio.grid.axes import NAMES, read_axis
from studio.grid.grid import make_grid

from ...fuzzing import cases
from ...odd_values import anything, changed_texts, changed_values, json_of, only_refused, texts

JOBS = {
    "defaults": {"steps": "4-8 (+2)", "prompt": "a {red|2::blue} fox"},
    "jobs": [
        {
            "prompt": "a __animal__",
            "seed": "1-3",
            "adapters": {"fox": [0.5, 1.0]},
            "name": "a",
            "count": 2,
            "variants": "all",
        },
        {
            "prompt": ["a", "b"],
            "composer": ["merge", {"method": "switch", "interval": [1, 5]}],
            "model": "tiny",
            "crop": "1,2",
        },
        {
            "adapters": [{"adapter": "fox", "weight": "0-1 [3]"}, "owl"],
            "guidance_scale": 1.5,
            "init_image": "a.png",
        },
    ],
}
YAML = (
    "defaults: {steps: 4}\njobs:\n- prompt: a fox\n  seed: 1-3\n  adapters: &mix {fox: [0.5, 1]}\n"
    "- prompt: b\n  adapters: *mix\n"
    "- {<<: *mix, prompt: c}\n",
    "- prompt: !!str 5\n  seed: 0x1F\n- prompt: 2020-01-01\n  steps: 1_000\n- ? [a]\n"
    "  : b\n- prompt: |\n    a\n    b\n",
)
CSV = ('prompt,seed,adapters,composer,crop\na fox,1-3,fox=0.8; owl=0.5:0.2|hat,merge|switch,"1,2"\n',)
PROMPTS = (
    'a fox --steps 20 --seed 1-4 --lora fox=0.8\n--prompt "b" --size 64x64 --n_iter 2 --batch_size 2\n# c\n',
)
PARTS = (
    "{",
    "|",
    "}",
    "__",
    "::",
    "-",
    " (+",
    ")",
    " [",
    "]",
    "&a ",
    "*a ",
    "!!python/object:os.system ",
    "!!binary ",
    "!!set ",
    "!!timestamp ",
    "2020-99-99",
    "? ",
    ": ",
    "- ",
    "<<: ",
    "%",
    "---\n",
    "...\n",
    "\t",
    ";",
    "=",
    ",",
    "0o9",
    "1:99:99",
    ".inf",
    "2$$",
    "--lora ",
    "--",
)
MOST = 2000


def few(problems: Problems) -> None:
    for message in problems.messages:
        assert len(message) < 1500
        message.encode()


def planned(jobs: Any, problems: Problems) -> None:
    ground = Ground("tiny", {}, Wildcards(None))
    for picture in plan(jobs, ground, problems):
        json.dumps(picture.fields, default=str)
        str(picture.file).encode()


def read(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    problems = Problems()
    with only_refused(1_000_000):
        jobs = read_jobs(file, problems)
        if not problems.messages:
            planned(jobs, problems)
        few(problems)
        problems.refuse("it")


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@cases(ci=100, text=st.one_of(changed_values(JOBS).map(json_of), changed_texts([json.dumps(JOBS)], PARTS)))
def test_json_and_jsonl_become_jobs_or_messages(tmp_path: Path, text: str) -> None:
    read(tmp_path / "jobs.json", bytes_of(text))
    read(tmp_path / "jobs.jsonl", bytes_of(text))


@cases(ci=100, text=st.one_of(changed_texts([*YAML, json.dumps(JOBS)], PARTS), texts))
def test_yaml_becomes_jobs_or_messages(tmp_path: Path, text: str) -> None:
    read(tmp_path / "jobs.yaml", bytes_of(text))


@cases(ci=100, text=st.one_of(changed_texts([*CSV, *PROMPTS], PARTS), texts))
def test_rows_and_lines_become_jobs_or_messages(tmp_path: Path, text: str) -> None:
    read(tmp_path / "jobs.csv", bytes_of(text))
    read(tmp_path / "jobs.txt", bytes_of(text))


@cases(
    ci=100,
    jobs=st.lists(
        changed_values(JOBS["jobs"][0], anything).filter(lambda one: isinstance(one, dict)), max_size=2
    ),
)
def test_jobs_given_as_objects_become_pictures_or_messages(jobs: list[Any]) -> None:
    problems = Problems()
    planned(from_objects(jobs), problems)
    few(problems)


@cases(
    ci=100,
    text=changed_texts(
        ["steps=8", "adapters={fox: 0.5}", "composer=[merge, switch]", "prompt=a", "seed=1-4"], PARTS
    ),
)
def test_an_override_is_read_or_refused(text: str) -> None:
    with only_refused():
        name, value = read_override(text)
        problems = Problems()
        plan(from_objects([{"prompt": "a"}]), Ground("tiny", {name: value}, Wildcards(None)), problems)
        few(problems)


@cases(
    ci=100,
    text=st.one_of(
        texts, changed_texts(["a {red|2::{blue|b}} __animal__ \\{fox\\}", "{a|b}{c|d}{e|f|g}"], PARTS)
    ),
)
def test_choices_are_drawn_or_refused(text: str) -> None:
    with only_refused():
        template = read_template(text, Wildcards(None))
        draw(template, 7)
        assert every(template)


AXES = (
    "seed=1-4",
    "method=merge,switch:interval=3",
    "weight:fox=0-1 [5]",
    "lora=none,fox,owl=0.5+hat",
    "prompt=fox|owl",
    "sampler=Euler,DDIM",
    "guidance=1-7 [4]",
    "model=a,b",
)


@cases(ci=100, x=st.one_of(changed_texts(AXES, [*NAMES, *PARTS]), texts), y=changed_texts(AXES, PARTS))
def test_axes_become_a_grid_or_are_refused(x: str, y: str) -> None:
    fields = {"prompt": "a fox", "adapters": [{"adapter": "fox"}], "seed": 1}
    with only_refused():
        jobs = make_grid(fields, [read_axis(x), read_axis(y), None], None).jobs()
        problems = Problems()
        planned(from_objects(jobs[:50]), problems)
        few(problems)
