"""The one table of a request's fields: what is made from it, and that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from composers import Switch
from composers.plan import Schedule
from pipelines import Request
from pipelines.errors import RequestError
from studio.batch.jobfile import read_jobs
from studio.batch.plan import Ground, plan
from studio.batch.problems import Problems
from studio.batch.schema import schema
from studio.batch.variants import Wildcards
from studio.commands import flags
from studio.drafts.draft import Draft, Wanted
from studio.drafts.entries import plain_draft, read_draft
from studio.drafts.fields import BY_NAME, FIELDS, NAMES, Field
from studio.drafts.input_images import LONGEST_INLINE, Inline, mask_mark, read_input, stored_mask


def values_of(field: Field) -> list[Any]:
    """Values that a field may have: its ends, its default, and what is easily lost."""
    low, high = field.knob.low, field.knob.high
    match field.kind:
        case "prompt" | "text":
            return ["a fox, (red:1.2)\nBREAK hat", ""]
        case "scheduler":
            return ["Euler", "DPM++ 2M Karras", "model"]
        case "choice":
            return list(field.knob.choices)
        case "truth":
            return [True, False]
        case "pair":
            return [(0, 0), (512, 768), (int(high or 0), 0)]
        case "whole":
            return [int(low or 0), 3, int(high or 0)]
        case "real":
            return [float(low or 0), 0.1, 1 / 3, float(high or 0)]
        case "method":
            return [Switch(interval=3)]
    return []


SAID = [(field.name, value) for field in FIELDS for value in values_of(field)]
MIX = (
    Wanted("fox"),
    Wanted(
        "hat",
        0.8,
        0.5,
        (("@INALL", 1.0), ("mid_block", 0.25)),
        Schedule(((0.0, 1.0), (5, 0.5))),
        False,
        "low",
    ),
    Wanted("lcm", 1.0, pinned=True),
)


def test_every_field_of_a_request_is_in_the_table() -> None:
    assert list(NAMES) == [field.name for field in dataclasses.fields(Request) if field.name != "_"]
    for field in FIELDS:
        assert field.knob.label
        assert field.knob.help.endswith((".", "…"))
        assert field.kind in ("mix", "picture") or values_of(field), field.name


def test_no_name_means_two_fields() -> None:
    for names in (
        [flag for field in FIELDS for flag in field.flags],
        [option for field in FIELDS for option in field.options],
        [axis for field in FIELDS for axis in field.axes],
        [field.argument for field in FIELDS],
        [field.call for field in FIELDS if field.call],
        [field.key for field in FIELDS if field.key],
    ):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("name", "value"), SAID)
def test_text_and_back(name: str, value: Any) -> None:
    field = BY_NAME[name]
    if field.kind != "method":
        assert field.read(field.write(value)) == (pytest.approx(value) if field.kind == "real" else value)


@pytest.mark.parametrize(("name", "value"), SAID)
def test_a_request_takes_what_the_table_offers(name: str, value: Any) -> None:
    if name not in ("prompt", "composer"):
        assert getattr(Request("a fox", **{name: value}), name) == value


@pytest.mark.parametrize("field", [field for field in FIELDS if field.kind in ("whole", "real", "pair")])
def test_a_request_refuses_what_lies_beyond(field: Field) -> None:
    low, high = field.knob.low, field.knob.high
    assert low is not None
    assert high is not None
    for beyond in (low - 1, high + 1, "many", True):
        wrong = (0, beyond) if field.kind == "pair" else beyond
        with pytest.raises(RequestError, match=field.name):
            Request("a fox", **{field.name: wrong})


# -- roads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), SAID)
def test_draft_to_a_row_of_the_database_and_back(name: str, value: Any) -> None:
    white = mask_mark(Image.new("L", (8, 8), 255))["png"]
    images = {"init_image": Path("/home/ann/start.png"), "mask": Inline(white)}
    draft = Draft({"prompt": "a fox", name: value}, MIX, images)
    assert read_draft(json.loads(json.dumps(plain_draft(draft))), "") == draft


@pytest.mark.parametrize(("name", "value"), SAID)
def test_flags_to_draft(name: str, value: Any) -> None:
    field = BY_NAME[name]
    flag, said = (field.flags or ("",))[0], value
    if name == "prompt":
        flag = "--prompt"
    elif field.kind == "method":
        flag, said = "--composer", "switch:interval=3"
    asked = _asked(f"{flag}={said if field.kind == 'method' else field.write(said)}")
    if name == "prompt":
        assert asked.prompts == (value,)
    elif field.kind == "method":
        assert asked.composers == ("switch:interval=3",)
    elif field.kind == "real":
        assert asked.draft.values == {name: pytest.approx(value)}
    else:
        assert asked.draft.values == {name: value}


def _asked(*words: str) -> Any:
    parser = ArgumentParser(allow_abbrev=False)
    flags.picture_flags(parser)
    return flags.read_asked(parser.parse_args(list(words)))


def test_sizes_to_draft() -> None:
    assert _asked("--size", "64x48").draft.values == {"width": 64, "height": 48}
    assert _asked("--width", "0").draft.values == {"width": 0}  # which Request refuses
    for words in (["--width", "0"], ["--height", "8"]):
        with pytest.raises(RequestError, match="give either"):
            _asked("--size", "64x48", *words)


@pytest.mark.parametrize("text", ["1024,768", "1024 768", " 1024 x 768 ", "1024x768", "1024, 768"])
def test_pairs_may_be_parted_by_spaces(text: str) -> None:
    assert BY_NAME["target_size"].read(text) == (1024, 768)
    for wrong in (text.replace("768", ""), text.replace(" ", "").replace(",", "").replace("x", "")):
        with pytest.raises(RequestError, match="two whole numbers"):
            BY_NAME["target_size"].read(wrong)


def test_flags_of_the_mix_to_draft(tmp_path: Path) -> None:
    asked = _asked("--lora", "fox", "--lora", "hat=0.8:0.5", "--pin", "lcm=1", "--init-image", str(tmp_path))
    assert asked.draft.wanted == (Wanted("fox"), Wanted("hat", 0.8, 0.5), Wanted("lcm", 1.0, pinned=True))
    assert asked.draft.images["init_image"] == tmp_path
    assert asked.draft.values == {}


def test_a_size_that_is_none_is_told() -> None:
    with pytest.raises(SystemExit):
        _asked("--crop", "1")


@pytest.mark.parametrize(("name", "value"), SAID)
def test_job_files_to_draft(tmp_path: Path, name: str, value: Any) -> None:
    plain = plain_draft(Draft({"prompt": "a fox", "seed": 7, name: value}, MIX))
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([plain]))
    if name == "prompt" and not value:
        return  # a job must say one
    [job] = _planned(file)
    assert job.draft.values[name] == value
    assert job.draft.wanted == MIX


@pytest.mark.parametrize(
    ("name", "value"), [said for said in SAID if said[0] not in ("prompt", "composer") and said[1] != ""]
)
def test_columns_and_options_to_draft(tmp_path: Path, name: str, value: Any) -> None:
    """A cell of a table and an option of a prompt file are the same text."""
    said = BY_NAME[name].write(value)
    table, lines = tmp_path / "jobs.csv", tmp_path / "jobs.txt"
    quoted = said.replace('"', '""')
    table.write_text(f'prompt,{name}\na fox,"{quoted}"\n')
    for job in _planned(table):
        assert job.draft.values[name] == (pytest.approx(value) if isinstance(value, float) else value)
    for option in BY_NAME[name].options:
        lines.write_text(f'a fox --{option} "{said}"\n'.replace("\n", " ").strip())
        [job] = _planned(lines)
        wanted = value.replace("\n", " ") if isinstance(value, str) else value
        assert job.draft.values[name] == (pytest.approx(wanted) if isinstance(value, float) else wanted)


def _planned(file: Path) -> Any:
    problems = Problems()
    jobs = plan(read_jobs(file, problems), Ground("tiny-sdxl", {}, Wildcards(file.parent)), problems)
    assert problems.messages == []
    return jobs


def test_every_field_has_a_column_in_the_schema() -> None:
    properties = schema()["$defs"]["job"]["properties"]
    assert set(NAMES) <= set(properties)
    for field in FIELDS:
        assert properties[field.name]["description"]


def test_an_initial_image_is_kept_by_its_mark_alone() -> None:
    """A picture names no file of this computer."""
    from studio.drafts.entries import plain_request

    plain = plain_request(Request("a fox", init_image=Image.new("RGB", (8, 8))))
    assert set(plain) == set(NAMES)
    assert set(plain["init_image"]) == {"size", "sha256"}


def test_a_mask_is_stored_whole_and_smaller_where_it_is_too_large() -> None:
    mask = Image.linear_gradient("L")
    mark = mask_mark(mask)
    stored = stored_mask(mark)
    assert stored is not None
    assert read_input("mask", stored).tobytes() == mask.tobytes()
    noise = Image.effect_noise((1200, 900), 90)
    large = mask_mark(noise)
    stored = stored_mask(large)
    assert stored is not None
    assert (large["size"], read_input("mask", stored).size) == ((1200, 900), (300, 225))
    assert len(stored.text) <= LONGEST_INLINE


@pytest.mark.parametrize(
    "text",
    [
        "data:",
        "data:image/png;base64,***",
        "data:text/html;base64,AAAA",
        "data:image/png;base64," + "A" * 400_000,
    ],
)
def test_a_text_that_is_no_picture_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="mask"):
        Inline(text)
    with pytest.raises(RequestError, match=r"entry 1: mask"):
        read_draft({"mask": text}, "entry 1")
    assert stored_mask({"png": text}) is None


def test_a_mask_as_text_that_is_no_picture_is_refused_when_it_is_read() -> None:
    with pytest.raises(RequestError, match="mask, as text, cannot be read as a picture"):
        read_input("mask", Inline("data:image/png;base64,AAAA"))
