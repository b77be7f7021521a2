"""Which of a prompt's words a small model does not know, and the record's word on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines import Request, StudioPipeline
from pipelines.checkpoints.card import ModelCard
from pipelines.text.vocabulary import MOST_TOLD, unknown

from ...budget import cheap

WORDS = {"character": {"fox": ("vixen",), "owl": ()}, "background": {"snowy forest": ()}}


def test_words_synonyms_plurals_and_numbers_are_known() -> None:
    assert unknown("Two vixen and 3 owls in the snowy Forest", WORDS) == {"two": ""}


def test_an_unknown_word_comes_with_its_nearest() -> None:
    assert unknown("a foxx <lora:x:1> holding a sword", WORDS) == {"foxx": "fox", "sword": ""}
    assert unknown("a nilo fox", WORDS, triggers=("nilo fox",)) == {}
    assert unknown("anything at all", {}) == {}


def test_the_record_lists_them_and_the_render_goes_on(
    sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    request = Request("a dragon, a foxx", seed=1, steps=1)
    assert pipe(request).records[0].notes == ()  # a model without a vocabulary knows all
    card = ModelCard(vocabulary={key: dict(words) for key, words in WORDS.items()})
    pipe.model.checkpoint = replace(pipe.model.checkpoint, card=card, label="small")
    assert pipe(request).records[0].notes == ("small does not know these words: dragon, foxx (nearest: fox)",)


def test_a_text_in_another_language_is_not_looked_up_word_by_word() -> None:
    many = {f"word{n}{n * 7}": () for n in range(500)}
    with cheap():
        found = unknown(
            " ".join(f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}mot" for n in range(4000)), {"c": many}
        )
        assert len(found) == MOST_TOLD
        assert list(unknown("a" * 1_000_000, {"c": many})) == ["a" * 1000]
