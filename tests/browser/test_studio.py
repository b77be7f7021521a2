"""The web studio as its users meet it: a real browser, a real server, the built-in model."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect
from safetensors.torch import save_file

from composers import methods
from pipelines.assets import root
from pipelines.text.tags import take_tags

pytestmark = pytest.mark.browser
Visitor = Callable[..., Any]
Until = Callable[..., None]
TRIO = ("panda", "kimono", "lantern")


def test_the_first_picture_from_a_cold_start(studio: Any) -> None:
    before = len(studio.server.records())
    studio.steps(4)
    studio.generate()
    studio.state("1 of 1 picture done")
    expect(studio.shown().first).to_be_visible()
    [record] = studio.server.records()[before:]
    assert record["prompt"] == "a fox wearing a crown on the beach"  # the model's own example


def test_a_mix_of_three_by_every_method(studio: Any, until: Until) -> None:
    studio.write("a panda wearing a kimono, holding a lantern")
    studio.add(*TRIO)
    studio.steps(4)
    own = [name for name, kind in methods().items() if kind.most is None or kind.most >= 3]
    for name in own:
        before = len(studio.server.pictures())
        studio.method(name)
        expect(studio.page.locator("#cost")).to_contain_text("UNet rows a step")
        studio.generate()
        expect(studio.page.locator("#pictures-jobs")).to_be_visible()
        until(lambda before=before: len(studio.server.pictures()) > before)
        record = studio.server.records()[-1]
        assert record["composer"].startswith(name)
        assert {use["name"] for use in record["adapters"]} == set(TRIO)
        assert all(use["layers"] for use in record["adapters"])


def test_rows_are_edited_reordered_and_normalised(studio: Any) -> None:
    studio.add("panda", "kimono")
    rows = studio.rows
    expect(rows.nth(0)).to_contain_text("panda")
    rows.nth(1).locator("input[type=range]").first.press("Alt+ArrowUp")
    expect(rows.nth(0)).to_contain_text("kimono")
    expect(rows.nth(0).locator("input[type=range]").first).to_be_focused()
    expect(studio.page.locator("#moved")).to_have_text("kimono is now number 1 of 2")
    rows.nth(1).get_by_role("button", name="Up").click()
    expect(rows.nth(0)).to_contain_text("panda")
    strength = rows.nth(0).locator("input[type=number]").first
    strength.fill("0.5")
    strength.press("Tab")
    expect(studio.page.locator("#gauge")).to_contain_text("1.50")
    studio.page.locator("#normalise").click()
    expect(studio.page.locator("#gauge")).to_contain_text("1.00")
    rows.nth(0).get_by_role("checkbox").uncheck()
    expect(studio.page.locator("#gauge")).to_contain_text("0.67")
    rows.nth(0).get_by_role("button", name="Remove").click()
    expect(rows).to_have_count(1)


def test_tags_become_rows_trigger_words_go_in_once_and_unknown_words_are_marked(studio: Any) -> None:
    studio.write("a fox <lora:panda:0.6>")
    studio.page.get_by_role("button", name="Turn tags into rows").click()
    expect(studio.rows).to_have_count(1)
    text = studio.page.locator("#prompt textarea").input_value()
    assert take_tags(text)[1] == ()
    studio.write("a fox on a volcanoo")
    expect(studio.page.locator("#unknown mark").first).to_have_text("volcanoo")
    studio.rows.get_by_role("button", name="Text encoder, blocks").click()
    words = studio.rows.get_by_role("button", name="Add its words")
    words.click()
    expect(studio.page.locator("#prompt textarea")).to_have_value("a fox on a volcanoo, panda")
    words.click()
    studio.page.wait_for_timeout(500)
    expect(studio.page.locator("#prompt textarea")).to_have_value("a fox on a volcanoo, panda")


def test_keys_render_stop_and_weigh(studio: Any) -> None:
    box = studio.page.locator("#prompt textarea")
    studio.write("a fox")
    box.press("End")
    box.press("Control+ArrowUp")
    expect(box).to_have_value("a (fox:1.05)")
    studio.steps(150)
    studio.number("count", 4)  # long enough to be stopped by whoever presses slowly
    box.press("Control+Enter")
    studio.state("running")
    box.press("Escape")
    studio.state("stopped; 0 of 4 pictures")


def test_the_gallery_shows_a_picture_tells_who_did_it_and_deletes_it(studio: Any) -> None:
    studio.write("a monkey in the garden")
    studio.add("panda")
    studio.steps(3)
    studio.generate()
    studio.state("1 of 1 picture done")
    expect(studio.page.locator("#said")).to_have_text("done, 1 of 1 done.")
    studio.tab("Gallery")
    studio.page.locator("#gallery-refresh").click()
    pictures = studio.page.locator("#gallery .gallery-item img")  # a chosen one is shown large besides
    expect(pictures).to_have_count(1)
    expect(pictures.first).to_have_attribute("alt", re.compile("a monkey in the garden"))
    pictures.first.click()
    expect(studio.page.locator("#record")).to_contain_text("a monkey in the garden")
    studio.page.locator("#gallery-who-did-this").click()
    studio.state("2 of 2 pictures done", "compared")
    expect(studio.page.locator("#compared")).to_contain_text("the base alone")
    studio.tab("Gallery")
    expect(pictures).to_have_count(3)
    pictures.first.click()
    expect(studio.page.locator("#record")).to_contain_text("a monkey in the garden")
    studio.page.locator("#delete").click()
    studio.page.locator("#delete-for-good").click()
    expect(pictures).to_have_count(2)


def test_the_library_shows_cards_and_searches(studio: Any) -> None:
    studio.tab("Library")
    expect(studio.page.locator("#library img").first).to_be_visible()
    studio.page.locator("#library-search input, #library-search textarea").fill("kelda")
    studio.page.locator("#library-search input, #library-search textarea").press("Enter")
    expect(studio.page.locator("#library")).to_contain_text("kelda")
    expect(studio.shown("library")).to_have_count(1)
    studio.shown("library").click()
    expect(studio.page.locator("#library-details")).to_contain_text("short_hash")
    studio.page.locator("#library-report").click()
    expect(studio.page.locator("#library-reported")).to_contain_text(re.compile(r"applied\s+unet \d+/\d+"))


def test_the_library_finds_what_a_picture_was_made_with_whatever_it_is_called_here(
    studio: Any, tmp_path: Path
) -> None:
    tensors = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)}
    tensors["lora_unet_conv_in.lora_up.weight"] = torch.ones(8, 1, 1, 1)
    renamed = studio.server.home / "loras" / "renamed.safetensors"
    save_file(tensors, renamed, metadata={"sshs_model_hash": "ab" * 32})
    said = PngInfo()
    said.add_text(
        "parameters",
        "a panda <lora:panda:1> <lora:old-name:0.5> <lora:nowhere:1>\nSteps: 20, Sampler: Euler, CFG scale: 7, "
        f'Seed: 1, Size: 64x64, Lora hashes: "old-name: {"ab" * 6}, nowhere: 001122334455", Version: v1.9.4',
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "found.png", pnginfo=said)
    studio.tab("Library")
    expect(studio.page.locator("#library-found")).to_contain_text("files")
    studio.page.locator("#library-picture input[type=file]").set_input_files(tmp_path / "found.png")
    told = studio.page.locator("#library-found")
    expect(told).to_contain_text("made with 2 LoRAs that are here")
    expect(told).to_contain_text("LoRA 'old-name' was found by its hash: it is called 'renamed' here")
    expect(told).to_contain_text("LoRA 'nowhere' (hash 001122334455) is not here")
    cards = studio.page.locator("#library .gallery-item img")
    expect(cards).to_have_count(2)
    expect(cards.nth(0)).to_have_attribute("alt", "panda")
    cards.nth(0).click()
    expect(studio.page.locator("#library-title")).to_contain_text("Trigger words: panda")
    expect(studio.page.locator("#library-details")).to_contain_text("short_hash")
    renamed.unlink()


def test_the_form_is_kept_over_a_reload_and_a_dropped_picture_brings_its_settings_back(
    studio: Any, until: Until
) -> None:
    passing = studio.server.home / "loras" / "passing.safetensors"
    shutil.copy(root() / "loras" / "tiny-sdxl" / "lantern.safetensors", passing)
    prompt, method = studio.page.locator("#prompt textarea"), studio.page.locator("#method")
    studio.write("a raccoon in a spacesuit <lora:passing:0.5>")
    studio.page.get_by_role("button", name="Turn tags into rows").click()
    expect(studio.rows).to_have_count(1)
    studio.add("raccoon", "spacesuit")
    studio.method("switch")
    studio.steps(6)
    studio.number("seed", 4242)
    studio.generate()
    studio.state("1 of 1 picture done")
    made = next(
        f for f, r in zip(studio.server.pictures(), studio.server.records(), strict=True) if r["seed"] == 4242
    )

    def stands(*, passing: bool) -> None:
        expect(prompt).to_have_value("a raccoon in a spacesuit")
        expect(studio.rows).to_have_count(3)
        expect(studio.rows.nth(0).get_by_role("checkbox")).to_be_checked(checked=passing)
        expect(method.get_by_role("radio", name="switch")).to_be_checked()
        expect(studio.page.locator("#seed input")).to_have_value("4242")

    passing.unlink()
    studio.open(rows=3)
    stands(passing=False)
    studio.says("LoRA 'passing' is not in the library any more; its row is switched off.")
    studio.page.locator("#clear-form").click()
    expect(studio.rows).to_have_count(0)
    expect(prompt).to_have_value("")
    expect(method.get_by_role("radio", name="merge")).to_be_checked()
    shutil.copy(root() / "loras" / "tiny-sdxl" / "lantern.safetensors", passing)
    studio.tab("Gallery")
    studio.page.locator("#drop input[type=file]").set_input_files(made)
    stands(passing=True)
    before = len(studio.server.pictures())
    studio.generate()
    until(lambda: len(studio.server.pictures()) > before)
    again = studio.server.records()[-1]
    assert (again["seed"], again["steps"], again["composer"]) == (4242, 6, "switch:interval=2")
    assert [use["weight"] for use in again["adapters"]] == [0.5, 1.0, 1.0]
    passing.unlink()


def test_it_fits_the_screen(visitor: Visitor, tmp_path: Path) -> None:
    """Screenshots go to LORA_STUDIO_SHOTS, for whoever wants to look at them."""
    folder = Path(os.environ.get("LORA_STUDIO_SHOTS", tmp_path))
    studio = visitor(width=390, height=844)
    studio.write("a panda wearing a kimono at a castle")
    studio.add("panda", "kimono", "castle")
    for name, width, height, scheme in (
        ("phone", 390, 844, "light"),
        ("desktop", 1366, 900, "light"),
        ("dark", 1366, 900, "dark"),
    ):
        studio.page.set_viewport_size({"width": width, "height": height})
        studio.scheme(scheme)
        assert studio.page.evaluate("document.documentElement.scrollWidth") <= width
        generate = studio.page.locator("#generate").bounding_box()
        assert generate["y"] + generate["height"] <= height  # at hand without scrolling
        studio.page.screenshot(path=folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size > 10_000
