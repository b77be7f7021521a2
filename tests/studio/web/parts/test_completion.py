"""What the page's script completes, as the page holds it."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

from pipelines.text.tags import take_tags
from studio.library.card import Card
from studio.web.parts import words


def entries(html: str) -> list[list[str]]:
    found = re.search(r'data-entries="([^"]*)"', html)
    assert found is not None
    return json.loads(unescape(found[1]))


def test_tags_carry_the_strength_that_the_file_prefers_and_read_back_whatever_the_name() -> None:
    cards = [
        Card("fox", Path("fox.safetensors"), preferred_weight=0.8),
        Card('a "b" <c>: d', Path("x.safetensors")),
    ]
    found = entries(words.lora_completions(cards))
    assert found[0] == ["<lora:fox:0.8>", "fox"]
    [tag] = take_tags(found[1][0])[1]
    assert (tag.name, tag.weight) == ('a "b" <c>: d', 1.0)


def test_synonyms_write_the_word_that_the_model_knows_best() -> None:
    found = entries(words.word_completions({"animal": {"cat": ("kitty",), "fox": ()}}))
    assert found == [["cat", "cat"], ["cat", "kitty"], ["fox", "fox"]]


def test_trigger_words_go_in_once() -> None:
    assert words.with_triggers("a fox", ["ohwx", "Fox"]) == "a fox, ohwx"
    assert words.with_triggers("a fox, ohwx", ["ohwx"]) == "a fox, ohwx"
    assert words.with_triggers("", ["ohwx"]) == "ohwx"
