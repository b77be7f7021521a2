"""The Compose page at work: live drafts, completion, the mix by keyboard, one's own checkpoint, a job file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Route, expect

from studio.pictures.metadata import read_picture

pytestmark = pytest.mark.browser


def strength(studio: Any, row: int) -> Any:
    return studio.rows.nth(row).locator("input[type=range]").first


def test_letting_go_of_a_strength_redraws_a_draft_that_is_not_kept(studio: Any) -> None:
    studio.write("a panda in the snow")
    studio.add("panda")
    before = len(studio.server.pictures())
    draft = studio.page.locator("#draft figure")
    for _ in range(3):  # each takes the place of the one before it
        strength(studio, 0).press("ArrowLeft")
    expect(draft).to_contain_text("panda 0.85")
    expect(draft).to_have_attribute("data-state", "done")
    expect(draft.get_by_role("img", name="Draft: panda 0.85")).to_be_visible()
    assert len(studio.server.pictures()) == before
    studio.page.get_by_label("Live draft").uncheck()
    strength(studio, 0).press("ArrowLeft")
    expect(draft).to_have_count(0)


def test_names_and_words_complete_by_keyboard(studio: Any) -> None:
    studio.add("nilo-fox")
    box = studio.page.locator("#prompt textarea")
    offered = studio.page.get_by_role("listbox", name="Completions")
    expect(studio.page.locator("[data-complete=triggers]")).to_have_attribute(
        "data-entries", '[["nilo fox", "nilo fox"]]'
    )
    box.press_sequentially("a nilo")
    expect(offered.get_by_role("option")).to_have_text(["nilo fox"])
    box.press("Tab")
    expect(box).to_have_value("a nilo fox")
    box.press_sequentially(" with a kitt")
    box.press("ArrowDown")
    expect(offered.get_by_role("option", selected=True)).to_have_text("kitty → cat")
    box.press("Enter")
    expect(box).to_have_value("a nilo fox with a cat")
    box.press_sequentially(", <lora:kim")
    expect(offered.get_by_role("option", selected=True)).to_have_text("kimono")
    box.press("Escape")
    expect(offered).to_be_hidden()
    box.press_sequentially("o")
    box.press("Enter")
    expect(box).to_have_value("a nilo fox with a cat, <lora:kimono:1>")
    expect(offered).to_be_hidden()


def test_a_row_sweeps_its_strength_in_one_job(studio: Any) -> None:
    studio.write("a panda in the snow")
    studio.add("panda")
    studio.steps(3)
    before = len(studio.server.pictures())
    studio.rows.get_by_role("button", name="Text encoder, blocks").click()
    studio.rows.get_by_role("button", name="Sweep its strength").click()
    studio.state("5 of 5 pictures done")
    records = studio.server.records()[before:]
    assert [use["weight"] for record in records for use in record["adapters"]] == [0.375, 0.75, 1.125, 1.5]
    assert len({record["seed"] for record in records}) == 1
    scrub = studio.page.locator("#compose-scrub input[type=range]")
    expect(scrub).to_have_attribute("max", "5")  # the last picture has come to the page
    scrub.press("End")
    expect(studio.page.locator("#compose-scrubbed")).to_contain_text("panda 1.5")


def test_a_normalised_mix_says_so_in_its_record_and_becomes_a_job_file(studio: Any, tmp_path: Path) -> None:
    studio.write("a panda wearing a kimono")
    studio.add("panda", "kimono")
    studio.page.locator("#normalise").click()
    expect(studio.page.locator("#gauge")).to_contain_text("Total strength 1.00 · normalised, it was 2.00")
    studio.steps(3)
    studio.number("seed", 31)
    studio.generate()
    studio.state("1 of 1 picture done")
    [record] = [record for record in studio.server.records() if record["seed"] == 31]
    assert "the mix was normalised; before: panda 1, kimono 1" in record["notes"]
    with studio.page.expect_download() as download:
        studio.page.locator("#form-job-file").click()
    content = yaml.safe_load(Path(download.value.path()).read_text(encoding="utf-8"))
    assert content["jobs"] == [{"seed": 31}]
    assert content["defaults"]["steps"] == 3
    assert [use["weight"] for use in content["defaults"]["adapters"]] == [0.5, 0.5]


def test_a_dropped_picture_brings_back_every_setting(studio: Any, until: Callable[..., None]) -> None:
    page = studio.page
    studio.write("a panda <lora:kimono:0.7:lbw=OUTALL:step=1@0,0.5@2>")
    studio.add("panda")
    studio.steps(3)
    page.get_by_role("button", name="Advanced").click()
    studio.number("seed", 9007199254740991)
    studio.number("reuse", 2)
    studio.number("clip-skip", 0)
    studio.choose("text-mode", "first")
    for label, pair in (("Original size", "100, 90"), ("Crop", "5,7"), ("Target size", "64x96")):
        page.get_by_label(label).fill(pair)

    def drawn() -> Path:
        before = len(studio.server.pictures())
        studio.generate()
        until(lambda: len(studio.server.pictures()) > before)
        return Path(studio.server.pictures()[-1])

    made = drawn()
    page.locator("#clear-form").click()
    expect(page.get_by_label("Crop")).to_have_value("0,0")
    expect(page.locator("#seed input")).to_have_value("-1")
    studio.tab("Gallery")
    page.locator("#drop input[type=file]").set_input_files(made)
    expect(page.locator("#prompt textarea")).to_have_value("a panda")
    expect(studio.rows).to_have_count(2)
    studio.tab("Compose")
    expect(page.get_by_label("Target size")).to_have_value("64,96")
    expect(page.locator("#reuse input")).to_have_value("2")
    first, again = read_picture(made), read_picture(drawn())
    assert replace(first.draft, where=again.draft.where) == again.draft
    assert (first.draft.values["crop"], first.draft.values["clip_skip"]) == ((5, 7), 0)
    assert [use["weight"] for use in first.record["adapters"]] == [
        use["weight"] for use in again.record["adapters"]
    ]
    page.get_by_label("Crop").fill("5")
    studio.generate()
    studio.says("must be two whole numbers, as in 1024,768")


def test_ones_own_checkpoint_is_found_chosen_and_loaded(studio: Any, tmp_path: Path, sd_folder: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(sd_folder, folder / "my-own")
    page = studio.page
    page.get_by_role("button", name="Use my own checkpoint").click()
    page.get_by_label("Its path").fill(str(tmp_path / "nowhere.safetensors"))
    page.get_by_role("button", name="Load it").click()
    studio.says("nowhere.safetensors does not exist; check the path")
    page.get_by_label("A folder with checkpoints").fill(str(folder))
    page.get_by_role("button", name="Add folder").click()
    expect(page.locator("#own-found")).to_contain_text("my-own")
    page.get_by_label("Its path").fill("my-own")
    page.get_by_role("button", name="Load it").click()
    expect(page.locator("#model-line")).to_contain_text("my-own on cpu")
    expect(page.get_by_label("Live draft")).not_to_be_checked()  # a checkpoint may be slow
    studio.write("a fox")
    studio.steps(2)
    studio.generate()
    studio.state("1 of 1 picture done")
    assert studio.server.records()[-1]["model"] == "my-own"


def test_lost_answers_are_asked_for_again_and_what_is_typed_stays(visitor: Any) -> None:
    """Of whatever the page asks outside the queue, the first answer is lost."""
    studio = visitor(start=False)
    lost: set[int] = set()
    pushed: list[int] = []

    def lose(route: Route) -> None:
        number = route.request.post_data_json["fn_index"]
        answer = route.fetch()
        if "data-complete" in answer.text():
            pushed.append(number)
        if number in lost:
            route.fulfill(response=answer)
        else:
            lost.add(number)
            route.fulfill(status=500, json={"error": None})  # as Gradio answers what has raised

    studio.page.route("**/gradio_api/run/predict*", lose)
    studio.open()
    studio.write("a panda in the snow")
    box = studio.page.locator("#add-lora input").first
    box.press_sequentially("kim")
    expect(studio.page.get_by_role("option", name="kimono", exact=True)).to_be_visible()
    expect(box).to_have_value("kim")
    studio.add("kimono")
    expect(studio.page.locator("#prompt textarea")).to_have_value("a panda in the snow")
    assert len(pushed) >= 2, "the lost answer, and the one that came"
    for _ in range(20):  # a slow answer is asked for again before it comes; one that has come is not
        before = len(pushed)
        studio.page.wait_for_timeout(2500)
        if len(pushed) == before:
            break
    assert len(pushed) == before, "an answer that came is not sent again"
    assert pushed[0] in lost
    studio.problems.clear()  # the console tells of the lost answers


def test_a_part_of_a_picture_is_drawn_anew(studio: Any, tmp_path: Path, until: Callable[..., None]) -> None:
    """The picture to start from comes out of the gallery, and a mask says which part."""
    studio.write("a fox on the beach")
    studio.steps(3)
    studio.generate()
    studio.state("1 of 1 picture done")
    studio.tab("Gallery")
    studio.page.locator("#gallery-refresh").click()
    studio.page.locator("#gallery .gallery-item img").first.click()
    expect(studio.page.locator("#record")).to_contain_text("a fox on the beach")
    before = Image.open(studio.server.pictures()[-1]).convert("RGB")
    studio.page.locator("#start-from-it").click()
    expect(studio.page.locator("#init-image img")).to_be_visible()
    mask = Image.new("L", before.size)
    mask.paste(255, (0, 0, before.width // 2, before.height))
    mask.save(tmp_path / "mask.png")
    studio.page.locator("#mask input[type=file]").set_input_files(tmp_path / "mask.png")
    expect(studio.page.locator("#mask img")).to_be_visible()
    studio.number("mask-blur", 0)
    studio.write("a panda on the beach")
    studio.generate()
    studio.state("1 of 1 picture done")
    expect(studio.page.locator("#said")).to_have_text("done, 1 of 1 done.")
    until(lambda: studio.server.records()[-1]["prompt"] == "a panda on the beach")
    record = studio.server.records()[-1]
    assert (record["strength"], record["executed_steps"]) == (0.8, 2)
    after = Image.open(studio.server.pictures()[-1]).convert("RGB")
    change = np.abs(np.asarray(after, float) - np.asarray(before, float)).mean((0, 2))
    assert change[: before.width // 3].mean() > 3 * change[-before.width // 3 :].mean()
