"""The seed -1 asks for a new one, as in A1111: by flags, requests, jobs of every kind, arguments and A1111's calls."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from studio.batch.jobfile import read_jobs
from studio.batch.plan import Ground, PlannedPicture, plan
from studio.batch.problems import Problems
from studio.batch.variants import Wildcards
from studio.commands import flags
from studio.drafts.draft import Draft, counted
from studio.drafts.entries import read_draft, read_requests
from studio.drafts.flags import Asked, drafts_of
from studio.web.arguments import draft_of
from studio.web.sdapi.fields import read_asked

SEEDS = range(2**32)


def planned(folder: Path, name: str, text: str, **overrides: Any) -> list[PlannedPicture]:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    problems = Problems()
    found = plan(read_jobs(file, problems), Ground("m", overrides, Wildcards(folder)), problems)
    assert not problems.messages, problems.messages
    return found


def test_a_draft_says_that_a_new_seed_is_wanted() -> None:
    assert Draft({"seed": -1}).seed is None
    assert Draft({"seed": -1}).over(Draft({"seed": 5, "steps": 3})).seed is None
    assert Draft({}).over(Draft({"seed": 5})).seed == 5
    assert Draft({"seed": -2}).seed == -2


def test_on_the_command_line_and_in_requests(tmp_path: Path) -> None:
    asked = Asked(draft=Draft({"seed": -1}), prompts=("a",), count=2)
    first, second = drafts_of(asked, Draft({"prompt": "b", "seed": 5}), lambda: "c")
    assert first.values["seed"] in SEEDS
    assert second.values["seed"] == first.values["seed"] + 1
    parser = ArgumentParser()
    flags.picture_flags(parser)
    assert flags.read_asked(parser.parse_args(["--seed", "-1"])).draft.seed is None
    file = tmp_path / "requests.json"
    file.write_text(json.dumps([{"prompt": "a", "seed": -1}, {"prompt": "b", "seed": 7}]), encoding="utf-8")
    found = drafts_of(Asked(draft=Draft(), requests=file), Draft(), lambda: "c")
    assert (found[0].values["seed"] in SEEDS, found[1].values["seed"]) == (True, 7)
    assert read_requests(file)[0].seed is None


def test_for_programs_and_a1111s_clients() -> None:
    assert draft_of({"prompt": "a", "seed": -1}).values.get("seed") is None
    assert read_draft({"prompt": "a", "seed": -1}, "x").seed is None
    for seed in (-1, "-1", -1.0, None, ""):
        asked = read_asked({"prompt": "a", "seed": seed, "batch_size": 2}, with_image=False)
        seeds = [draft.values["seed"] for draft in asked.drafts({})]
        assert seeds == [asked.draft.values["seed"], asked.draft.values["seed"] + 1]
    assert counted(Draft({"seed": -1}), 1, 7)[0].values["seed"] == 7


FILES = {
    "a.jsonl": '{"prompt": "a", "seed": -1}\n{"prompt": "a", "seed": "-1"}\n{"prompt": "a"}\n',
    "a.json": '[{"prompt": "a", "seed": -1}, {"prompt": "a", "seed": [-1]}, {"prompt": "a", "seed": null}]',
    "a.yaml": "defaults: {seed: 5}\njobs: [{prompt: a, seed: -1}, {prompt: a, seed: '-1'}, {prompt: a, seed: null}]",
    "a.csv": "prompt;seed\na;-1\na;-1\na;\n",
    "b.csv": 'prompt,seed\na,"-1, -1"\na,\u22121\n',
    "a.tsv": "prompt\tseed\na\t-1\na\t-1\na\t-1\n",
    "a.txt": "a --seed -1\na --seed=-1\na\n",
}


@pytest.mark.parametrize(("name", "text"), FILES.items(), ids=FILES)
def test_a_job_gets_a_seed_of_its_own_the_same_in_every_run(tmp_path: Path, name: str, text: str) -> None:
    """So a batch that is started again repeats it, and its manifest holds it."""
    first, again = planned(tmp_path, name, text), planned(tmp_path, name, text)
    plain = planned(tmp_path, "plain.jsonl", '{"prompt": "a"}\n' * 3)
    assert [job.seed for job in first] == [job.seed for job in again] == [job.seed for job in plain]
    assert [job.key for job in first] == [job.key for job in again]
    assert len({job.seed for job in first}) == 3
    assert all(job.draft.values["seed"] == job.seed in SEEDS for job in first)


def test_among_other_seeds_and_with_a_count(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "a.jsonl", '{"prompt": "a", "seed": [5, -1, "7-8, -1"]}')
    assert [job.seed for job in jobs[::1] if job.seed in (5, 7, 8)] == [5, 7, 8]
    assert len({job.seed for job in jobs}) == 5
    counted_jobs = planned(tmp_path, "b.jsonl", '{"prompt": "a", "seed": -1, "count": 3}')
    assert [job.seed - counted_jobs[0].seed for job in counted_jobs] == [0, 1, 2]
    assert planned(tmp_path, "c.jsonl", '{"prompt": "a", "seed": {"any": [null, 5]}}')[1].seed == 5
    [over] = planned(tmp_path, "d.jsonl", '{"prompt": "a", "seed": 5}', seed=-1)
    assert over.seed == planned(tmp_path, "e.jsonl", '{"prompt": "a"}')[0].seed


@pytest.mark.parametrize("seed", ["-2", "-1-3", "[-2]"])
def test_other_seeds_below_0_are_refused(tmp_path: Path, seed: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"prompt;seed\na;{seed}\n", encoding="utf-8")
    problems = Problems()
    plan(read_jobs(file, problems), Ground("m", {}, Wildcards(tmp_path)), problems)
    assert "seed" in problems.messages[0]
