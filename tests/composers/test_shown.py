"""How values stand in messages: short, on one line, and writable by every program."""

from __future__ import annotations

import pytest

from composers.shown import shown


@pytest.mark.parametrize("value", [5, -1, 2.5, None, True, "fox", (1, 2), [1, "a"], {"a": 1}, float("nan")])
def test_small_values_stand_as_python_writes_them(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6, "\ud800\n\0", 10**4000, 1 << 10**6, [[[[[[1]]]]]] * 10**5, {str(n): n for n in range(10**5)},
        [1 << 10**6],
    ],
    ids=["text", "half a character", "number", "huge number", "deep", "wide", "huge inside"],
)  # fmt: skip
def test_others_are_cut_short(value: object) -> None:
    text = shown(value)
    assert len(text.encode()) < 600
    assert text.isprintable()


def test_a_number_too_long_to_be_written_tells_its_length() -> None:
    assert shown(10**5000) == "a number of about 4983 digits"
