"""The testbed: sets counted as the paper counts them, honest statistics, and runs that resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from composers import Merge, methods
from pipelines.errors import RequestError, SetupError
from pipelines.home import Home
from studio.bench.quality.advice import as_text as advice_text
from studio.bench.quality.advice import rank
from studio.bench.quality.cells import CellPlan, part_of
from studio.bench.quality.drawing import Shot
from studio.bench.quality.elements import MIXED, NARROW, NEW, Composition, Element, compositions, spread
from studio.bench.quality.eyes import clip_eye, world_eye
from studio.bench.quality.measures import TRUE, WRONG, Eyes, Scored, Scores, bounds
from studio.bench.quality.methods import default_methods, read_method
from studio.bench.quality.references import shipped_references, wrong_for
from studio.bench.quality.results import as_text, rows_of
from studio.bench.quality.sets import Suite, library_suite, read_suite, set_file
from studio.bench.quality.statistics import against, mean

CPU = torch.device("cpu")


def element(name: str, category: str, kind: str = "") -> Element:
    return Element(name, name, category, name, kind=kind)


def mix(*names: str) -> Composition:
    return Composition(tuple(element(name, name.split("-")[0]) for name in names))


# -- sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["anime", "reality"])
def test_composlora_is_counted_as_in_the_paper(style: str, home: Path) -> None:
    suite = read_suite(set_file(f"composlora-{style}"), Home.resolve(home))
    assert [len(compositions(suite.elements, size)) for size in (2, 3, 4, 5)] == [24, 72, 96, 48]
    first = compositions(suite.elements, 5)[0]
    assert [one.category for one in first.elements] == [
        "character",
        "clothing",
        "style",
        "background",
        "object",
    ]
    assert all(one.weight == 0.8 for one in suite.elements)


def test_composlora_prompts_are_the_releases(home: Path) -> None:
    suite = read_suite(set_file("composlora-anime"), Home.resolve(home))
    prompts = [suite.prompt_of(one.words) for one in compositions(suite.elements, 2)]
    assert prompts[0] == (
        "masterpiece, best quality, kamado nezuko, black hair, pink eyes, forehead, gmuniform, blue thighhighs, "
        "long sleeves"
    )
    assert suite.settings["steps"] == 200
    assert (suite.settings["width"], suite.settings["height"]) == (512, 512)


def test_without_a_character_every_category_may_be_left_out() -> None:
    elements = [element("style-a", "style"), element("style-b", "style"), element("object-a", "object")]
    names = [one.name for one in compositions(elements, 2)]
    assert names == ["style-a + object-a", "style-b + object-a"]
    assert compositions(elements, 3) == []


def test_the_embedded_adapters_make_two_kinds_and_mixed_ones(home: Path) -> None:
    suite = library_suite(Home.resolve(home), "tiny-sdxl")
    made = suite.compositions((2, 3, 4, 5))
    assert {one.kind for one in made} >= {NEW, NARROW, MIXED, "b-lora"}
    assert all(len({one.kind == "b-lora" for one in composition.elements}) == 1 for composition in made), (
        "B-LoRAs are made for one another"
    )
    assert len({one.name for one in made}) == len(made)


def test_a_limit_is_spread_evenly() -> None:
    items = [mix(f"character-{n}") for n in range(10)]
    assert [items.index(one) for one in spread(items, 2)] == [2, 7]
    assert spread(items, None) == items


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("elements: {style: [{adaptor: a}]}", "must name its adapter"),
        ("elements: {style: [{adapter: a, word: b}]}", "did you mean 'words'"),
        ("elements: {style: [{adapter: a, words: b, weight: x}]}", "must be a number"),
        ("element: {}", "must say elements"),
        ("elements: {}\nprompts: a", "did you mean 'prompt'"),
        ("elements: [", "cannot be read as YAML"),
    ],
)
def test_faulty_sets_name_the_place(text: str, said: str, tmp_path: Path, home: Path) -> None:
    file = tmp_path / "set.yaml"
    file.write_text(text)
    with pytest.raises((RequestError, SetupError), match=said):
        read_suite(file, Home.resolve(home))


def test_an_unknown_set_names_those_that_ship() -> None:
    with pytest.raises(SetupError, match="composlora-anime"):
        set_file("composlora-anim")


# -- methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["none", "merge", "merge@0.8", "switch:interval=3^style", "composite@0.5"])
def test_methods_are_read_as_they_are_written(text: str) -> None:
    assert read_method(text).label == text


@pytest.mark.parametrize("text", ["merge@x", "merge@0", "none@0.5", "", "morge", "switch:intervall=3"])
def test_methods_that_cannot_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"method|setting"):
        read_method(text)


def test_a_method_added_later_joins_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newcomer(Merge):
        name = "newcomer"

    known = {**methods(), "newcomer": Newcomer}
    monkeypatch.setattr("studio.bench.quality.methods.methods", lambda: known)
    monkeypatch.setattr("composers.registry.methods", lambda: known)
    assert "newcomer" in [method.label for method in default_methods(["new word"])]
    assert {method.family for method in default_methods(["b-lora"])} >= {*known, "none"}


def test_who_leads_changes_the_mix_and_not_the_prompt() -> None:
    composition = mix("character-a", "style-b")
    plan = CellPlan(Suite("x", composition.elements), (composition,), (), (1,))
    cells = [
        CellPlan(plan.suite, (composition,), (read_method(text),), (1,)).cells[0]
        for text in ("switch", "switch^style")
    ]
    jobs = [plan.job(cell) for cell in cells]
    assert jobs[0]["prompt"] == jobs[1]["prompt"] == "character-a, style-b"
    assert [one["adapter"] for one in jobs[1]["adapters"]] == ["style-b", "character-a"]
    assert jobs[0]["name"] != jobs[1]["name"]
    assert not read_method("switch^object").suits(composition)


def test_parts_are_all_cells_once() -> None:
    compositions = tuple(mix("character-a", f"style-{n}") for n in range(7))
    plan = CellPlan(Suite("x", ()), compositions, (read_method("merge"),), (1, 2))
    parts = [cell for number in (1, 2, 3) for cell in part_of(plan.cells, number, 3)]
    assert sorted(map(repr, parts)) == sorted(map(repr, plan.cells))
    names = [plan.job(cell)["name"] + str(cell.seed) for cell in [*plan.cells, *plan.singles]]
    assert len(set(names)) == len(names)


# -- statistics ------------------------------------------------------------------------------------------


def scored(method: str, values: dict[tuple[int, int], float]) -> list[Scored]:
    """(composition, seed) -> presence."""
    shot = Shot(Path("x.png"), 40, 0, 0.1, method, "cpu", "float32")
    return [
        Scored(mix("character-a", f"style-{number}"), method, seed, Scores(presence=value), shot)
        for (number, seed), value in values.items()
    ]


def test_the_error_is_of_compositions_not_of_pictures() -> None:
    rows = scored("merge", {(c, s): float(c) for c in (0, 1) for s in range(100)})
    found = mean(rows, "presence")
    assert found is not None
    assert (found.value, found.error, found.pictures) == (0.5, pytest.approx(0.5), 200)
    assert mean(rows, "clip") is None


def test_wins_ties_losses_are_of_pairs() -> None:
    base = scored("merge", {(c, s): 0.5 for c in range(8) for s in (1, 2)})
    own = scored(
        "switch", {(c, s): 1.0 if c < 4 else 0.5 if c < 6 else 0.0 for c in range(8) for s in (1, 2)}
    )
    found = against(own, base, "presence")
    assert found is not None
    assert (found.wins, found.ties, found.losses) == (0.5, 0.25, 0.25)
    assert found.difference[0] == pytest.approx(0.125)
    assert found.difference[1] < 0 < found.difference[2]
    assert found.verdict == ""
    assert found == against(own, base, "presence")  # drawn from a fixed seed
    assert against(scored("x", {(99, 1): 1.0}), base, "presence") is None


def test_the_bootstrap_covers_the_truth() -> None:
    """Of intervals for the mean of a known population about 95 % hold it (percentile intervals a little fewer)."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        base = scored("merge", {(c, 1): 0.0 for c in range(30)})
        own = scored("other", {(c, 1): float(rng.normal(0.3, 1.0)) for c in range(30)})
        found = against(own, base, "presence")
        assert found is not None
        hits += found.difference[1] <= 0.3 <= found.difference[2]
    assert 0.88 <= hits / 200 <= 0.99


def test_a_clear_winner_is_marked_in_the_table() -> None:
    rows = scored("merge", {(c, 1): 0.25 for c in range(5)}) + scored(
        "switch", {(c, 1): 0.75 for c in range(5)}
    )
    text = as_text(rows_of(rows))
    assert "▲" in text
    assert text.index("switch") < text.index("merge  ")


def test_advice_says_when_it_cannot_tell() -> None:
    rng = np.random.default_rng(1)
    rows = scored("merge", {(0, s): 0.9 + 0.05 * rng.standard_normal() for s in range(8)})
    rows += scored("composite", {(0, s): 0.9 + 0.05 * rng.standard_normal() for s in range(8)})
    rows += scored("switch", {(0, s): 0.1 + 0.05 * rng.standard_normal() for s in range(8)})
    ranking = rank(rows)
    assert ranking[-1].method == "switch"
    assert [one.level for one in ranking] == [True, True, False]
    assert ranking[0].behind == (0.0, 0.0, 0.0)
    assert "No clear difference" in advice_text(ranking)
    assert "is ahead of all others" in advice_text([ranking[0], ranking[-1]])


# -- scores ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    suite = library_suite(Home(Path("nowhere")), "tiny-sdxl")
    pure = [one for one in suite.compositions((2, 3, 4, 5), 4) if one.kind in (NEW, NARROW)]
    return Eyes(world_eye(CPU), clip_eye("embedded", CPU), shipped_references(pure))


def test_true_renders_bound_the_scores_from_above_and_wrong_ones_from_below(eyes: Eyes) -> None:
    suite = library_suite(Home(Path("nowhere")), "tiny-sdxl")
    pure = [one for one in suite.compositions((2, 3, 4, 5), 4) if one.kind in (NEW, NARROW)]
    found = bounds(pure, eyes)
    true = {
        name: mean([row for row in found if row.method == TRUE], name)
        for name in ("presence", "clip", "fidelity")
    }
    wrong = {name: mean([row for row in found if row.method == WRONG], name) for name in true}
    for name, upper in true.items():
        lower = wrong[name]
        assert upper is not None
        assert lower is not None
        assert upper.value > lower.value, name
    assert true["presence"] is not None
    assert true["presence"].value >= 0.95
    assert wrong["presence"] is not None
    assert wrong["presence"].value <= 0.5


def test_every_pure_composition_has_its_true_renders() -> None:
    suite = library_suite(Home(Path("nowhere")), "tiny-sdxl")
    pure = [one for one in suite.compositions((2, 3, 4, 5)) if one.kind in (NEW, NARROW)]
    references = shipped_references(pure)
    assert all(len(references.of(one)) == 2 for one in pure)
    assert references.of(mix("character-x", "style-y")) == []


def test_the_wrong_composition_shares_as_little_as_can_be() -> None:
    a = mix("character-a", "style-a")
    others = [mix("character-a", "style-b"), mix("character-b", "style-b"), mix("character-b", "style-a")]
    assert wrong_for(a, [a, *others]) == others[1]
    assert wrong_for(a, [a]) is None


def test_a_clip_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(SetupError, match="ARCHITECTURE:WEIGHTS"):
        clip_eye("ViT-B-16", CPU)
    with pytest.raises(SetupError, match="--clip none"):
        clip_eye("ViT-B-16:nowhere", CPU)


# -- the commands ----------------------------------------------------------------------------------------

SET = """
name: three
elements:
  character: [{adapter: fox, words: [fox, red fur]}]
  clothing: [{adapter: hat, weight: 0.7, words: hat}]
  style: [{adapter: ink, words: ink}]
"""


@pytest.fixture
def quality(
    run: Callable[..., Any], loras: Path, sdxl_folder: Path, make_lora: Callable[..., Path], tmp_path: Path
):
    """run("bench quality" or "advise") on a user's folder: a random model and three adapters."""
    shutil.copy(make_lora(sdxl_folder, "ink", seed=3), loras)
    (tmp_path / "three.yaml").write_text(SET)
    common = ("--model-dir", sdxl_folder.parent, "--model", sdxl_folder.name, "--clip", "embedded")
    small = ("--steps", 4, "--width", 32, "--height", 32, "--device", "cpu")

    def call(*words: object) -> Any:
        return run(*words, *common, *small)

    return call


def test_a_users_folder_is_compared_resumed_and_reported(quality: Callable[..., Any], tmp_path: Path) -> None:
    asked = (
        "bench",
        "quality",
        "--set",
        tmp_path / "three.yaml",
        "--out",
        tmp_path / "out",
        "--seeds",
        "1-2",
    )
    chosen = ("--method", "none", "--method", "switch", "--method", "composite@0.5")
    for part in ("1/2", "2/2"):
        done = quality(*asked, *chosen, "--part", part)
        assert done.code == 0, done.err
    manifests = sorted((tmp_path / "out").glob("pictures-*/manifest.jsonl"))
    before = [file.read_bytes() for file in manifests]
    done = quality(*asked, *chosen)
    assert done.code == 0, done.err
    assert [file.read_bytes() for file in manifests] == before  # nothing was drawn again
    assert not (tmp_path / "out" / "pictures").exists()
    said = json.loads((tmp_path / "out" / "results.json").read_text())
    assert said["about"]["methods"] == ["merge", "none", "switch", "composite@0.5"]
    assert len(said["pictures"]) == 3 * 4 * 2  # k = 2: two mixes, k = 3: one; methods; seeds
    assert {row["size"] for row in said["rows"]} == {None, 2, 3}
    assert all(one["presence"] is None and one["clip"] is not None for one in said["pictures"])
    assert all(-1 <= one["identity"] <= 1.001 for one in said["pictures"])
    rows = {row["method"]: row for row in said["rows"] if row["size"] == 3}
    assert rows["merge"]["rows"] == [8, 0]
    assert rows["composite@0.5"]["rows"] == [24, 0]
    page = (tmp_path / "out" / "quality.html").read_text()
    assert "fox + hat + ink" in page
    assert page.count("<img") == 3 * 4 + 2  # pictures and figures
    assert "composite@0.5" in done.out
    refused = quality(*asked, *chosen, "--guidance", 2)
    assert refused.code == 2
    assert "other settings" in refused.err


def test_a_method_joins_a_comparison_without_drawing_the_others_again(
    quality: Callable[..., Any], tmp_path: Path
) -> None:
    asked = (
        "bench",
        "quality",
        "--set",
        tmp_path / "three.yaml",
        "--k",
        3,
        "--seeds",
        1,
        "--out",
        tmp_path / "out",
    )
    assert quality(*asked, "--method", "merge").code == 0
    done = quality(*asked, "--method", "merge", "--method", "switch")
    assert "1 picture in" in done.err
    assert len((tmp_path / "out/pictures/manifest.jsonl").read_text().splitlines()) == 3 + 2


def test_advice_for_a_mix_of_three(quality: Callable[..., Any], tmp_path: Path) -> None:
    asked = (
        "advise",
        "--lora",
        "fox=0.5",
        "--lora",
        "hat",
        "--lora",
        "ink",
        "--prompt",
        "a fox in a hat, ink",
    )
    done = quality(
        *asked,
        "--seeds",
        "1-2",
        "--method",
        "merge",
        "--method",
        "composite",
        "--out",
        tmp_path / "a",
        "--json",
    )
    assert done.code == 0, done.err
    ranking, _, file = done.out.rpartition("]")
    assert {one["method"] for one in json.loads(ranking + "]")} == {"merge", "composite"}
    with Image.open(file.strip()) as sheet:
        assert sheet.width > 2 * 32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("advise", "--lora", "fox"), "two or more LoRAs"),
        (("bench", "quality", "--lora", "fox"), "two are needed"),
        (("bench", "quality", "--lora", "fox", "--lora", "hat", "--k", "4"), "no composition of 4"),
        (("bench", "quality", "--lora", "fox", "--lora", "hat", "--part", "3/2"), "--part"),
        (("bench", "quality", "--lora", "fox", "--lora", "hat", "--judge", "http://x"), "--judge-model"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: tuple[str, ...], said: str, quality: Callable[..., Any]
) -> None:
    done = quality(*words)
    assert done.code == 2
    assert said in done.err
