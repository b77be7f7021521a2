"""The mix as the page edits it: plain functions from rows to rows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipelines.errors import PromptError, RequestError
from studio.web.form import mix
from studio.web.form.mix import MixRow


def rows(*weights: float) -> mix.MixRows:
    return tuple(MixRow(name, weight=weight) for name, weight in zip("abcdef", weights, strict=False))


def test_normalising_scales_what_acts_and_remembers_what_it_was() -> None:
    held = (
        MixRow("a", weight=1.2),
        MixRow("b", weight=0.8, text_weight=0.4),
        MixRow("c", on=False, weight=2.0),
    )
    done = mix.normalised(held)
    assert [row.weight for row in done] == [0.6, 0.4, 2.0]
    assert done[1].text_weight == 0.2
    assert mix.total(done) == 1.0
    assert mix.weights_before(done) == {"a": 1.2, "b": 0.8}


def test_normalising_again_changes_nothing_and_forgets_nothing() -> None:
    once = mix.normalised(rows(1, 1, 1))  # 0.333 each, which is not quite 1
    assert mix.normalised(once) == once
    assert mix.normalised(()) == ()


def test_an_edit_that_changes_the_total_ends_being_normalised() -> None:
    done = mix.normalised(rows(1, 1))
    assert mix.weights_before(mix.moved(done, 0, 1)) == {"a": 1, "b": 1}
    assert mix.weights_before(mix.changed(done, 0, text_weight=0.3)) == {"a": 1, "b": 1}
    assert mix.weights_before(mix.changed(done, 0, weight=0.5)) == {"a": 1, "b": 1}  # the same as it was
    for edited in (
        mix.changed(done, 0, weight=0.7),
        mix.changed(done, 0, on=False),
        mix.removed(done, 0),
        mix.added(done, "c"),
    ):
        assert mix.weights_before(edited) == {}


def test_rows_move_by_one_and_stop_at_the_ends() -> None:
    held = rows(1, 2, 3)
    assert [row.name for row in mix.moved(held, 2, -1)] == ["a", "c", "b"]
    assert mix.moved(held, 0, -1) == mix.moved(held, 2, 1) == held


def test_tags_become_rows_and_leave_the_prompt() -> None:
    prompt, held = mix.taken_from("a fox <lora:b:0.5>, in snow <lora:c:te=0.2:unet=0.9>", rows(1, 1))
    assert prompt == "a fox, in snow"
    assert [(row.name, row.weight, row.text_weight) for row in held] == [
        ("a", 1, None),
        ("b", 0.5, None),
        ("c", 0.9, 0.2),
    ]


def test_a_tag_that_means_nothing_stays_in_the_prompt_and_the_others_become_rows() -> None:
    prompt, held = mix.taken_from("a fox <lora:b:0.5>, <lora:c:1:lbw=nowhere>, <lora:d>, in snow", rows(1, 1))
    assert prompt == "a fox, <lora:c:1:lbw=nowhere>, in snow"
    assert [(row.name, row.weight) for row in held] == [("a", 1), ("b", 0.5), ("d", None)]
    with pytest.raises(PromptError):
        mix.taken_from("<lora:b:x>", ())
    assert mix.has_tags("a <lora:b:lbw=nowhere>")
    assert not mix.has_tags("a <lora:b:x>")


@pytest.mark.parametrize(
    "odd", [":500", ":1e200:lbw=1e200,1,1", ":lbw=mid_block@1e9", f":lbw={'b' * 2000}@1"]
)
def test_a_tag_that_no_request_takes_stays_in_the_prompt(odd: str) -> None:
    prompt, held = mix.taken_from(f"a fox <lora:b{odd}>, <lora:d>, in snow", ())
    assert prompt == f"a fox <lora:b{odd}>, in snow"
    assert [row.name for row in held] == ["d"]


@pytest.mark.parametrize("value", [None, "1", math.nan, math.inf, 101, -1e9, True, [1]])
def test_a_strength_that_is_none_is_refused(value: Any) -> None:
    rows = (MixRow("fox"),)
    with pytest.raises(RequestError, match="weight="):
        mix.changed(rows, 0, weight=value)
    if value is not None:
        with pytest.raises(RequestError, match="text_weight="):
            mix.changed(rows, 0, text_weight=value)


def test_a_mix_has_rows_that_a_page_can_hold() -> None:
    rows = tuple(MixRow(f"a{n}") for n in range(mix.MOST_ROWS))
    with pytest.raises(RequestError, match="200 rows"):
        mix.added(rows, "one more")
