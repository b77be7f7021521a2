"""B-LoRA: which adapter gets which part, at which strength, and what is refused."""

from __future__ import annotations

import pytest

from composers import BLora, ComposerError, Mix, Step, Use, parse, spell

STEP = Step(0, 10, 5.0)


def lane_uses(method: BLora, *uses: Use) -> dict[str, Use]:
    mix = Mix(uses)
    lanes = method.resolved(mix, 10).plan(STEP, mix).lanes
    assert [lane.prompt.role for lane in lanes] == ["positive", "negative"]
    assert all(lane.prompt.text_uses == () for lane in lanes), "B-LoRA leaves the text encoder alone"
    return {use.adapter: use for use in lanes[0].uses}


def test_each_adapter_is_confined_to_its_part() -> None:
    uses = lane_uses(BLora(content="cat", style="ink"), Use("ink", 0.7), Use("cat", 0.9))
    assert uses["cat"].blocks == (("@content", 1.0),)
    assert uses["ink"].blocks == (("@style", 1.0),)
    assert (uses["cat"].weight, uses["ink"].weight) == (0.9, 0.7)


def test_parts_without_a_name_are_taken_in_order() -> None:
    mix = Mix((Use("a"), Use("b")))
    assert BLora().resolved(mix, 10) == BLora(content="a", style="b")
    assert BLora(style="A").resolved(mix, 10) == BLora(content="b", style="a")
    assert BLora().resolved(Mix((Use("a"),)), 10) == BLora(content="a")
    assert BLora(style="a").resolved(Mix((Use("a"),)), 10) == BLora(style="a")


@pytest.mark.parametrize(("part", "block"), [("content", "@content"), ("style", "@style")])
def test_either_part_alone(part: str, block: str) -> None:
    uses = lane_uses(BLora(**{part: "a"}), Use("a"))
    assert uses["a"].blocks == ((block, 1.0),)


def test_one_adapter_may_be_both() -> None:
    uses = lane_uses(BLora(content="a", style="a"), Use("a"))
    assert uses["a"].blocks == (("@content", 1.0), ("@style", 1.0))


@pytest.mark.parametrize(("weight", "square"), [(0.5, 0.25), (1.0, 1.0), (1.1, 1.21)])
def test_the_release_squares_strengths(weight: float, square: float) -> None:
    for mode, strength in (("linear", weight), ("square", square)):
        uses = lane_uses(BLora(content="a", style="b", alpha_mode=mode), Use("a", weight), Use("b", weight))
        assert [use.weight for use in uses.values()] == pytest.approx([strength] * 2)


def test_blocks_of_a_use_win_and_preparing_twice_changes_nothing() -> None:
    method = BLora(content="a", style="b")
    given = (Use("a", blocks=(("up_blocks.0", 0.5),)), Use("b", text_weight=0.4))
    once = method.prepared(given)
    assert once[0].blocks == (("up_blocks.0", 0.5),)
    assert [use.text_weight for use in once] == [0.0, 0.0]
    assert method.prepared(once) == once


@pytest.mark.parametrize(
    ("method", "names", "message"),
    [
        (BLora(content="dog"), "ab", "content='dog' is not in the mix \\(a, b\\)"),
        (BLora(style="dog"), "ab", "style='dog' is not in the mix"),
        (BLora(content="a", style="a"), "ab", "'b' is neither the content nor the style"),
        (BLora(), "abc", "1 to 2 adapters"),
        (BLora(), "", "1 to 2 adapters"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(method: BLora, names: str, message: str) -> None:
    with pytest.raises(ComposerError, match=message):
        method.resolved(Mix(tuple(Use(name) for name in names)), 10)


def test_settings_are_checked() -> None:
    with pytest.raises(ComposerError, match="linear, square"):
        BLora(alpha_mode="cube")  # type: ignore[arg-type]
    with pytest.raises(ComposerError, match="must be an adapter's name"):
        BLora(content=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["fox", "a,b", "007", "folder/fox", "true", "a\\b", "a\\", "a\\\\", "a\\,b,\\\\,", "a=b"]
)
def test_any_name_survives_as_text(name: str) -> None:
    method = BLora(content=name, style="b")
    assert parse(spell(method)) == method
