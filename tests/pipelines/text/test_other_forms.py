"""What other programs would do, and is drawn as words here, is told."""

from __future__ import annotations

import time

import pytest

from pipelines.text.other_forms import other_forms


@pytest.mark.parametrize(
    ("prompt", "piece"),
    [
        ("a ((fox)1.3)", ")1.3"),
        ("(fox)1.3, snow", ")1.3"),
        ("(fox:1,3)", ":1,3)"),
        ("a \uff08red:1.3\uff09 fox", "\uff08red:1.3\uff09"),
        ("a fox++ in snow", "fox++"),
        ("a {red|blue} fox", "{red|blue}"),
        ("a __animal/cats__", "__animal/cats__"),
        ("a fox AND_PERP a cat", "AND_PERP"),
        ("a <ti:x:1> fox", "<ti:x:1>"),
        ("a <lora x:0.8> fox", "<lora x:0.8>"),
        ("<nilo-style>", "<nilo-style>"),
    ],
)
def test_a_form_of_another_program_is_named(prompt: str, piece: str) -> None:
    [note] = other_forms(prompt, None)
    assert repr(piece) in note
    [note] = other_forms("a fox", prompt)
    assert "in the negative prompt" in note
    assert repr(piece) in note


@pytest.mark.parametrize(
    "prompt",
    [
        "a fox, (red:1.3) [snow] BREAK [a:b:0.5] [a|b] AND cat :1.2",
        r"C++, a -- b, :) <3 \(x\)1.5 a_b __ x__y",
        "f/1.8, 35mm, 1,000 stars (2020), v1.5",
    ],
)
def test_nothing_is_told_of_what_is_plain(prompt: str) -> None:
    assert other_forms(prompt, None) == ()


def test_a_negative_prompt_knows_no_and() -> None:
    assert other_forms("a AND b", "c AND d") == ("a negative prompt knows no AND: it is drawn as the word",)


def test_many_are_told_in_one_short_note_and_soon() -> None:
    began = time.process_time()
    for part in ("{a|b} ", "{", "<", "__", "\uff08", "x++ ", ")1", "w" * 900 + " "):
        notes = other_forms((part * 20_000)[:20_000], (part * 20_000)[:20_000])
        assert all(len(note) < 800 for note in notes)
    assert time.process_time() - began < 5
