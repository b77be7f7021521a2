"""What a studio of commit c4e41da kept is read ever after, and means what it meant (see its fixtures' README)."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from composers import build
from composers.plan import Schedule
from pipelines import Request, StudioPipeline
from pipelines.checkpoints import hashes
from pipelines.engine import calibration
from pipelines.engine.planner import Rates
from pipelines.engine.products.autotune import Choice, Choices
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.home.settings import Roots, read_settings
from pipelines.session import Session
from pipelines.spectrum import cached
from pipelines.text.editing import wording
from pipelines.text.tags import take_tags
from pipelines.training.recipe import Recipe
from pipelines.training.state import Identity, load_state
from studio.batch.jobfile import read_jobs
from studio.batch.manifest import LOCK, MANIFEST
from studio.batch.plan import Ground, PlannedPicture, plan
from studio.batch.problems import Problems
from studio.batch.variants import Wildcards
from studio.drafts.draft import Draft, Wanted, wanted_of
from studio.drafts.entries import plain_draft, read_draft, read_requests
from studio.drafts.shelf import Shelf
from studio.jobs import JobState, JobView, Worker
from studio.jobs.gate import Trust
from studio.jobs.store import Store
from studio.library.scan import Library
from studio.pictures.comparison import TOLERANCE
from studio.pictures.metadata import read_picture
from studio.pictures.restore import Restored, restore
from studio.pictures.texts import CHUNK
from studio.web.form import mix
from studio.web.form.form import Form
from studio.web.form.kept import PutBack, put_back
from studio.web.parts.showcase import METHODS, Showcase

from .conftest import Run

BEFORE = Path(__file__).parent.parent / "fixtures" / "c4e41da"
LAY_AT = "/home/ann/lora-studio"
"""Where its home lay."""
WRITTEN = 1_700_000_000
"""When the home's LoRAs were last changed, in seconds since 1970."""
ANN, BOB, PROGRAMS = "login:ann", "browser:0123456789abcdef", "programs"
PICTURES = {
    "merge": "00001_7.png",
    "switch": "00008_7.png",
    "composite": "00002_7.png",
    "cmlora": "00009_7.png",
    "blora": "00003_7.png",
    "image to image": "00004_7.png",
    "blocks, schedule, pinned": "00005_7.png",
    "tags": "00006_7.png",
    "long prompt": "00007_7.png",
    "all settings": "00010_9223372036854775808.png",
    "the other model": "00011_7.png",
}
FOX = Wanted("nilo-fox", 0.8)


def picture(label: str) -> Path:
    return BEFORE / "home" / "outputs" / "2026-11-29" / PICTURES[label]


@pytest.fixture
def old(home: Path) -> Home:
    """The home of then, at another place; whatever names its place names the new one."""
    shutil.copytree(BEFORE / "home", home)
    for file in (home / "loras").iterdir():
        os.utime(file, (WRITTEN, WRITTEN))
    for file, table, columns in (
        ("studio.sqlite", "pictures", ("draft",)),
        ("cache/library.sqlite", "cards", ("path", "card")),
    ):
        with sqlite3.connect(home / file) as database:
            for column in columns:
                moved = (LAY_AT, home.as_posix())
                database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", moved)
        database.close()
    return Home.resolve(home)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The database of then, to the letter."""
    file = tmp_path / "studio.sqlite"
    shutil.copy(BEFORE / "home" / "studio.sqlite", file)
    store = Store(file)
    yield store
    store.close()


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> StudioPipeline:
    return StudioPipeline.from_pretrained("tiny-sdxl", home=Home.resolve(tmp_path_factory.mktemp("empty")))


def holds(old: object, now: object) -> bool:
    """Whether everything that was said is said now. What a later version says beyond it does not matter."""
    if isinstance(old, dict) and isinstance(now, dict):
        return all(name in now and holds(value, now[name]) for name, value in old.items())
    if isinstance(old, list) and isinstance(now, list):
        return len(old) == len(now) and all(holds(a, b) for a, b in zip(old, now, strict=True))
    return old == now


def tags_as_adapters(said: Any) -> Any:
    """What was said with LoRA tags in its prompts, the tags among the adapters, where they are kept now."""
    if isinstance(said, list):
        return [tags_as_adapters(one) for one in said]
    if "draft" in said:
        return {**said, "draft": tags_as_adapters(said["draft"])}
    text, tags = take_tags(said["prompt"])
    tagged = [
        json.loads(json.dumps(plain_draft(Draft(wanted=(wanted_of(tag),)))))["adapters"][0] for tag in tags
    ]
    return {**said, "prompt": text, "adapters": [*said.get("adapters", ()), *tagged]} if tags else said


def plain(draft: Draft) -> Any:
    """As JSON holds it."""
    return json.loads(json.dumps(plain_draft(draft)))


def pixels(image: Path | Image.Image) -> np.ndarray[Any, Any]:
    if isinstance(image, Path):
        with Image.open(image) as stored:
            return pixels(stored.convert("RGB"))
    return np.asarray(image, dtype=np.int16)


# -- studio.sqlite -----------------------------------------------------------------------------------------


def test_all_jobs_are_listed_with_their_states(store: Store) -> None:
    listed = {
        owner: [(job.title, job.kind, job.model, str(job.state)) for job in store.jobs_of(owner, 99)]
        for owner in (ANN, BOB, PROGRAMS)
    }
    assert listed == {
        ANN: [
            ("broken off", "compose", "tiny-sdxl", "running"),
            ("its LoRA goes", "compose", "tiny-sdxl", "failed"),
            ("every method", "compare", "tiny-sdxl", "done"),
        ],
        BOB: [
            ("a draft", "live", "tiny-sdxl", "queued"),
            ("a nilo fox wearing a kimono at a castle", "compose", "tiny-sdxl", "queued"),
            ("a fox", "compose", "tiny-sdxl", "cancelled"),
            ("a nilo fox in space", "compose", "tiny-sd", "done"),
        ],
        PROGRAMS: [("a fox", "compose", "tiny-sdxl", "queued")],
    }
    broken_off, failed, done = store.jobs_of(ANN, 99)
    assert done.settings == {
        "before": {"nilo-fox": 1.6, "kimono": 1.4},
        "methods": ["merge", "switch"],
    }
    assert "gone.safetensors is gone" in failed.error
    assert (broken_off.attempts, broken_off.ended, done.vae) == (1, None, None)
    assert done.began is not None
    assert done.ended is not None
    assert done.created <= done.began <= done.ended


def test_all_pictures_are_listed_with_their_drafts(store: Store) -> None:
    [broken_off, failed, done] = [store.pictures_of(job.id) for job in store.jobs_of(ANN, 99)]
    assert [str(row.state) for row in broken_off] == ["done", "running", "running"]
    assert [str(row.state) for row in failed] == ["failed"]
    assert [row.label for row in done] == [label for label in PICTURES if label != "the other model"]
    for row in done:
        assert row.file == f"outputs/2026-11-29/{PICTURES[row.label]}"
        assert row.record is not None
        assert row.record["seed"] == row.draft["seed"]
    with sqlite3.connect(
        f"file:{BEFORE / 'home' / 'studio.sqlite'}?mode=ro&immutable=1", uri=True
    ) as database:
        said = dict(database.execute("SELECT job || ' ' || place, draft FROM pictures").fetchall())
    database.close()
    rows = [
        row for owner in (ANN, BOB, PROGRAMS) for job in store.jobs_of(owner, 99) for row in store.pictures_of(job.id)
    ]  # fmt: skip
    assert len(rows) == len(said) == 22
    for row in rows:
        old = tags_as_adapters(json.loads(said[f"{row.job} {row.index}"]))
        assert holds(old, plain(read_draft(dict(row.draft), row.job)))


def test_a_draft_means_what_it_meant(store: Store) -> None:
    done = next(job for job in store.jobs_of(ANN, 99) if job.state is JobState.DONE)
    drafts = {row.label: read_draft(dict(row.draft), row.label) for row in store.pictures_of(done.id)}
    assert drafts["switch"].values["composer"] == build("switch", {"interval": 1, "convention": "code"})
    assert drafts["image to image"].images["init_image"] == Path(
        LAY_AT, "inputs", "5e6ee523b675f21bceb7ee3998d2a5a0.png"
    )
    assert drafts["image to image"].values["strength"] == 0.75
    assert drafts["blocks, schedule, pinned"].wanted == (
        Wanted("nilo-fox", 0.8, 0.5, blocks=(("up_blocks.1", 1.0), ("mid_block", 0.25))),
        Wanted("kimono", 0.9, schedule=Schedule(((0.0, 1.0), (0.5, 0.25)))),
        Wanted("kelda-duotone", 0.5, 0.0, pinned=True),
    )
    assert [wanted.band for wanted in drafts["cmlora"].wanted] == ["high", "high", "low"]
    assert drafts["tags"].values["prompt"] == "a fox at a castle"
    assert drafts["tags"].wanted == (
        Wanted("nilo-fox", 0.8, blocks=(("@OUTALL", 1.0),)),
        Wanted("castle", 0.9, 0.2, schedule=Schedule(((0.0, 0.0), (1, 1.0), (2, 0.0)))),
    )


def test_what_was_left_is_taken_up_and_made(old: Home) -> None:
    with sqlite3.connect(old.database) as database:
        title_of = dict(database.execute("SELECT id, owner || ' ' || title FROM jobs").fetchall())
        left = database.execute("SELECT id, owner FROM jobs WHERE state IN ('queued', 'running')").fetchall()
    database.close()
    made: dict[str, JobView] = {}
    worker = Worker(old)
    worker.start()
    try:
        for id, owner in left:
            version = -1
            while (view := worker.view(id, owner)) is not None and not view.state.over:
                version = worker.wait(version, 60)
            if view is not None:
                made[title_of[id]] = view
        gallery = worker.pictures(ANN)
    finally:
        worker.close()
    assert {title: (str(view.state), len(view.finished)) for title, view in made.items()} == {
        f"{ANN} broken off": ("done", 3),
        f"{PROGRAMS} a fox": ("done", 2),
        f"{BOB} a nilo fox wearing a kimono at a castle": ("done", 2),
    }
    assert not any(title.endswith("a draft") for title in made)  # live ones are not kept
    kept = made[f"{ANN} broken off"].pictures[0]
    assert kept.file is not None
    assert kept.file.read_bytes() == (picture("merge").parent / "00012_7.png").read_bytes()
    again = made[f"{BOB} a nilo fox wearing a kimono at a castle"].pictures
    for view, label in zip(again, ("blocks, schedule, pinned", "tags"), strict=True):
        assert view.file is not None
        assert np.abs(pixels(view.file) - pixels(picture(label))).max() <= TOLERANCE
    assert len(gallery) == 10 + 3
    assert all(found.file.is_file() for found in gallery)


# -- pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [*map(picture, PICTURES), BEFORE / "setup.png"], ids=[*PICTURES, "setup"])
def test_a_picture_says_every_field(file: Path) -> None:
    with Image.open(file) as image:
        said = json.loads(image.info["lora-studio"])
    found = read_picture(file)
    request = {name: value for name, value in said["request"].items() if value is not None}
    mark = request.pop("init_image", None)
    assert holds(request, plain(found.draft))
    assert (found.ours, found.init_image, found.record) == (True, mark, said["record"])
    assert (found.model, found.model_hash) == (said["record"]["model"], said["record"]["model_hash"])
    assert (found.setup.vae, found.setup.low_memory) == (said["setup"]["vae"], said["setup"]["low_memory"])
    assert {name: (known.digest, known.size) for name, known in found.known.items()} == {
        name.casefold(): (known["sha256"], known["size"]) for name, known in said["adapters"].items()
    }


@pytest.mark.parametrize("label", PICTURES)
def test_a_picture_is_restored(old: Home, label: str) -> None:
    found = restore(picture(label), old, Library(lambda: old))
    assert found.program == "LoRA Studio"
    assert found.model == ("tiny-sd" if label == "the other model" else "tiny-sdxl")
    assert found.missing == ()
    from_another = ("it was made from another picture, which is not stored in it: choose that one again",)
    assert found.notes == (from_another if label == "image to image" else ())


def test_restored_settings_mean_what_they_meant(old: Home) -> None:
    library = Library(lambda: old)
    found = {label: restore(picture(label), old, library) for label in PICTURES}
    every = found["all settings"].draft
    assert holds(
        {
            "prompt": "a (nilo fox:1.3), ünder [kimono] BREAK a \\(castle\\)", "negative_prompt": "rain",
            "seed": 2**63, "steps": 4, "width": 48, "height": 48, "guidance_scale": 4.5, "guidance_rescale": 0.3,
            "scheduler": "DPM++ 2M Karras", "clip_skip": 1, "text_mode": "first", "reuse": 2, "cut": "deep",
            "original_size": [96, 80], "crop": [8, 4], "target_size": [64, 56],
            "composer": {"method": "switch", "interval": 2, "convention": "paper"},
        },
        plain(every),
    )  # fmt: skip
    assert every.wanted == (FOX, Wanted("Hat", 0.5))
    assert found["cmlora"].draft.values["composer"] == build("cmlora", {"decay": True, "interval": 2})
    assert found["blora"].draft.values["composer"] == build(
        "blora", {"content": "b-sketch", "style": "b-panda", "alpha_mode": "square"}
    )
    assert found["long prompt"].draft.values["negative_prompt"] == ""
    assert "negative_prompt" not in found["merge"].draft.values
    assert found["image to image"].draft.values["strength"] == 0.75
    pinned = found["blocks, schedule, pinned"].draft.wanted
    assert [use.pinned for use in pinned] == [False, False, True]
    assert pinned[0].blocks == (("up_blocks.1", 1.0), ("mid_block", 0.25))
    assert pinned[1].schedule == Schedule(((0.0, 1.0), (0.5, 0.25)))
    assert found["merge"].record["notes"]  # the weights before the mix was normalised


def test_the_text_for_other_tools_says_the_same(tmp_path: Path) -> None:
    """Where only A1111's text is left of what a picture said."""
    file = tmp_path / "picture.png"
    info = PngInfo()
    with Image.open(picture("all settings")) as image:
        info.add_text("parameters", image.info["parameters"])
        image.save(file, pnginfo=info)
    found = read_picture(file)
    ours = read_picture(picture("all settings")).draft.values
    assert found.draft.values == {
        "prompt": ours["prompt"],
        **{
            name: ours[name]
            for name in ("negative_prompt", "steps", "guidance_scale", "guidance_rescale", "seed")
        },
        **{
            name: ours[name]
            for name in ("width", "height", "scheduler", "clip_skip", "text_mode", "composer")
        },
    }
    assert (found.ours, found.model, found.model_hash) == (False, "tiny-sdxl", "c3d17dd452")
    assert set(found.known) == {"nilo-fox", "hat"}


def test_restored_pictures_repeat(old: Home, tiny_sdxl: StudioPipeline) -> None:
    library = Library(lambda: old)
    labels = [label for label in PICTURES if label != "the other model"]
    requests = [request_of(restore(picture(label), old, library), old, tiny_sdxl) for label in labels]
    try:
        images = tiny_sdxl(requests).images
    finally:
        tiny_sdxl.unload_lora_weights()
    apart = {
        label: int(np.abs(pixels(image) - pixels(picture(label))).max())
        for label, image in zip(labels, images, strict=True)
    }
    assert {label: most for label, most in apart.items() if most > TOLERANCE} == {}


def test_brackets_and_and_of_before_stay_words(tmp_path: Path) -> None:
    """Pictures of then were drawn before prompts knew editing, alternation and AND."""
    with Image.open(picture("merge")) as old:
        said = json.loads(old.text[CHUNK])  # type: ignore[attr-defined]
        said["request"] |= {"prompt": "a [fox:hat:0.5] [on|in] snow AND ice", "negative_prompt": "[a|b]"}
        info = PngInfo()
        info.add_text(CHUNK, json.dumps(said))
        old.save(tmp_path / "old.png", pnginfo=info)
    values = read_picture(tmp_path / "old.png").draft.values
    assert values["prompt"] == r"a [fox\:hat\:0.5] [on\|in] snow and ice"
    assert values["negative_prompt"] == r"[a\|b]"
    assert wording(values["prompt"], values["negative_prompt"], 9).texts == (
        values["prompt"],
        values["negative_prompt"],
    )


def request_of(restored: Restored, home: Home, pipe: StudioPipeline) -> Request:
    """The request that it asks for, its adapters loaded; the initial picture is the one it was made from."""
    shelf = Shelf(home, "tiny-sdxl")
    draft = restored.draft
    if "strength" in draft.values and draft.values["strength"] != Request.strength:
        draft = replace(draft, images={"init_image": next((home.path / "inputs").iterdir())})
    request = draft.build(shelf.use)
    for name, file in shelf.files.items():
        if name not in pipe.adapters:
            pipe.load_lora_weights(file, name)
    return request


# -- the form ----------------------------------------------------------------------------------------------


def reopened(place: int, user: str | None, home: Home) -> PutBack | None:
    kept = json.loads((BEFORE / "forms.json").read_text(encoding="utf-8"))[place]
    return put_back(kept, user, home, Trust(), Library(lambda: home).named)


def test_a_form_comes_back_as_it_stood(old: Home) -> None:
    late = Wanted("glow", 1.0, blocks=(("mid_block", 0.5),), schedule=Schedule(((0.5, 0.0),)), band="low")
    assert reopened(0, None, old) == PutBack(
        Form(
            values={
                "prompt": "a fox <lora:castle:0.5:lbw=OUTALL>, ünder the sun",
                "negative_prompt": "rain",
                "seed": 7,
                "steps": 12,
                "guidance_scale": 4.5,
                "width": 64,
                "height": 96,
                "scheduler": "DPM++ 2M Karras",
                "guidance_rescale": 0.2,
                "clip_skip": 1,
                "strength": 0.4,
            },
            method="switch",
            method_values={"interval": 3, "convention": "code"},
            rows=(
                mix.MixRow("Hat", weight=0.6, text_weight=0.3, before=1.2),
                mix.MixRow("coat", on=False, weight=-1.0, preset="style"),
                mix.MixRow("glow", weight=0.4, preset=mix.CUSTOM, before=0.8, wanted=late),
            ),
            count=3,
        ),
        "tiny-sdxl",
    )
    assert reopened(1, None, old) == PutBack(Form())


def test_a_form_belongs_to_whoever_was_logged_in(old: Home) -> None:
    assert reopened(2, "ann", old) == PutBack(Form({"prompt": "of ann"}), "tiny-sd")
    assert reopened(2, None, old) is None


# -- job files and batches ---------------------------------------------------------------------------------


def planned(name: str) -> list[PlannedPicture]:
    problems = Problems()
    file = BEFORE / "jobs" / name
    jobs = plan(
        read_jobs(file, problems), Ground("tiny-sdxl", {}, Wildcards(file.parent / "wildcards")), problems
    )
    assert problems.messages == []
    return jobs


@pytest.mark.parametrize(
    "name", ["jobs.yaml", "jobs.jsonl", "jobs.json", "jobs.csv", "prompts.txt", "page.yaml"]
)
def test_a_job_file_gives_the_same_jobs(name: str) -> None:
    """With the same keys, or a batch that is gone on with would make its pictures twice."""
    found = [
        {
            "index": job.index, "key": job.key, "name": job.name, "where": job.where, "seed": job.seed,
            "model": job.model, "file": job.file.as_posix(),
            "draft": {**plain(job.draft), "init_image": getattr(job.draft.images.get("init_image"), "name", None)},
        }
        for job in planned(name)
    ]  # fmt: skip
    said = json.loads((BEFORE / "planned.json").read_text(encoding="utf-8"))[name]
    assert holds(tags_as_adapters(said), found)


def test_a_list_of_requests_is_read() -> None:
    file = BEFORE / "requests.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    assert holds(tags_as_adapters(said), [plain(draft) for draft in read_requests(file)])


@pytest.fixture
def out(old: Home, tmp_path: Path) -> Path:
    """The folder of the batch; the home has the LoRA that it asks for."""
    return shutil.copytree(BEFORE / "batch", tmp_path / "batch")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != LOCK}


def test_a_finished_batch_makes_nothing_again(out: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise AssertionError("a picture was made again")

    monkeypatch.setattr(Session, "submit", refused)
    ran = run("batch", BEFORE / "jobs" / "jobs.yaml", "--out", out)
    assert ran.code == 1  # as one has failed, then
    assert "7 of 7 pictures are there already" in ran.err
    assert "the picture is not finite" in ran.err
    assert contents(out) == contents(BEFORE / "batch")


def test_what_failed_is_made_when_it_is_asked_for(out: Path, run: Run) -> None:
    assert run("batch", BEFORE / "jobs" / "jobs.yaml", "--out", out, "--retry-failed").code == 0
    before, now = contents(BEFORE / "batch"), contents(out)
    lines = now.pop(MANIFEST).splitlines(keepends=True)
    assert b"".join(lines[:-1]) == before.pop(MANIFEST)
    assert json.loads(lines[-1])["status"] == "done"
    assert now.keys() - before.keys() == {"00002_fox_3.png"}
    assert {name: now[name] for name in before} == before


def test_a_picture_whose_line_is_missing_is_known_by_what_it_says(
    out: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was ended between the two."""
    lines = (out / MANIFEST).read_bytes().splitlines(keepends=True)
    (out / MANIFEST).write_bytes(lines[0])
    monkeypatch.setattr(Session, "submit", lambda *_, **__: pytest.fail("a picture was made again"))
    assert run("batch", BEFORE / "jobs" / "jobs.yaml", "--out", out).code == 1
    known = [json.loads(line) for line in (out / MANIFEST).read_bytes().splitlines()]
    expected = [json.loads(line) for line in lines]
    assert sorted(known, key=lambda entry: entry["index"]) == sorted(
        expected, key=lambda entry: entry["index"]
    )


# -- settings ----------------------------------------------------------------------------------------------


def test_config_toml_is_read() -> None:
    settings = read_settings(BEFORE / "home")
    assert (settings.model, settings.device, settings.dtype) == ("tiny-sdxl", "cpu", "float32")
    assert (settings.lora_ram, settings.lora_vram) == (1.5, 2.0)
    assert settings.folders == Roots(
        loras=(Path("/home/ann/more loras"),), vae=(Path(LAY_AT, "vae of mine"),)
    )


def test_config_toml_keeps_what_its_user_wrote(old: Home, tmp_path: Path) -> None:
    before = (old.path / "config.toml").read_text(encoding="utf-8")
    old.add_folders(Roots(models=(tmp_path,)))
    now = (old.path / "config.toml").read_text(encoding="utf-8")
    assert now.partition("[folders]")[0] == before.partition("[folders]")[0]
    assert read_settings(old.path).folders == read_settings(BEFORE / "home").folders + Roots(
        models=(tmp_path,)
    )


# -- caches ------------------------------------------------------------------------------------------------


def test_the_library_is_known_or_read_anew(old: Home, tmp_path: Path) -> None:
    own = [card for card in Library(lambda: old).cards() if not card.embedded]
    assert {card.name: card.kinds for card in own} == {
        "Hat": ("LoRA",),
        "coat": ("LoRA",),
        "glow": ("FLoRA",),
    }
    assert {card.name: card.triggers for card in own if card.name != "Hat"} == {
        "coat": ("a hat",),
        "glow": ("a hat",),
    }
    hat = next(card for card in own if card.name == "Hat")
    assert (hat.preferred_weight, hat.ranks, hat.family) == (0.6, (2, 2), "sdxl")
    fresh = Home(tmp_path / "fresh", roots=Roots(loras=(old.path / "loras",)))
    assert own == [card for card in Library(lambda: fresh).cards() if not card.embedded]
    said = {card.name: metadata for card, metadata in Library(lambda: old).with_metadata()}
    assert said["coat"]["modelspec.trigger_phrase"] == "a hat"


@pytest.mark.parametrize("name", ["Hat", "coat", "glow"])
def test_an_adapter_that_the_studio_wrote_is_loaded(old: Home, tiny_sdxl: StudioPipeline, name: str) -> None:
    report = tiny_sdxl.load_lora_weights(old.path / "loras" / f"{name}.safetensors")
    try:
        assert list(tiny_sdxl.model.adapter(name).layers) == [
            "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        ]
        assert report.sha256
    finally:
        tiny_sdxl.unload_lora_weights(name)


def test_a_device_s_rates_are_read(old: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    [file] = (old.cache / "engine").glob("cpu-*")
    monkeypatch.setattr(calibration, "measure", lambda *_: pytest.fail("the device was measured again"))
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")  # the file's name holds the version
    found = calibration.rates_of(torch.device("cpu"), torch.float32, old.cache)
    assert found == Rates(**json.loads(file.read_text()))


def test_choices_of_kernels_are_read() -> None:
    [file] = (BEFORE / "home" / "cache" / "engine").glob("Some-GPU-*")
    choices = Choices(file)
    choices.read()
    assert choices.known == {
        "2 x 4096 x 640 -> 3 x 640, rank 16": Choice("library", {"library": 41.5, "tall": 43.25}, {}),
        "8 x 77 x 2048 -> 1280, rank 4, pool": Choice(
            "tall", {"library": 30.0, "tall": 21.5}, {"wide": "no"}
        ),
    }


def test_a_large_file_s_hash_is_remembered_while_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [note] = (BEFORE / "home" / "cache" / "hashes").iterdir()
    said = json.loads(note.read_text())
    file = tmp_path.resolve() / "big.safetensors"
    with file.open("wb") as stream:
        stream.truncate(said["of"][1])
        stream.write(b"other bytes")
    os.utime(file, (WRITTEN, WRITTEN))
    folder = tmp_path / "hashes"
    other = hashes.short_hash([file], folder)
    [own] = folder.iterdir()
    assert other != said["sha256"][:10]
    own.write_text(note.read_text().replace(f"{LAY_AT}/big.safetensors", file.as_posix()))
    assert hashes.short_hash([file], folder) == said["sha256"][:10]
    os.utime(file, (WRITTEN + 1, WRITTEN + 1))
    assert hashes.short_hash([file], folder) == other


def test_a_frequency_profile_is_read(old: Home, tiny_sdxl: StudioPipeline) -> None:
    tiny_sdxl.load_lora_weights("castle")
    try:
        found = cached(old, tiny_sdxl.model, "castle")
    finally:
        tiny_sdxl.unload_lora_weights("castle")
    assert found is not None
    assert (found.base, len(found.change), len(found.energy)) == ("c3d17dd452", 12, 12)


def test_the_first_screen_s_strip_is_read(old: Home) -> None:
    worker = Worker(old)
    try:
        strip = Showcase(worker).strip
    finally:
        worker.close()
    assert strip is not None
    assert [file.stem for file in strip.files] == list(METHODS)
    assert (strip.together, strip.alone, strip.device) == (1.5, 6.0, "cpu (x86_64)")


# -- training ----------------------------------------------------------------------------------------------


RECIPE = Recipe(rank=1, steps=4, checkpoint_every=2)
TakeUp = Callable[[Identity], tuple[int, dict[str, float], dict[str, torch.nn.Parameter]]]


@pytest.fixture
def unfinished() -> TakeUp:
    """Takes up the training that was broken off after its second step."""

    def take_up(identity: Identity) -> tuple[int, dict[str, float], dict[str, torch.nn.Parameter]]:
        weights = {
            f"{layer}.lora_{half}": torch.nn.Parameter(torch.zeros((2, 1)))
            for layer in ("up_blocks.0.a", "up_blocks.1.b")
            for half in "AB"
        }
        optimiser = torch.optim.AdamW(weights.values(), lr=1e-3)
        generator = torch.Generator("cpu")
        step, scale = load_state(BEFORE / "half.training", identity, weights, optimiser, generator)
        assert all(int(state["step"]) == 2 for state in optimiser.state.values())
        return step, scale, weights

    return take_up


def test_a_training_that_was_broken_off_goes_on(unfinished: TakeUp) -> None:
    blocks = ("up_blocks.0", "up_blocks.1")
    step, scale, weights = unfinished(Identity("a mark", "A [v]", "tiny-sdxl", blocks, RECIPE.to_dict()))
    assert (step, scale) == (2, {"scale": 1024.0})
    left = torch.cat([weight.detach().flatten() for weight in weights.values()])
    assert ((left - 0.5).abs() < 1e-3).all()
    assert not (left == 0.5).any()


def test_another_training_s_state_is_refused(unfinished: TakeUp) -> None:
    other = Identity("another mark", "A [v]", "tiny-sdxl", ("up_blocks.0", "up_blocks.1"), RECIPE.to_dict())
    with pytest.raises(RequestError, match=r"it differs in picture\)"):
        unfinished(other)
