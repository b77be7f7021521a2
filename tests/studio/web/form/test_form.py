"""What the form asks for, and the job file that asks for the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composers.plan import Schedule
from pipelines.errors import RequestError, StudioError
from studio.batch.jobfile import read_jobs
from studio.batch.plan import Ground, plan
from studio.batch.problems import Problems
from studio.batch.variants import Wildcards
from studio.drafts.draft import Draft, Wanted
from studio.drafts.entries import plain_draft
from studio.jobs import ModelState
from studio.web.form import mix
from studio.web.form.form import Form, compared, composed, form_of, live, row_sweep, sweep
from studio.web.form.job_file import job_file
from studio.web.form.mix import MixRow
from studio.web.pages.compare import _numbers
from studio.web.pages.compare import pictures as pictures_of
from studio.web.parts.summary import cost_html

from ....budget import cheap

FORM = Form(
    values={
        "prompt": "a {fox} in__snow__, (crown:1.2) | ünder the sun",
        "negative_prompt": "rain",
        "seed": 7,
        "steps": 12,
        "guidance_scale": 4.5,
        "guidance_rescale": 0.2,
        "width": 64,
        "clip_skip": 1,
    },
    method="switch",
    method_values={"interval": 3},
    rows=(MixRow("fox", weight=0.8, text_weight=0.5), MixRow("hat", weight=1.1), MixRow("off", on=False)),
    count=3,
)


def test_a_job_file_asks_for_the_same_pictures(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    asked = composed(FORM)
    models = ["tiny-sdxl", "tiny-sdxl", "tiny-sd"]
    file.write_text(job_file(asked.drafts, models), encoding="utf-8")
    problems = Problems()
    jobs = plan(read_jobs(file, problems), Ground("other", {}, Wildcards(None)), problems)
    assert problems.messages == []
    assert [job.model for job in jobs] == models
    assert [plain_draft(job.draft) for job in jobs] == [plain_draft(draft) for draft in asked.drafts]
    assert [job.seed for job in jobs] == [7, 8, 9]


def test_a_job_file_keeps_every_sign(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    signs = map(chr, [*range(1, 0x180), 0x2028, 0x2029, 0xFEFF, 0x1F98A])
    drafts = [Draft({"prompt": f"a{sign}b {{c|d}} __e__", "seed": 7}) for sign in signs]
    file.write_text(job_file(drafts, ["m"] * len(drafts)), encoding="utf-8", newline="")
    problems = Problems()
    jobs = plan(read_jobs(file, problems), Ground("m", {}, Wildcards(None)), problems)
    assert problems.messages == []
    assert [job.draft.values for job in jobs] == [draft.values for draft in drafts]


def test_a_job_file_asks_for_the_same_blocks_schedules_and_conditions(tmp_path: Path) -> None:
    late = Wanted("late", 0.5, schedule=Schedule(((0.0, 0.0), (3.0, 1.0))), pinned=True, band="low")
    rows = (
        MixRow("way-in", weight=0.8, preset="INALL"),
        MixRow("content", weight=0.9, preset="content"),
        MixRow("style", weight=None, preset="style"),
        MixRow("quiet", weight=0.0, text_weight=0.0),
        mix.row_of(Wanted("own", 1.0, 0.0, (("mid_block", 0.5), ("up_blocks.1", 1.0)))),
        mix.row_of(Wanted("numbers", 1.0, 1.0, (("@1,0,0.5", 1.0),))),
        mix.row_of(late),
    )
    every = {"negative_prompt": "", "reuse": 2, "cut": "deep", "text_mode": "first", "crop": (5, 7),
             "original_size": (64, 96), "target_size": (96, 64), "scheduler": "Euler a", "height": None,
             "strength": 0.5}  # fmt: skip
    drafts = composed(replace(FORM.saying(**every), method="", rows=rows)).drafts
    file = tmp_path / "jobs.yaml"
    file.write_text(job_file(drafts, ["tiny-sdxl"] * 3), encoding="utf-8")
    problems = Problems()
    jobs = plan(read_jobs(file, problems), Ground("other", {}, Wildcards(None)), problems)
    assert problems.messages == []
    for job, draft in zip(jobs, drafts, strict=True):
        said = {name: value for name, value in draft.values.items() if value is not None}
        assert (job.draft.values, job.draft.wanted) == (said, draft.wanted)


def test_a_form_with_an_open_seed_is_written_with_the_one_that_was_drawn(tmp_path: Path) -> None:
    form = Form({"prompt": "a fox"})
    text = job_file(composed(form).drafts, ["tiny-sdxl"])
    assert "- seed: " in text
    assert "adapters: []" in text


def test_another_vae_is_named_in_the_command() -> None:
    text = job_file(composed(Form({"prompt": "a fox"})).drafts, ["m"], "my vae")
    assert text.startswith("# lora-studio batch jobs.yaml --out pictures --vae 'my vae'\n")


def test_a_pictures_settings_fill_the_form_that_asks_for_it_again(tmp_path: Path) -> None:
    form = replace(
        FORM.saying(strength=0.4), images={"init_image": str(tmp_path / "start.png")}, vae="my vae"
    )
    first = composed(form).drafts[0]
    again = form_of(first, "my vae")
    assert (again.vae, again.images, again.said("strength")) == ("my vae", form.images, 0.4)
    assert plain_draft(composed(again).drafts[0]) == plain_draft(first)


def test_a_draft_of_the_form_has_few_steps_and_the_forms_seed() -> None:
    [draft] = live(FORM, seed=99).drafts
    assert (draft.values["steps"], draft.values["seed"]) == (8, 7)
    [draft] = live(Form({"prompt": "a fox", "steps": 4}), seed=99).drafts
    assert (draft.values["steps"], draft.values["seed"]) == (4, 99)


def test_a_rows_sweep_goes_from_nothing_past_its_strength_at_one_seed() -> None:
    asked = row_sweep(FORM, "hat")
    assert asked.labels == ["hat 0", "hat 0.413", "hat 0.825", "hat 1.238", "hat 1.65"]
    assert {draft.values["seed"] for draft in asked.drafts} == {7}
    assert [
        wanted.weight for draft in asked.drafts for wanted in draft.wanted if wanted.adapter == "fox"
    ] == [0.8] * 5
    negative = row_sweep(Form(rows=(MixRow("fox", weight=-0.8),)), "fox")
    assert negative.labels[-1] == "fox -1.2"


def test_a_sweep_of_a_row_that_is_off_switches_it_on() -> None:
    assert all(any(w.adapter == "off" for w in draft.wanted) for draft in row_sweep(FORM, "off").drafts)
    with pytest.raises(RequestError, match="empty"):
        row_sweep(Form(), "fox")


def test_what_the_mix_was_before_it_was_normalised_goes_with_the_job() -> None:
    form = Form(
        {"prompt": "a fox"}, rows=mix.normalised((MixRow("fox", weight=1.5), MixRow("hat", weight=0.5)))
    )
    assert composed(form).before == {"fox": 1.5, "hat": 0.5}
    assert composed(FORM).before == {}


def test_a_pictures_settings_come_back_with_its_vae_and_what_it_began_with(tmp_path: Path) -> None:
    start = tmp_path / "start.png"
    start.write_bytes(b"")
    [draft, *_] = composed(replace(FORM.saying(strength=0.4), images={"init_image": str(start)})).drafts
    again = form_of(draft, "my vae")
    assert (again.prompt, again.method, again.said("seed"), again.vae) == (FORM.prompt, "switch", 7, "my vae")
    assert [(row.name, row.weight) for row in again.rows] == [("fox", 0.8), ("hat", 1.1)]
    assert (again.images, again.said("strength")) == ({"init_image": str(start)}, 0.4)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: composed(replace(FORM, count=10**9)), "count=1000000000: at most 10000 pictures"),
        (lambda: composed(replace(FORM, count=10**5000)), "count=a number of about"),
        (lambda: composed(FORM.saying(seed=2**64 - 1)), "the last of 3 seeds would lie beyond"),
        (lambda: composed(FORM.saying(seed=10**30)), "seed="),
        (lambda: composed(replace(FORM, method="swich")), "did you mean 'switch'"),
        (
            lambda: compared(FORM, ["merge"], [1.0] * 10**6),
            "methods x strengths=1000000: at most 500 pictures",
        ),
        (lambda: compared(FORM, ["merge"], [NAN]), "a strength's factor=nan must be a number"),
        (lambda: compared(FORM, ["merge"], [INF]), "a strength's factor=inf"),
        (lambda: compared(FORM, ["merge"], ["1"]), "a strength's factor='1'"),
        (lambda: compared(FORM, ["merge" * 10**6]), "unknown method"),
        (lambda: sweep(FORM, "fox", 0, 1, 10**9), "the pictures of a sweep=1000000000: at most 500"),
        (lambda: sweep(FORM, "fox", NAN, 1, 5), "the first strength=nan"),
        (lambda: sweep(FORM, "fox", 0, None, 5), "the last strength=None"),
        (lambda: sweep(FORM, "owl" * 10**6, 0, 1, 5), "the mix has no LoRA"),
        (lambda: _numbers("1," * 10_000), "the strengths has 20000 characters"),
        (lambda: _numbers("1, x"), "must be numbers with commas"),
        (lambda: _numbers(None), "the strengths=None must be text"),
        (lambda: pictures_of(NAN), "the pictures of a sweep=nan"),
        (lambda: pictures_of(None), "the pictures of a sweep=None"),
        (lambda: pictures_of("7"), "the pictures of a sweep='7'"),
        (lambda: pictures_of(2.5), "the pictures of a sweep=2.5"),
    ],
)
def test_what_a_page_may_post_is_judged_before_anything_is_made(ask: Callable[[], Any], said: str) -> None:
    with cheap(), pytest.raises(StudioError, match=said):
        ask()


def test_a_slider_may_say_a_whole_number_with_a_point() -> None:
    assert pictures_of(7.0) == 7


def test_a_strangers_settings_that_are_no_numbers_leave_the_form_as_it_is() -> None:
    odd = {
        "seed": "7",
        "steps": NAN,
        "width": 10**5000,
        "guidance_scale": INF,
        "strength": None,
        "clip_skip": (1,),
    }
    assert form_of(Draft(odd)) == Form()


def test_a_run_of_a_thousand_million_steps_is_not_drawn_as_a_table() -> None:
    with cheap():
        assert "steps=1000000000 must be" in cost_html(FORM.saying(steps=10**9), ModelState())
        many = tuple(MixRow(f"a{n}") for n in range(101))
        assert "101 adapters are more than" in cost_html(replace(FORM, rows=many), ModelState())
        assert "too many to be shown" in cost_html(
            replace(FORM.saying(steps=999), rows=many[:99]), ModelState()
        )
