"""Prompt editing, alternation and AND: what is said at each step, as A1111's web UI says it."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from pipelines.errors import PromptError
from pipelines.record import _never_on
from pipelines.text.editing import DEEPEST, MOST_TEXTS, escaped, parts_of, pieces_of, remarks, wording
from pipelines.text.tags import sift_tags, take_tags


def said(prompt: str, count: int = 10) -> list[tuple[int, str]]:
    """(first step, text) wherever the text of a prompt without AND changes."""
    found = wording(prompt, None, count)
    texts = [found.texts[place] for ((place, _),) in found.positive]
    return [(index, text or "") for index, text in enumerate(texts) if index == 0 or texts[index - 1] != text]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [(0, "test")]),
        ("a [b:3]", [(0, "a "), (4, "a b")]),
        ("a [b: 3]", [(0, "a "), (4, "a b")]),
        ("a [b:.5] c", [(0, "a  c"), (6, "a b c")]),
        ("a [b::0.5] c", [(0, "a b c"), (6, "a  c")]),
        ("[b:c:0.25]", [(0, "b"), (3, "c")]),
        ("[b:c:0.05]", [(0, "c")]),  # the whole step below it is 0
        ("[b:c:0]", [(0, "c")]),
        ("[b:c:-1]", [(0, "c")]),
        ("[b:c:1]", [(0, "b"), (2, "c")]),  # a step
        ("[b:c:1.0]", [(0, "b")]),  # the end of the run
        ("[b:c:99]", [(0, "b")]),
        ("[b:c:1e9]", [(0, "b")]),
        ("a [[[b]]:2]", [(0, "a "), (3, "a [[b]]")]),
        ("[(a:2):3]", [(0, ""), (4, "(a:2)")]),
        ("a [b : c : 1] d", [(0, "a b  d"), (2, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(0, "abe"), (2, "ace"), (3, "ade")]),
        ("((a][:b:c [d:3]", [(0, "((a][:b:c "), (4, "((a][:b:c d")]),
        ("[embedding:e-f:0.5] a", [(0, " a"), (6, "embedding:e-f a")]),
        ("[embedding:e:cat:0.5]", [(0, "embedding:e"), (6, "cat")]),
        ("[(Embedding:x/e:1.2)::2]", [(0, "(Embedding:x/e:1.2)"), (3, "")]),
        ("[embedding:0.5]", [(0, ""), (6, "embedding")]),  # the word itself
        ("[fox:embedding:0.5]", [(0, "fox"), (6, "embedding")]),
        ("(a [b:c:5]:1.2)", [(0, "(a b:1.2)"), (6, "(a c:1.2)")]),
    ],
)
def test_an_edit_changes_the_text_when_a1111_does(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert said(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("[a|b]", "aababab"),
        ("[a|b|c]", "aabcabc"),
        ("[fe|]x", ["fex", "fex", "x", "fex", "x", "fex", "x"]),
        ("[a|[b|c]]", "aacacac"),
    ],
)
def test_an_alternation_begins_with_its_first_text_for_two_steps(prompt: str, texts: str | list[str]) -> None:
    found = wording(prompt, None, 7)
    assert [found.texts[place] for ((place, _),) in found.positive] == list(texts)


@pytest.mark.parametrize(
    "prompt",
    ["a [unbalanced", "[fox]", "(fox:1.3)", "[a:b]", "[a:b|c:0.5]", "[a:b:c:0.5]",
     r"\[a:b:0.5\]", r"[a\:b\:0.5]", r"[a\|b]", "a] b:5"]
)  # fmt: skip
def test_what_is_no_edit_stays_as_it_stands(prompt: str) -> None:
    assert said(prompt) == [(0, prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", [("a fox", 1.0)]),
        ("a clock at 10:30", [("a clock at 10:30", 1.0)]),  # without AND a number at the end is a word
        ("a AND b", [("a", 1.0), ("b", 1.0)]),
        ("a AND b :1.2", [("a", 1.0), ("b", 1.2)]),
        ("a:0.7 AND (b:1.3) AND c : -.5", [("a", 0.7), ("(b:1.3)", 1.0), ("c", -0.5)]),
        ("a AND b:0", [("a", 1.0)]),
        ("a AND ", [("a", 1.0), ("", 1.0)]),
        ("sAND and BAND", [("sAND and BAND", 1.0)]),
    ],
)
def test_and_joins_prompts_with_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert list(parts_of(prompt)) == expected


def test_parts_and_edits_go_together_and_equal_texts_are_one() -> None:
    found = wording("a AND [b:a:0.5] :0.5", "[x:y:2]", 4)
    assert found.texts == ("a", "b", "x", "y")
    assert found.positive == (((0, 1.0), (1, 0.5)),) * 3 + (((0, 1.0), (0, 0.5)),)
    assert found.negative == (2, 2, 2, 3)


def test_a_negative_prompt_knows_no_and_and_may_be_missing() -> None:
    assert wording("a", "b AND c", 1).texts == ("a", "b AND c")
    assert wording("a", None, 1).texts == ("a", None)


@pytest.mark.parametrize(
    ("prompt", "count", "says"),
    [
        ("".join(f"[a|b{place}]" for place in range(9)) + "|".join(["[", *map(str, range(70)), "]"]), 1000, "64"),
        ("[" * (DEEPEST + 1) + "a", 1, "brackets"),
        ("a AND b:101", 1, "101"),
        ("a:0 AND b:0", 1, "weight 0"),
    ],
)  # fmt: skip
def test_what_has_no_bound_is_refused(prompt: str, count: int, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        wording(prompt, None, count)


def test_many_texts_are_said_up_to_the_bound() -> None:
    texts = "|".join(map(str, range(MOST_TEXTS)))
    assert len(wording(f"[{texts}]", "0", 1000).texts) == MOST_TEXTS


def test_pieces_put_together_are_the_prompt() -> None:
    for prompt in ("a [b (c] d) e", "((a][:b:c", "[a|b", "[a:b", "]", ""):
        assert "".join(map(str, pieces_of(prompt))) == prompt


@pytest.mark.parametrize(
    ("prompt", "text", "points"),
    [
        ("[<lora:x:1>:0.5] fox", "fox", ((0, 0), (0.5000001, 1))),
        ("a [<lora:x:1>::5], b", "a, b", ((6, 0),)),
        ("(fox [in <lora:x:0.7> snow:0.4]:1.2)", "(fox [in snow:0.4]:1.2)", ((0, 0), (0.4000001, 1))),
        ("[[<lora:x:1>::0.8]:0.2] q", "q", ((0, 0), (0.2000001, 1), (0.8000001, 0))),
        ("[fox:<lora:x:1>:1.0]", "[fox::1.0]", ((0, 0),)),  # after the end
        (f"a [<lora:x:1>:{'9' * 400}]", "a", ((0, 0),)),  # a step that no run reaches
        ("[fox|<lora:x:1>]", "[fox|]", ()),  # throughout, as in A1111
        ("[fox] <lora:x:1>", "[fox]", ()),
    ],
)
def test_a_tag_within_an_edit_is_on_while_its_words_stand(
    prompt: str, text: str, points: tuple[tuple[float, float], ...]
) -> None:
    kept, (tag,) = take_tags(prompt)
    assert kept == text
    assert [start for start, _ in tag.points] == pytest.approx([start for start, _ in points])
    assert [factor for _, factor in tag.points] == [factor for _, factor in points]
    assert tag.use().text_scheduled == bool(points)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("[<lora:x:1>:1.0] fox", 1),
        ("[<lora:x:1>:50] fox", 1),
        ("[<lora:x:1>:4] fox", 0),
        ("<lora:x:1> fox", 0),
    ],
)
def test_a_lora_that_never_acts_is_told(prompt: str, told: int) -> None:
    _, tags = take_tags(prompt)
    assert [note[:21] for note in _never_on([tag.use() for tag in tags], 6)] == [
        "LoRA 'x' never acts: "
    ] * told


def test_a_tag_with_moments_of_its_own_is_refused_within_an_edit() -> None:
    prompt = "[<lora:x:1:start=0.2>:0.5] fox"
    with pytest.raises(PromptError, match="moments of its own"):
        take_tags(prompt)
    _, _, unread = sift_tags(prompt)
    assert "moments of its own" in unread[0]


def test_edits_that_count_differently_cannot_hold_one_tag() -> None:
    with pytest.raises(PromptError, match="same way"):
        take_tags("[[<lora:x:1>::5]:0.2] fox")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox, (red:1.2), 10:30", "a fox, (red:1.2), 10:30"),
        ("[a:b:0.5] [c|[d::3]] e AND f", r"[a\:b\:0.5] [c\|[d\:\:3]] e and f"),
        ("[a:b|c:0.5]", "[a:b|c:0.5]"),
    ],
)
def test_an_escaped_prompt_is_words_alone(prompt: str, expected: str) -> None:
    assert escaped(prompt) == expected
    assert said(escaped(prompt)) == [(0, expected)]


@pytest.mark.parametrize(
    ("prompt", "remark"),
    [
        ("a [fox:1.3]", "'fox' never comes: 1.3"),
        ("a [[fox:hat:2.5]:3]", "'hat' never comes: 2.5"),
        ("a fox [cat:25]", "'cat' never comes: it would after step 25, and the last of the 10 steps is 9"),
        ("[fox:cat:11]", "'cat' never comes"),
        (f"[fox:cat:{'9' * 400}]", "'cat' never comes"),
        ("[fox:cat:9]", "'cat' never comes"),
        ("[a:b|c:0.5]", "drawn as words"),
        ("[a:b:c:0.5]", "drawn as words"),
        ("a [fox:cat:0.5", "'[fox:cat:0.5' is not closed"),
        ("a [x] and [fox|cat", "'[fox|cat' is not closed"),
    ],
)
def test_what_might_surprise_is_told(prompt: str, remark: str) -> None:
    (found,) = remarks(prompt, 10)
    assert remark in found


@pytest.mark.parametrize(
    "prompt",
    ["[fox]", "[a:b:0.5] [c|d]", "a [unbalanced: x", r"[a\|b]", "(a|b:1.2)", "[a:b]", "[embedding:a:b]"],
)
def test_nothing_is_told_of_what_is_plain(prompt: str) -> None:
    assert remarks(prompt, 10) == ()


def test_the_time_grows_with_the_length_alone() -> None:
    """Eight times the text takes about eight times as long, and far from 64 times."""

    def seconds(text: str) -> float:
        began = time.process_time()
        remarks(text, 20)
        escaped(text)
        sift_tags(f"{text}<lora:x:1>")
        with suppress(PromptError):
            wording(text, text, 20)
        return time.process_time() - began

    for part in (
        "[a:",
        "a:",
        "[",
        "]",
        "[a|",
        "(",
        "[:1]",
        "[a:b:c:1]",
        "embedding: ",
        "\\\\:",
        "<a:",
        " AND ",
    ):
        nested = part in ("[a:", "[", "[a|", "(")
        prompt = "[" + part * (88 if nested else 19_000 // len(part))
        short = prompt[: len(prompt) // 8]
        limit = 0.05 + 25 * min(seconds(short) for _ in range(3))
        assert min(seconds(prompt) for _ in range(3)) < limit, part
