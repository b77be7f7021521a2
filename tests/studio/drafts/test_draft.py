"""Requests as plain data: round trips, overriding, and errors that name entry and field."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from composers import BLora, Composite, Merge, Schedule, StudioError, Switch, Use
from pipelines import Request
from pipelines.errors import RequestError
from pipelines.home import Home
from studio.drafts.draft import USE_FIELDS, Draft, Wanted, counted
from studio.drafts.entries import plain_draft, plain_request, read_draft, read_requests
from studio.drafts.fields import FIELDS
from studio.drafts.flags import Asked, drafts_of
from studio.drafts.input_images import read_input, sized_like
from studio.drafts.shelf import LoadedNames, Shelf, requests_of

from ...budget import cheap


def built(draft: Draft) -> Request:
    return draft.build(lambda wanted: wanted.use(wanted.adapter, None))


REQUESTS = [
    Request("a fox"),
    Request('odd: "quotes", commas,\nnew\tlines, 狐 🦊', negative_prompt="", seed=2**64 - 1),
    Request(
        "all",
        negative_prompt="none",
        adapters=[
            Use(
                "fox",
                0.1 + 0.2,
                0.5,
                (("mid_block", 1.0), ("up_blocks.1", 0.25)),
                Schedule(((0.0, 1.0), (0.5, 0.0))),
            ),
            Use("folder/hat", -1.5, band="low"),
            Use("lcm", 1.0, pinned=True),
        ],
        composer=Switch(interval=3, convention="code"),
        seed=7,
        steps=30,
        guidance_scale=6.0,
        guidance_rescale=0.7,
        width=512,
        height=768,
        scheduler="DPM++ 2M Karras",
        strength=0.5,
        clip_skip=1,
        text_mode="per_adapter",
        original_size=(1, 2),
        crop=(3, 4),
        target_size=(5, 6),
    ),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=["plain", "odd text", "every field"])
def test_a_request_survives_json(request_: Request) -> None:
    text = json.dumps(plain_request(request_))
    assert built(read_draft(json.loads(text), "here")) == request_


def test_a_wanted_adapter_can_say_all_that_a_use_can() -> None:
    assert tuple(field.name for field in fields(Wanted)) == (*USE_FIELDS, "named")


@pytest.mark.parametrize(
    "moment", ["start=5000", "stop=1001", "step=0-1e0", f"step=2-{10**300}", "0.5@0,1@5000"]
)
def test_a_tags_moment_that_no_run_reaches_survives_json(moment: str) -> None:
    draft = Draft({"prompt": f"a fox <lora:fox:{moment}>"})
    assert read_draft(json.loads(json.dumps(plain_draft(draft))), "") == draft


def test_a_draft_overrides_only_what_it_says() -> None:
    base = read_draft(
        {"prompt": "a", "seed": 1, "steps": 9, "adapters": {"fox": 0.5, "hat": 1.0}}, "file, entry 1"
    )
    flags = Draft({"steps": 4}, (Wanted("Hat", 0.2), Wanted("new", 0.3)))
    request = built(flags.over(base))
    assert (request.prompt, request.seed, request.steps) == ("a", 1, 4)
    assert request.uses == (Use("fox", 0.5), Use("hat", 0.2), Use("new", 0.3))
    assert flags.over(base).where == "file, entry 1"


def test_what_is_said_twice_over_another_draft_is_not_half_forgotten() -> None:
    twice = Draft({"prompt": "a"}, (Wanted("fox", 0.2), Wanted("Fox", 0.3)))
    for base in (Draft(), Draft({}, (Wanted("hat", 1.0),)), Draft({}, (Wanted("fox", 1.0),))):
        with pytest.raises(RequestError, match="stands twice"):
            built(twice.over(base))


def test_tags_of_a_prompt_that_is_laid_over_a_draft_override_its_loras() -> None:
    base = Draft({"prompt": "old", "seed": 1, "steps": 9}, (Wanted("fox", 0.8), Wanted("owl", 0.5, 0.1)))
    asked = Asked(Draft({"steps": 4}, (Wanted("hat", 0.2),)), ("new <lora:Owl:0.3>", "b", "c <lora:hat:0.9>"))
    first, second, third = drafts_of(asked, base, str)
    assert built(first).uses == (Use("fox", 0.8), Use("owl", 0.3), Use("hat", 0.2))
    assert built(second).uses == (Use("fox", 0.8), Use("owl", 0.5, 0.1), Use("hat", 0.2))
    assert [draft.values["prompt"] for draft in (first, second, third)] == ["new", "b", "c"]
    assert [draft.values["steps"] for draft in (first, second, third)] == [4, 4, 4]
    with pytest.raises(RequestError, match="'hat' stands twice"):
        built(third)


def test_a_method_names_adapters_as_they_are_loaded(tmp_path: Path) -> None:
    home = Home.resolve(tmp_path / "home")
    names = LoadedNames()
    names.claim(tmp_path / "another" / "b-panda.safetensors", ["b-panda"])
    shelf = Shelf(home, "tiny-sdxl", names=names)
    method = {"method": "blora", "content": "B-Panda", "style": "b-sketch"}
    draft = read_draft({"composer": method, "adapters": ["b-panda", "b-sketch"]}, "")
    [request] = requests_of([draft], shelf)
    assert [use.adapter for use in request.uses] == ["tiny-sdxl/b-panda", "b-sketch"]
    assert request.composer == BLora(content="tiny-sdxl/b-panda", style="b-sketch")
    assert [use.blocks for use in request.composer.prepared(request.uses)] == [
        (("@content", 1.0),),
        (("@style", 1.0),),
    ]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"promt": "x"}, "unknown field 'promt'; did you mean 'prompt'?"),
        ({"prompt": 3}, "prompt=3 must be text"),
        ({"steps": 0}, "steps=0 must be a whole number in 1 … 1000"),
        ({"steps": "4"}, "steps='4' must be a whole number"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"composer": "swich"}, "composer: unknown method 'swich': did you mean 'switch'?"),
        ({"composer": {"method": "switch", "intervall": 3}}, "composer: switch has no setting 'intervall'"),
        ({"composer": 3}, "composer=3 must be text"),
        ({"adapters": "fox"}, 'adapters="fox" must be an object of strengths'),
        ({"adapters": {"fox": "strong"}}, 'adapters: fox: "strong" must be a number'),
        (
            {"adapters": [{"adapter": "fox", "wieght": 1}]},
            "adapters, entry 1: unknown field 'wieght'; did you mean",
        ),
        ({"adapters": [{"adapter": "fox", "schedule": [[1.5, 1]]}]}, "schedule starts [1.5]"),
        ({"adapters": [{"adapter": "fox", "schedule": [[10**400, 1]]}]}, "must be a fraction of the steps"),
        ({"adapters": [{"adapter": "fox", "blocks": 3}]}, "blocks=3 must be a list of pairs"),
        ({"adapters": ["fox", "FOX"]}, "stands twice"),
        ({"init_image": "nowhere.png"}, "init image"),
        ({"crop": [1]}, "crop"),
        ("a fox", "must be an object"),
        ({"prompt": "a" * 20_001}, "prompt has 20001 characters, more than 20000"),
        ({"prompt": "a\ud800"}, "'\\ud800' at place 2 is half a character"),
        ({"scheduler": "a\0"}, "NUL"),
        ({"seed": {"a": [1]}}, "seed={'a': [1]} must be one value"),
        ({"crop": [1, 2, 3]}, "crop=[1, 2, 3] must be one value, or a pair"),
        ({"steps": 10**400}, "steps="),
        ({"composer": "switch:" + "a" * 4000}, "composer has 4007 characters"),
        ({"composer": {"method": "switch", "interval": [[1]]}}, "composer is nested more than 2 deep"),
        ({"adapters": dict.fromkeys(map(str, range(101)), 1)}, "101 adapters are more than one picture may"),
        ({"adapters": ["a"] * 101}, "101 adapters"),
        ({"adapters": ["a" * 1001]}, "a name has 1001 characters"),
        ({"adapters": {"fox": 1e9}}, "1000000000.0 must be a number in -100 … 100"),
        ({"adapters": {"fox": 10**400}}, "must be a number in -100 … 100"),
        ({"adapters": [{"adapter": "fox", "blocks": [["a", 1]] * 1001}]}, "blocks has 1001 pairs"),
        ({"adapters": [{"adapter": "fox", "schedule": [[0, 1]] * 1001}]}, "schedule has 1001 pairs"),
        ({"init_image": "~nobody-of-that-name/" + "a" * 4096}, "init_image has 4117 characters"),
        ({"init_image": "~nobody-of-that-name/a.png"}, "does not exist"),
    ],
)
def test_errors_name_the_entry_and_the_field(tmp_path: Path, entry: object, said: str) -> None:
    file = tmp_path / "many.json"
    file.write_text(json.dumps([{"prompt": "fine"}, entry]))
    with pytest.raises(StudioError) as caught:
        [built(draft) for draft in (read_draft(entry, "many.json, entry 2", tmp_path),)]
    assert str(caught.value).startswith("many.json, entry 2")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()
    with pytest.raises(StudioError, match=r"many\.json"):
        [built(draft) for draft in read_requests(file)]


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", '"x"'])
def test_a_file_that_is_no_list_of_requests(tmp_path: Path, text: str) -> None:
    file = tmp_path / "many.json"
    file.write_text(text)
    with pytest.raises(StudioError, match=r"many\.json"):
        read_requests(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than 40 deep"),
        ("[" * 60 + "]" * 60, "nested more than 40 deep"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ("[NaN]", "nan is no number"),
        ('["\\ud800"]', "half a character"),
        ('[{"prompt": "a"}' + ',{"prompt": "a"}' * 10_000 + "]", "holds 10001 requests, more than 10000"),
        ("[" + "1," * 1_200_000 + "1]", "far more than 1000000"),
        ("[" + "," * 6_000_000 + "]", "far more than"),
    ],
    ids=lambda text: text[:12],
)
def test_a_file_that_holds_too_much(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "many.json"
    file.write_text(text)
    with cheap(), pytest.raises(StudioError, match=said):
        read_requests(file)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    with file.open("wb") as large:
        large.truncate(2**40)
    with cheap(), pytest.raises(StudioError, match="has 1048576 MB; at most 64 are read"):
        read_requests(file)
    with pytest.raises(StudioError, match="is no file"):
        read_requests(tmp_path)


def test_a_counted_draft_has_rising_seeds() -> None:
    drafts = counted(Draft({"prompt": "a"}), 3, 2**64 - 3)
    assert [draft.values["seed"] for draft in drafts] == [2**64 - 3, 2**64 - 2, 2**64 - 1]


@pytest.mark.parametrize(
    ("count", "first", "said"),
    [
        (0, 1, "count=0 must be a whole number above 0"),
        (-1, 1, "count=-1"),
        (10_001, 1, "count=10001: at most 10000 pictures are made at once"),
        (10**5000, 1, "count=a number of about"),
        (2.0, 1, "count=2.0"),
        (True, 1, "count=True"),
        (None, 1, "count=None"),
        ("3", 1, "count='3'"),
        (1, -1, "seed=-1 must be a whole number in 0"),
        (1, 2**64, "seed="),
        (1, 10**5000, "seed=a number of about"),
        (1, "7", "seed='7'"),
        (2, 2**64 - 1, "the last of 2 seeds would lie beyond"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_count_is_judged_before_anything_is_made(count: object, first: object, said: str) -> None:
    with cheap(), pytest.raises(StudioError, match=said):
        counted(Draft(), count, first)


def test_an_initial_image_is_judged_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("1", (10_000, 8_001)).save(file)
    with cheap(), pytest.raises(StudioError, match="10000x8001 pixels, 80 million; at most 80"):
        read_input("init_image", file)
    wide = tmp_path / "wide.png"
    Image.new("1", (10_000, 4_001)).save(wide)
    with (
        cheap(),
        pytest.raises(StudioError, match=r"^init image wide\.png has .* at most 40 million are read"),
    ):
        read_input("init_image", wide)
    bomb = tmp_path / "bomb.png"  # a header alone
    head = bytearray(file.read_bytes()[:33])
    head[16:24] = (60_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    bomb.write_bytes(bytes(head))
    with cheap(), pytest.raises(StudioError, match="cannot be read as a picture"):
        read_input("init_image", bomb)
    huge = tmp_path / "huge.png"
    with huge.open("wb") as large:
        large.truncate(2**40)
    with cheap(), pytest.raises(StudioError, match="1048576 MB; at most 256 are read"):
        read_input("init_image", huge)
    with pytest.raises(StudioError, match="it is no file"):
        read_input("init_image", tmp_path)


def test_a_request_is_judged_by_the_size_of_its_initial_image_alone(tmp_path: Path) -> None:
    """Upright, and anew when the file is another one."""
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (48, 32)).save(file, exif=exif)
    assert sized_like("init_image", file).size == read_input("init_image", file).size == (32, 48)
    Image.new("L", (64, 32)).save(file)
    assert sized_like("init_image", file).size == (64, 32)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(StudioError, match=r"init image turned\.jpg cannot be read as a picture"):
        sized_like("init_image", file)
    Image.new("1", (5000, 8000)).save(file, format="PNG")
    draft = Draft({"prompt": "a fox"}, images={"init_image": file})
    with cheap():
        judged = [draft.build(lambda wanted: Use("x"), sized_like) for _ in range(100)]
    assert {request.init_image.size for request in judged if request.init_image} == {(5000, 8000)}


def test_of_an_animation_the_first_picture_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(file, save_all=True, append_images=frames[1:] * 50)
    assert read_input("init_image", file).getpixel((0, 0)) == (255, 0, 0)


def test_methods_as_text_and_as_objects() -> None:
    for value, method in (
        ("merge", Merge()),
        ("composite", Composite()),
        ("switch:interval=3", Switch(interval=3)),
        ({"method": "switch", "interval": 3}, Switch(interval=3)),
    ):
        assert built(read_draft({"composer": value}, "here")).composer == method


ANYTHING: list[object] = [
    None, True, -1, 0, 1, 2.5, 10**400, 1 << 30_000, math.nan, math.inf, "", "x", "\ud800", "a\0", "x" * 30_000, [],
    [1], [[1, 2]], [1, 2], [1, 2, 3], {}, {"a": 1}, {"method": "switch"}, {"method": "switch", "interval": math.nan},
    {"method": ["x"]}, {"method": "blora", "content": "\ud800"}, {"method": "cmlora", "interval": 1 << 20_000}, ["fox"],
    [{"adapter": "a", "weight": "x"}], [{"adapter": 5}], {"fox": None}, {5: 1}, "~x/a", (1, 2), {1, 2}, b"x", object(),
    [{"adapter": "a", "blocks": {"m": 1}, "schedule": [[0, 1]], "pinned": True, "band": [1]}],
    "switch:interval=999999999999999999999", "blora:content=\ud800", "switch:" + "a=1," * 500,
]  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_whatever_a_field_holds_it_is_a_request_or_a_refusal(name: str) -> None:
    """And what was read can be kept: as JSON, and as UTF-8."""
    for value in ANYTHING:
        said = ""
        try:
            draft = read_draft({name: value}, "here")
            json.dumps(plain_draft(draft), allow_nan=False).encode()
            json.dumps(plain_request(built(draft)), allow_nan=False).encode()
        except StudioError as error:
            said = str(error)
        assert len(said.encode()) < 10_000


def test_a_prompts_tag_names_no_path(tmp_path: Path) -> None:
    """Prompts come from strangers; after a job was kept in the database, too."""
    file = tmp_path / "secret.safetensors"
    file.write_bytes(b"")
    shelf = Shelf(Home(tmp_path / "home"), None)
    draft = Draft({"prompt": f"a fox <lora:{tmp_path}/secret.safetensors:1>"})
    kept = read_draft(json.loads(json.dumps(plain_draft(draft))), "")
    for one in (draft, kept):
        assert len(shelf.missing(one.wanted)) == 1
    assert shelf.missing([Wanted(str(file))]) == []
