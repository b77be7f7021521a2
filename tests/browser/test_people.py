"""Several pictures, several people, interruptions, refusals and accessibility, in a real browser."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

Visitor = Callable[..., Any]
Until = Callable[..., None]
TRIO = ("panda", "kimono", "lantern")


def test_compare_puts_methods_side_by_side_in_one_job(studio: Any) -> None:
    studio.write("a panda wearing a kimono, holding a lantern")
    studio.add(*TRIO)
    studio.steps(4)
    before = len(studio.server.pictures())
    studio.tab("Compare")
    studio.page.locator("#compare").click()
    studio.state("4 of 4 pictures done", "compared")
    records = studio.server.records()[before:]
    assert len({record["seed"] for record in records}) == 1
    assert {record["composer"].partition(":")[0] for record in records} == {
        "merge",
        "switch",
        "composite",
        "cmlora",
    }
    assert all(record["shared"] for record in records)  # one pass for all of them
    expect(studio.page.locator("#ab img").first).to_be_visible()
    studio.page.locator("#leave-one-out").click()
    studio.state("5 of 5 pictures done", "compared")
    expect(studio.page.locator("#compared")).to_contain_text("without kimono")


def test_stop_acts_before_the_next_step_and_nothing_comes_after_it(studio: Any, until: Until) -> None:
    studio.write("a cat in the garden")
    studio.steps(3)
    before = len(studio.server.pictures())
    studio.generate()
    studio.state("1 of 1 picture done")  # kept, whatever is stopped later
    studio.steps(150)
    studio.number("count", 4)
    studio.generate()
    studio.state("running")
    studio.page.locator("#stop").click()
    studio.state("stopped; 0 of 4 pictures finished and kept")
    studio.page.wait_for_timeout(1500)
    assert len(studio.server.pictures()) == before + 1
    studio.steps(3)
    studio.number("count", 1)
    studio.generate()  # the studio goes on with what comes next
    until(lambda: len(studio.server.pictures()) == before + 2)


def test_two_people_with_different_mixes_share_passes_and_see_their_own(
    visitor: Visitor, until: Until
) -> None:
    one, other = visitor(), visitor()
    for person, lora, prompt in (
        (one, "panda", "a panda in the snow"),
        (other, "raccoon", "a raccoon at night"),
    ):
        person.write(prompt)
        person.add(lora)
        person.steps(40)
    before = len(one.server.pictures())
    one.generate()
    other.generate()
    until(lambda: len(one.server.pictures()) >= before + 2, 120)
    records = {record["prompt"]: record for record in one.server.records()[before:]}
    assert [use["name"] for use in records["a panda in the snow"]["adapters"]] == ["panda"]
    assert [use["name"] for use in records["a raccoon at night"]["adapters"]] == ["raccoon"]
    assert all(record["shared"] for record in records.values())
    one.tab("Gallery")
    one.page.locator("#gallery-refresh").click()
    expect(one.shown("gallery")).to_have_count(1)


def test_a_job_is_found_again_after_a_reload(studio: Any) -> None:
    studio.write("a wolf in the snow")
    studio.steps(60)
    studio.generate()
    studio.state("running")
    studio.open()
    studio.state("running")
    studio.state("1 of 1 picture done")


def test_a_queue_goes_on_after_the_server_died(
    visitor: Visitor, until: Until, tmp_path: Path, server: Any
) -> None:
    home = tmp_path / "home"
    shutil.copytree(server.home / "cache" / "web", home / "cache" / "web")
    own = type(server)(home).start()
    try:
        person = visitor(at=own)
        person.write("a lion in the garden")
        person.steps(3)
        person.number("seed", 99)
        person.generate()
        until(lambda: len(own.pictures()) == 1)
        person.steps(40)
        person.number("count", 2)
        person.number("seed", 100)
        person.generate()
        person.state("running")
        person.leave()
        own.stop(signal.SIGKILL)
        assert len(own.pictures()) == 1
        own.start()
        until(lambda: len(own.pictures()) == 3, 300)  # one after the other: the server died with both
        assert sorted(record["seed"] for record in own.records()) == [99, 100, 101]
        person.open()
        person.state("2 of 2 pictures done")  # the browser is known again
        expect(person.page.locator("#prompt textarea")).to_have_value("a lion in the garden")
        person.leave()
    finally:
        own.stop()


def test_what_does_not_fit_or_is_broken_is_said_readably(studio: Any) -> None:
    studio.write("a fox <lora:sd-fox:1>")
    studio.is_refused("'sd-fox' does not fit")
    studio.write("a fox <lora:broken:1>")
    studio.is_refused("broken.safetensors")
    studio.write("a fox <lora:pnda:1>")
    studio.is_refused("did you mean 'panda'")


def _empty(target: str) -> bool:
    """Gradio's own placeholder in a component without a value: a label on a plain box, which nobody can focus."""
    return ".empty" in target


def serious_faults(page: Any) -> dict[str, list[str]]:
    """Rule -> where it is broken."""
    faults = {}
    for fault in Axe().run(page).response["violations"]:
        places = [place for node in fault["nodes"] for place in node["target"] if not _empty(place)]
        if fault["impact"] in ("serious", "critical") and places:
            faults[fault["id"]] = places
    return faults


def test_no_serious_fault_of_accessibility(studio: Any) -> None:
    studio.add("panda", "kimono")
    for page in ("Compose", "Compare", "Library", "Gallery", "B-LoRA", "Frequency"):
        studio.tab(page)
        for scheme in ("light", "dark"):
            studio.scheme(scheme)
            for _ in range(5):  # a page that is just being filled may be half there
                studio.page.wait_for_timeout(400)
                if not (faults := serious_faults(studio.page)):
                    break
            assert faults == {}, f"{page}, {scheme}: {json.dumps(faults, indent=1)}"
