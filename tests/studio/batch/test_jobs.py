"""Job files: what is read, what it expands to, and what is refused, where and how."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import PromptError, RequestError, SetupError, StudioError
from pipelines.home.files import check_name
from studio.batch import plan as plan_module
from studio.batch import schema as schemas
from studio.batch.jobfile import JOB_FIELDS, read_jobs
from studio.batch.plan import Ground, PlannedPicture, check_template, plan
from studio.batch.problems import Problems
from studio.batch.prompts import read_line
from studio.batch.values import alternatives, numbers
from studio.batch.variants import Wildcards, draw, every, read_template, size

from ...budget import cheap


def planned(file: Path, **settings: Any) -> tuple[list[PlannedPicture], list[str]]:
    problems = Problems()
    jobs = read_jobs(file, problems)
    wildcards = Wildcards(file.parent / "wildcards")
    found = plan(jobs, Ground("m", settings.pop("overrides", {}), wildcards, **settings), problems)
    return found, list(problems.messages)


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "whole", "expected"),
    [
        ("5", True, [5]),
        ("1-4", True, [1, 2, 3, 4]),
        ("4-1", True, [4, 3, 2, 1]),
        ("10-30 (+10)", True, [10, 20, 30]),
        ("1-5 [3]", False, [1.0, 3.0, 5.0]),
        ("0-1 [3]", False, [0.0, 0.5, 1.0]),
        ("-1-1", False, [-1.0, 0.0, 1.0]),
        ("0.1-0.3 (0.1)", False, [0.1, 0.2, 0.3]),
        ("1, 3, 5-7", True, [1, 3, 5, 6, 7]),
        ("18446744073709551615", True, [18446744073709551615]),
    ],
)
def test_ranges(text: str, whole: bool, expected: list[float]) -> None:
    assert numbers(text, whole=whole) == expected


@pytest.mark.parametrize("text", ["", "many", "1-5 (-1)", "1-5 (0)", "1.5", "1-9999999", "0-1 [0]"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        numbers(text, whole=True)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("seed", [1, "3-4"], [1, 3, 4]),
        ("prompt", ["a", "b"], ["a", "b"]),
        ("prompt", "1-3", ["1-3"]),
        ("crop", [0, 8], [[0, 8]]),
        ("crop", [[0, 8], [8, 0]], [[0, 8], [8, 0]]),
        ("adapters", {"a": [0.5, 1], "b": "1-2"}, [{"a": x, "b": y} for x in (0.5, 1) for y in (1, 2)]),
        ("adapters", {"any": [{"a": 1}, ["b"], None]}, [{"a": 1}, ["b"], None]),
        (
            "adapters",
            [{"adapter": "a", "weight": [0, 1]}, "b"],
            [[{"adapter": "a", "weight": 0}, "b"], [{"adapter": "a", "weight": 1}, "b"]],
        ),
        (
            "composer",
            ["merge", {"method": "switch", "interval": [1, 2]}],
            ["merge", {"method": "switch", "interval": 1}, {"method": "switch", "interval": 2}],
        ),
    ],
)
def test_alternatives(field: str, value: object, expected: list[object]) -> None:
    assert alternatives(field, value) == expected


def test_choices_and_wildcards(tmp_path: Path) -> None:
    (tmp_path / "beasts").mkdir()
    written(tmp_path, "animal.txt", "# a comment\nfox\n\n{grey|brown} __beasts/cat__\n")
    written(tmp_path / "beasts", "cat.txt", "cat\n")
    wildcards = Wildcards(tmp_path)
    template = read_template("a __animal__ in {red|2::blue|}", wildcards)
    assert every(template)[:3] == ["a fox in red", "a fox in blue", "a fox in "]
    assert len(every(template)) == 9
    assert draw(template, 3) == draw(template, 3)
    assert {draw(template, seed) for seed in range(100)} == set(every(template))


@pytest.mark.parametrize(
    "text", ["100% (fox:1.2) [x], C++ # $5 \\(y\\) BREAK", "<lora:my__fox__v2:0.8>", "a | b", "snake_case"]
)
def test_what_is_no_choice_stays_as_it_is(text: str) -> None:
    assert every(read_template(text, Wildcards(None))) == [text]


def test_signs_that_mean_themselves() -> None:
    assert every(read_template("\\{a\\|b\\} \\__c__", Wildcards(None))) == ["{a|b} __c__"]


@pytest.mark.parametrize("text", ["{a|b", "a}", "__nobody__", "{2$$a|b}", "{0::a}", "{" * 50 + "}" * 50])
def test_choices_that_cannot_be(text: str) -> None:
    with pytest.raises(PromptError):
        read_template(text, Wildcards(None))


def test_a_wildcard_that_names_itself(tmp_path: Path) -> None:
    written(tmp_path, "a.txt", "x __a__")
    with pytest.raises(PromptError, match="deep"):
        read_template("__a__", Wildcards(tmp_path))


def test_tags_may_hold_choices_and_wildcards(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "strong.txt").write_text("0.5\n0.8\n")
    prompt = "a <lora:{fox|owl}:__strong__> {in snow <lora:hat>|}"
    file = written(tmp_path, "a.jsonl", json.dumps({"prompt": prompt, "variants": "all", "seed": 1}))
    jobs, messages = planned(file)
    assert not messages
    assert [[(one.adapter, one.weight) for one in job.draft.wanted] for job in jobs] == [
        [(name, weight), *hat]
        for name in ("fox", "owl")
        for weight in (0.5, 0.8)
        for hat in ([("hat", None)], [])
    ]
    assert [job.draft.values["prompt"] for job in jobs] == ["a in snow", "a"] * 4
    _, messages = planned(
        written(tmp_path, "b.jsonl", '{"prompt": "a <lora:fox:{0.5|much}>", "variants": "all"}')
    )
    [told] = messages
    assert told.startswith("b.jsonl, line 1: the tag <lora:fox:much> cannot be read")


def test_prompt_lines() -> None:
    assert read_line("a fox's den --steps 20 --seed 1-3 --lora fox=0.8:0.5 --size 64x32") == {
        "prompt": "a fox's den",
        "steps": "20",
        "seed": "1-3",
        "width": "64",
        "height": "32",
        "adapters": [{"adapter": "fox", "weight": 0.8, "text_weight": 0.5}],
    }
    line = '--prompt "a fox" --negative_prompt "fog -- rain" --cfg_scale=5 --sampler-name "Euler a" --seed -1'
    assert read_line(line) == {
        "prompt": "a fox",
        "negative_prompt": "fog -- rain",
        "guidance_scale": "5",
        "scheduler": "Euler a",
    }
    assert read_line("a --n_iter 2 --batch_size 3")["count"] == 6
    for wrong in (
        "a --tiling",
        "a --step 3",
        "a --steps",
        "a --steps 3 --steps 4",
        "a --size 64",
        "a --n_iter x",
    ):
        with pytest.raises(RequestError):
            read_line(wrong)


def test_the_four_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    files = [
        written(
            tmp_path,
            "jobs.jsonl",
            '{"defaults": {"steps": 4, "adapters": [{"adapter": "f", "weight": 0.5}]}}\n\n'
            '{"prompt": "a, b", "seed": "1-2"}',
        ),
        written(
            tmp_path,
            "jobs.yaml",
            "defaults: {steps: 4}\njobs:\n- prompt: a, b\n  seed: [1, 2]\n  adapters: [{adapter: f, weight: 0.5}]\n",
        ),
        written(tmp_path, "jobs.csv", 'prompt,seed,steps,adapters\n"a, b",1-2,4,f=0.5\n'),
        written(tmp_path, "jobs.txt", "# tonight\n\na, b --seed 1-2 --steps 4 --lora f=0.5\n"),
        written(
            tmp_path,
            "jobs.json",
            '[{"prompt": "a, b", "steps": 4, "seed": [1, 2], "adapters": [{"adapter": "f", "weight": 0.5}]}]',
        ),
    ]
    keys = []
    for file in files:
        jobs, mistakes = planned(file)
        assert not mistakes
        keys.append([job.key for job in jobs])
    assert len(keys[0]) == 2
    assert all(own == keys[0] for own in keys)


def test_seeds_and_keys_are_the_same_in_every_run(tmp_path: Path) -> None:
    twice = '{"prompt": "x"}\n{"prompt": "x"}\n'
    text = '{"prompt": "{a|b} fox", "count": 3}\n' + twice + '{"prompt": "x", "seed": 5, "name": "n"}\n'
    first, _ = planned(written(tmp_path, "one.jsonl", text))
    again, _ = planned(written(tmp_path, "two.jsonl", '{"prompt": "new"}\n' + text))
    assert [job.key for job in first] == [job.key for job in again[1:]]
    assert len({job.key for job in first}) == len(first) == 6
    assert first[1].seed == first[0].seed + 1
    assert first[3].seed != first[4].seed
    renamed, _ = planned(written(tmp_path, "three.jsonl", '{"prompt": "x", "seed": "5", "name": "other"}'))
    assert renamed[0].key == first[5].key


def test_seeds_that_were_drawn_for_prompts_with_choices_stay(tmp_path: Path) -> None:
    """A batch that another version began would else make all its pictures anew."""
    file = written(tmp_path, "a.jsonl", '{"prompt": "{a|2::{b|b c}} d"}')
    [job], _ = planned(file)
    assert (job.seed, job.key) == (1909389982, "7424baf0117f7baf")


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(
        tmp_path, "jobs.jsonl", '{"prompt": "a fox: (red:1.2)/../x <lora:f:1>", "seed": 7, "name": "Ünï/x"}'
    )
    [job], _ = planned(file)
    assert str(job.file) == "00001_Ünï-x_7.png"
    [job], _ = planned(file, template="{model}/{composer}-{prompt}")
    assert job.file == Path("m/merge-a-fox-red-1.2-..-x.png")
    for wrong in ("{nothing}", "../{index}", "/x/{index}", "{index", "{index:x y}"):
        with pytest.raises(SetupError):
            check_template(wrong)
    monkeypatch.setattr(plan_module, "check_name", partial(check_name, windows=True))
    check_template("{index}-con.")
    for wrong in ("{index}:{seed}", "con", "a/nul.{index}", "a. /{index}"):
        with pytest.raises(SetupError, match="Windows"):
            check_template(wrong)
    _, mistakes = planned(
        written(tmp_path, "two.jsonl", '{"prompt": "a", "seed": [1, 2]}'), template="{prompt}"
    )
    assert "gives 2 pictures the name" in mistakes[0]


def test_a_job_replaces_defaults_and_flags_replace_both(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "jobs.yaml",
        "defaults: {steps: 4, adapters: {a: 1}, seed: 3}\n"
        "jobs: [{prompt: x, adapters: {b: 1}, seed: null}, {prompt: y}]\n",
    )
    jobs, _ = planned(file, overrides={"steps": 9})
    assert [dict(job.fields)["steps"] for job in jobs] == [9, 9]
    assert [job.fields["adapters"] for job in jobs] == [{"b": 1}, {"a": 1}]
    assert jobs[1].seed == 3 != jobs[0].seed


MISTAKES = [
    ('{"prompt": "a", "sede": 1}', "did you mean 'seed'"),
    ('{"prompt": "a", "steps": 0}', "steps=0 must be a whole number in 1"),
    ('{"prompt": "a", "guidance_scale": "much"}', "guidance_scale: 'much' is no number"),
    ('{"seed": 1}', "no prompt"),
    ('{"prompt": "a {red|blue"}', "not closed"),
    ('{"prompt": "a __nope__"}', "Put nope.txt"),
    ('{"prompt": "a", "composer": "swich"}', "did you mean 'switch'"),
    ('{"prompt": "a", "composer": {"method": "switch", "interval": 0}}', "interval=0 must lie in"),
    ('{"prompt": "a", "scheduler": "Eulr"}', "did you mean Euler"),
    ('{"prompt": "a", "adapters": {"f": "x-y"}}', "adapters: 'x-y' is no number"),
    ('{"prompt": "a", "count": 0}', "count=0 must be a whole number above 0"),
    ('{"prompt": "a", "variants": "some"}', "random or all"),
    ('{"prompt": "a", "init_image": "nowhere.png"}', "does not exist"),
    ('{"prompt": "a", "seed": []}', "empty list"),
    ('{"prompt": "a", "seed": [1, 2], "seed": 3}', "'seed' stands twice"),
    ('{"prompt": "a <lora:f"}', "not closed by '>'"),
    ('{"prompt": "a"', "not valid JSON"),
    ('["a"]', "must be an object"),
    ('{"prompt": "a", "seed": "1-100000", "steps": "1-100"}', "more than 100000"),
    ('{"prompt": 5}', "prompt"),
    ('{"prompt": "a", "text_mode": "all"}', "text_mode='all' must be"),
    ('{"prompt": "a", "crop": [1]}', "crop"),
]


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    lines = [text for text, _ in MISTAKES]
    _, messages = planned(written(tmp_path, "jobs.jsonl", "\n".join(lines)))
    for number, (text, said) in enumerate(MISTAKES, 1):
        own = [message for message in messages if message.startswith(f"jobs.jsonl, line {number}: ")]
        assert len(own) == 1, (text, own)
        assert said in own[0], own[0]
    assert len(messages) == len(MISTAKES)


def test_yaml_names_the_line_of_the_field(tmp_path: Path) -> None:
    text = "defaults:\n  steps: no\njobs:\n  - prompt: a\n    seed: 1\n    width: -1\n  - prompt: b\n    zeed: 1\n"
    _, messages = planned(written(tmp_path, "jobs.yaml", text))
    assert [message.split(":")[0] for message in messages] == [
        "jobs.yaml, line 2",
        "jobs.yaml, line 6",
        "jobs.yaml, line 8",
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "jobs:\n - prompt: a\n  seed: [", "line 3: it is not valid YAML"),
        ("a.yaml", "- {prompt: a}\n- {prompt: a, prompt: b}", "line 2: 'prompt' stands twice"),
        ("a.yaml", "job: []", "a list of jobs"),
        ("a.yaml", "", "holds no job"),
        ("a.yaml", "- !!python/object:os.system {}", "not valid YAML"),
        ("a.yaml", "{jobs: [{prompt: a}], default: {}}", "did you mean 'defaults'"),
        ("a.json", "[", "not valid JSON"),
        ("a.csv", "prompt,seed\na,1,2", "3 cells under 2 headings"),
        ("a.csv", 'prompt\n"a', "not valid CSV"),
        ("a.csv", "prompt,stepz\na,1", "did you mean 'steps'"),
        ("a.txt", "a --steps x", "steps: 'x' is no number"),
    ],
)
def test_files_that_cannot_be_understood(tmp_path: Path, name: str, text: str, said: str) -> None:
    _, messages = planned(written(tmp_path, name, text))
    assert len(messages) == 1
    assert messages[0].startswith(name)
    assert said in messages[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("a.xlsx", b""), ("missing.yaml", None), ("a.txt", b"\xff\xfe\x00")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SetupError, match=name):
            read_jobs(tmp_path / name, Problems())


def test_the_shipped_schema_is_the_programs() -> None:
    assert schemas.FILE.read_text(encoding="utf-8") == schemas.written(), "run python -m studio.batch.schema"
    job = schemas.schema()["$defs"]["job"]
    assert tuple(job["properties"]) == JOB_FIELDS
    assert all("description" in field for field in job["properties"].values())


def test_the_schema_judges_as_the_program_does() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="pip install '.[test]'")
    validator = jsonschema.Draft202012Validator(schemas.schema())
    good: list[Any] = [
        {"prompt": "a", "seed": "1-3", "steps": [4, "5-6"], "adapters": {"f": [0.5, 1]}},
        [{"prompt": "a", "composer": {"method": "switch", "interval": [1, 2]}, "crop": [0, 0]}],
        {
            "defaults": {"steps": 4},
            "jobs": [{"prompt": "a", "adapters": [{"adapter": "f", "weight": 1}, "g"]}],
        },
        {"defaults": {"adapters": {"any": [{"f": 1}, None]}}},
    ]
    for one in good:
        assert validator.is_valid(one), one
    structural = ("sede", '"steps": 0', '"count": 0', '"some"', '"all"', '"seed": []', '["a"]', "5}", "[1]}")
    bad = [text for text, _ in MISTAKES if any(sign in text for sign in structural)]
    assert len(bad) == len(structural)
    for text in bad:
        assert not validator.is_valid(json.loads(text)), text


def laughs(first: str, again: str) -> str:
    """YAML's billion laughs: each line holds the one before ten times."""
    lines = [
        f"a0: &a0 {first}",
        *(f"a{n}: &a{n} {again.format(', '.join([f'*a{n - 1}'] * 10))}" for n in range(1, 12)),
    ]
    return "\n".join([*lines, "jobs: [{prompt: a, seed: *a11}]"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"prompt": "a", "count": 1000000000000}', "comes to|come to 1000000000000 pictures"),
        ("a.jsonl", '{"prompt": "a", "count": 1e12}', "count=1000000000000.0 must be a whole number"),
        ("a.jsonl", '{"prompt": "a", "count": ' + "9" * 4000 + "}", "come to"),
        ("a.jsonl", '{"prompt": "a", "seed": "1-1e12"}', "holds 1000000000000 values"),
        (
            "a.jsonl",
            '{"prompt": "a", "seed": "1-100000", "steps": "1-1000", "width": [8, 16]}',
            "come to 200000000",
        ),
        (
            "a.jsonl",
            '{"prompt": "a", "seed": "' + "1-100000," * 1000 + '1"}',
            "there may be 0 here|too many values",
        ),
        ("a.jsonl", '{"prompt": "a", "seed": "' + "9" * 50_000 + '"}', "is no number"),
        ("a.jsonl", '{"prompt": "a", "seed": "1-9e999"}', "too large to be held"),
        ("a.jsonl", '{"prompt": "a", "seed": ["1-60000", "1-60000"]}', "come to 120000 values"),
        (
            "a.jsonl",
            json.dumps({"prompt": "a", "adapters": {f"a{n}": "0-1 [10]" for n in range(50)}}),
            "more than 100000; shorten",
        ),
        (
            "a.jsonl",
            json.dumps(
                {"prompt": "a", "adapters": [{"adapter": f"a{n}", "weight": "0-1 [10]"} for n in range(50)]}
            ),
            "more than 100000; shorten",
        ),
        ("a.jsonl", '{"prompt": "' + "{a|b}" * 3000 + '", "variants": "all"}', "come to"),
        ("a.jsonl", '{"prompt": "a' + "a" * 20_000 + '"}', "prompt has 20001 characters"),
        ("a.jsonl", "[" * 100_000, "nested more than 40 deep"),
        ("a.jsonl", '{"prompt": "a", "crop": ' + "[" * 60 + "]" * 60 + "}", "nested more than 40 deep"),
        ("a.jsonl", '{"prompt": "a\\ud800"}', "half a character"),
        ("a.jsonl", '{"prompt": "a", "strength": NaN}', "nan is no number"),
        (
            "a.jsonl",
            json.dumps({f"field{n}": 1 for n in range(100_000)}),
            "100000 fields are more than a job has",
        ),
        ("a.jsonl", "{" + '"a": 1,' * 100_000 + '"a": 1}', "'a' stands twice"),
        (
            "a.json",
            json.dumps({"defaults": {"seed": "1-60000"}, "jobs": [{"prompt": "a"}] * 1000}),
            "split the file",
        ),
        ("a.json", "[" + "{}," * 120_000 + "{}]", "120001 jobs, more than 100000"),
        ("a.json", "[" + "," * 6_000_000 + "]", "far more than 1000000"),
        ("a.yaml", laughs("[x, x]", "[{}]"), "its aliases make it .* values, more than 500000"),
        ("a.yaml", laughs("{x: 1}", "{{<<: [{}]}}"), "its aliases make it .* values, more than 500000"),
        ("a.yaml", "&a [*a]", "inside what it stands for"),
        ("a.yaml", "[" * 20_000, "nested more than 40 deep"),
        ("a.yaml", "[a,\n" * 20_000, "nested more than 40 deep"),
        ("a.yaml", "\n".join(" " * n + "- " for n in range(1000)) + "a", "nested more than 40 deep"),
        ("a.yaml", "- {prompt: a, seed: " + "9" * 5000 + "}", "too long for what it is"),
        (
            "a.yaml",
            "- {prompt: a, seed: 1" + ":1" * 50_000 + "}",
            "too long for what it is|must be one value",
        ),
        ("a.yaml", "- {prompt: a, adapters: {2020-01-01: x}}", "must be a number|is no number"),
        ("a.yaml", "- {prompt: 2020-99-99}", "month must be"),
        ("a.yaml", "- {prompt: a, strength: .nan}", "nan is no number"),
        ("a.csv", ",".join(f"h{n}" for n in range(100_000)) + "\n1", "cells are more than"),
        ("a.csv", "prompt\n" + "a" * 200_000, "field larger than field limit"),
        ("a.csv", "prompt,crop\na," + "9" * 5000 + "x1", "crop"),
        ("a.txt", "a --count " + "9" * 5000, "is no number"),
        ("a.txt", "a --n_iter " + "9" * 5000, "must be a whole number above 0"),
        ("a.txt", "a --size " + "9" * 5000 + "x8", "is no number"),
        ("a.txt", "a" + " --n_iter 999999" * 150, "come to"),
        ("a.txt", "a" + " --lora a" * 100_000, "100000 options are more than"),
        ("a.txt", "a --" + "b" * 100_000, "unknown option"),
    ],
    ids=lambda text: text[:40].encode("unicode-escape").decode(),
)
def test_what_a_file_comes_to_is_counted_before_it_is_made(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    file = written(tmp_path, name, text)
    with cheap(megabytes=300 if len(text) > 1_000_000 else 100):
        jobs, messages = planned(file)
    assert len(jobs) < 2
    assert any(re.search(said, message) for message in messages), messages[:3]
    assert all(len(message.encode()) < 1000 for message in messages)


@pytest.mark.parametrize("name", ["a.jsonl", "a.yaml", "a.json", "a.csv", "a.txt"])
def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as large:
        large.truncate(2**40)
    with cheap(), pytest.raises(RequestError, match="1048576 MB; at most"):
        planned(tmp_path / name)


def test_of_very_many_mistakes_the_first_are_told(tmp_path: Path) -> None:
    _, messages = planned(written(tmp_path, "a.jsonl", '{"prompt": 1}\n{"zeed": 2}\n{\n' * 20_000))
    assert len(messages) == 4  # those, and that there is no prompt
    _, messages = planned(
        written(tmp_path, "b.jsonl", "\n".join(f'{{"prompt": "a", "steps": {-n}}}' for n in range(5_000)))
    )
    assert len(messages) == 1_000


def test_a_prompts_texts_are_counted_and_none_is_made(tmp_path: Path) -> None:
    assert size(read_template("a {b|cc|} {d|{e|f}}", Wildcards(None))) == (9, 9 * 3 + 9 + 9)
    assert sum(map(len, every(read_template("a {b|cc|} {d|{e|f}}", Wildcards(None))))) == 45
    folder = tmp_path / "wildcards"
    folder.mkdir()
    for level in range(12):
        line = f"__w{level + 1}__, " * 50 if level < 11 else "a\nb"
        (folder / f"w{level}.txt").write_text(line)
    template = read_template("__w0__", Wildcards(folder))
    with cheap():
        assert size(template)[0] == 10**100
        with pytest.raises(PromptError, match="variants, more than 100000"):
            every(template)
        with pytest.raises(PromptError, match="grows beyond 20000 characters"):
            draw(template, 1)
        with pytest.raises(PromptError, match="characters, more than 50000000"):
            every(read_template("a" * 10_000 + "{a|b}" * 16, Wildcards(None)))


@pytest.mark.parametrize(
    "text",
    [
        "{" * 20_000,
        "{a|" * 19 + "}" * 19,
        "{" + "1" * 19_000 + "|b}",
        "{" + "9" * 400 + "::a|b}",
        " __a" * 5_000,
        "__" + "a-" * 9_000,
        "\\{" * 10_000,
        "{|}" * 6_000,
        "x" * 19_000 + "}",
    ],
    ids=lambda text: text[:8],
)
def test_a_hostile_template_is_read_or_refused_in_good_time(text: str) -> None:
    with cheap(), suppress(PromptError):
        template = read_template(text, Wildcards(None))
        draw(template, 1)
        size(template)


def test_a_wildcards_file_is_bounded(tmp_path: Path) -> None:
    wildcards = Wildcards(tmp_path)
    (tmp_path / "long.txt").write_text("a" * 20_001)
    (tmp_path / "many.txt").write_text("a\n" * 100_001)
    with (tmp_path / "large.txt").open("wb") as large:
        large.truncate(2**40)
    for name, said in (("long", "a line of 20001"), ("many", "100001 lines"), ("large", "1048576 MB")):
        with cheap(), pytest.raises(StudioError, match=said):
            read_template(f"__{name}__", wildcards)


@pytest.mark.parametrize("template", ["{index:99999999999d}", "{seed:>999999}", "a" * 1001])
def test_a_files_name_has_no_width_beyond_reason(template: str) -> None:
    with cheap(), pytest.raises(SetupError, match="no name is that long"):
        check_template(template)
