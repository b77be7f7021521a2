"""Prompt syntax and adapter tags, from tables; what A1111 does with a bracket was read off its behaviour."""

import itertools
from contextlib import suppress
from typing import Any

import pytest

from composers.plan import Schedule, Use
from pipelines.errors import PromptError
from pipelines.text.prompt import LoraTag, parse, take_tags, write_tag
from pipelines.text.tags import sift_tags

from ...budget import cheap

W, S = 1 / 1.1, 1.1


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("", []),
        ("a fox", [("a fox", 1)]),
        ("a (fox)", [("a ", 1), ("fox", S)]),
        ("((fox))", [("fox", S * S)]),
        ("(fox:1.5)", [("fox", 1.5)]),
        ("(fox:.5)", [("fox", 0.5)]),
        ("(fox:2.)", [("fox", 2)]),
        ("(fox:-1)", [("fox", -1)]),
        ("(fox : 1.2 )", [("fox ", 1.2)]),
        ("[fox]", [("fox", W)]),
        ("[[fox]]", [("fox", W * W)]),
        ("[fox:1.3]", [("fox:1.3", W)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3), (" c", 1.5)]),
        ("([fox])", [("fox", W * S)]),
        ("(a)(b)", [("ab", S)]),
        ("(fox:1)", [("fox", 1)]),
        ("()", []),
        # brackets that do not pair
        ("a (b", [("a ", 1), ("b", S)]),
        ("a ((b) c", [("a ", 1), ("b", S * S), (" c", S)]),
        ("a [b", [("a ", 1), ("b", W)]),
        ("a) b", [("a) b", 1)]),
        ("a] b", [("a] b", 1)]),
        ("a:1.3) b", [("a:1.3) b", 1)]),
        ("(a [b) c]", [("a ", S), ("b", S * W), (" c", W)]),
        ("(a:) b", [("a:", S), (" b", 1)]),
        ("(a:b)", [("a:b", S)]),
        ("(a:1.2.3)", [("a:1.2.3", S)]),
        # text that is no syntax
        ("C++", [("C++", 1)]),
        ("fox:1", [("fox:1", 1)]),
        ("a :) b", [("a :) b", 1)]),
        ("a\\b, \\o/", [("a\\b, \\o/", 1)]),
        (r"a \(b\) \[c\] \\", [("a (b) [c] \\", 1)]),
        (r"\((a)\)", [("(", 1), ("a", S), (")", 1)]),
        (r"\\(a)", [("\\", 1), ("a", S)]),
        ("  a ,  b ", [("  a ,  b ", 1)]),
        ("BREAKFAST unBREAK", [("BREAKFAST unBREAK", 1)]),
    ],
)
def test_runs(text: str, runs: list[tuple[str, float]]) -> None:
    (section,) = parse(text).sections
    assert [run.text for run in section] == [words for words, _ in runs]
    assert [run.weight for run in section] == pytest.approx([weight for _, weight in runs], rel=1e-12)


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("a,BREAK\nb", [[("a,", 1)], [("b", 1)]]),
        ("BREAK", [[], []]),
        ("a BREAK BREAK b", [[("a", 1)], [], [("b", 1)]]),
        ("(a BREAK b:1.5) c", [[("a", 1.5)], [("b", 1.5), (" c", 1)]]),
        ("(a BREAK b", [[("a", 1.1)], [("b", 1.1)]]),
    ],
)
def test_break(text: str, sections: list[list[tuple[str, float]]]) -> None:
    assert [list(section) for section in parse(text).sections] == sections


def test_words_and_weighted() -> None:
    parsed = parse(r"a (red:1.2) fox \(2\) BREAK [snow]")
    assert parsed.words == "a red fox (2) snow"
    assert parsed.weighted
    assert not parse("(a:1) BREAK b").weighted


def test_a_weight_without_bound_is_refused() -> None:
    with pytest.raises(PromptError, match="fox"):
        parse(f"(fox:{'9' * 400})")


def test_hostile_prompts_are_read_in_good_time() -> None:
    for text in (
        " " * 30000,
        "[(a" * 199 + "(a)" * 5000,
        "(a:" + "1" * 300,
        ":" + " " * 30000,
        "<lora:" * 3000,
    ):
        parse(text)
    with pytest.raises(PromptError, match="200"):
        parse("(a" * 30000)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "[" * 100_000,
        "(" * 200 + "\\(" * 50_000,
        "(" * 199 + "BREAK " * 20_000,
        ":" + "1" * 100_000,
        "(a:" + "1." * 50_000,
        ": 1" * 50_000,
        "\\" * 100_000,
        " \t" * 50_000,
    ],
    ids=lambda text: text[:6],
)
def test_reading_takes_time_in_proportion_to_the_text(text: str) -> None:
    with cheap(), suppress(PromptError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "<lora:a:1>" * 50_000,
        "<lora:" * 100_000,
        "<" + " " * 100_000,
        "<lora:a:" + "1" * 100_000 + "x>",
        "<lora:a:" + "1@0," * 50_000 + ">",
        "<lora:a:1:lbw=" + "b@1," * 50_000 + ">",
        "<lora:a:1:dyn=" + "1" * 5_000 + ">",
        "<lora:a:1:dyn=\u00b2>",
        "<lora:a:1:start=" + "9" * 5_000 + ">",
        "<lora:a:" + "x=" * 50_000 + ">",
        "<lora:" + "\\" * 100_000 + ">",
        "<lora:" + "a" * 1001 + ">",
        "<lora:a:\ud800>",
    ],
    ids=lambda text: text[:20].encode("unicode-escape").decode(),
)
def test_hostile_tags_are_refused_in_few_words_and_good_time(text: str) -> None:
    said = ""
    with cheap():
        try:
            for tag in take_tags(text)[1]:
                tag.use()
        except PromptError as error:
            said = str(error)
    assert len(said.encode()) < 500


def test_a_prompt_may_hold_as_many_tags_as_a_picture_may_have_adapters() -> None:
    assert len(take_tags("".join(f"<lora:a{n}:1>" for n in range(100)))[1]) == 100
    with pytest.raises(PromptError, match="more than 100 adapter tags"):
        take_tags("".join(f"<lora:a{n}:1>" for n in range(101)))


def test_a_prompt_may_open_as_many_chunks_as_are_encoded() -> None:
    assert len(parse("a BREAK " * 64).sections) == 65
    with pytest.raises(PromptError, match="more than 64 chunks"):
        parse("a BREAK " * 65)


@pytest.mark.parametrize(
    ("tag", "use"),
    [
        ("<lora:fox>", Use("fox")),
        ("<lora:fox:0.8>", Use("fox", 0.8)),
        ("<lyco:fox:0.8>", Use("fox", 0.8)),
        ("<LoRA: fox : .8 >", Use("fox", 0.8)),
        ("<lora:fox:-0.8>", Use("fox", -0.8)),
        ("<lora:fox:80%>", Use("fox", 0.8)),
        ("<lora:fox:0,8>", Use("fox", 0.8)),
        ("<lora:fox:0.5:0.8>", Use("fox", 0.8, 0.5)),
        ("<lora:fox:0.8:0.8>", Use("fox", 0.8, 0.8)),
        ("<lora:fox:te=0.5:unet=0.8>", Use("fox", 0.8, 0.5)),
        ("<lora:fox:unet=0.8:te=0.5>", Use("fox", 0.8, 0.5)),
        ("<lora:fox:te=0.5>", Use("fox", 0.5)),
        ("<lora:fox:unet=0.8>", Use("fox", 0.8, 1.0)),
        ("<lora:fox:0.8:te=0>", Use("fox", 0.8, 0.0)),
        ("<lora:fox:0.8:unet=0.5>", Use("fox", 0.5, 0.8)),
        ("<lora:add detail (v1.0), big:1>", Use("add detail (v1.0), big")),
        (r"<lora:a\:b\<c\>d\\e:0.5>", Use(r"a:b<c>d" + "\\e", 0.5)),
        (r"<lora:sub\fox:0.5>", Use("sub\\fox", 0.5)),
        (
            "<lora:fox:0.8:lbw=mid_block@1,up_blocks.1@0.5>",
            Use("fox", 0.8, blocks=(("mid_block", 1), ("up_blocks.1", 0.5))),
        ),
        ("<lora:fox:0.8:start=0.2>", Use("fox", 0.8, schedule=Schedule(((0, 0), (0.2, 1))))),
        ("<lora:fox:0.8:stop=0.6>", Use("fox", 0.8, schedule=Schedule(((0.6, 0),)))),
        ("<lora:fox:0.8:start=0:stop=0.6>", Use("fox", 0.8, schedule=Schedule(((0.6, 0),)))),
        (
            "<lora:fox:0.8:start=0.2:stop=0.6>",
            Use("fox", 0.8, schedule=Schedule(((0, 0), (0.2, 1), (0.6, 0)))),
        ),
        ("<lora:fox:0.8:step=0.2-0.6>", Use("fox", 0.8, schedule=Schedule(((0, 0), (0.2, 1), (0.6, 0))))),
        ("<lora:fox:0.8:step=5-10>", Use("fox", 0.8, schedule=Schedule(((0, 0), (5, 1), (10, 0))))),
        ("<lora:fox:0.8:stop=30>", Use("fox", 0.8, schedule=Schedule(((30, 0),)))),
        ("<lora:fox:0.8:stop=1>", Use("fox", 0.8, schedule=Schedule(((1, 0),)))),
        ("<lora:fox:0.8:stop=1.0>", Use("fox", 0.8)),
        ("<lora:fox:0.8:step=1@0,0.5@0.4>", Use("fox", 0.8, schedule=Schedule(((0, 1), (0.4, 0.5))))),
        ("<lora:fox:0.4@0,0.8@0.5>", Use("fox", 0.8, schedule=Schedule(((0, 0.5), (0.5, 1))))),
        (
            "<lora:fox:te=1:unet=0@5;0.8@10>",
            Use("fox", 0.8, 1.0, schedule=Schedule(((0, 0), (5, 0), (10, 1)))),
        ),
        ("<lora:fox:1@0,0@0.5,1@1>", Use("fox", 1, schedule=Schedule(((0, 1), (0.5, 0))))),
        ("<lora:fox:0@0,0@0.5>", Use("fox", 0)),
        (
            "<lora:fox:0.4@0.2,0.8@0.5>",  # the first strength also holds before its moment
            Use("fox", 0.8, schedule=Schedule(((0, 0.5), (0.2, 0.5), (0.5, 1)))),
        ),
        ("<lora:fox:-1@0,0.5@0.5>", Use("fox", -1, schedule=Schedule(((0, 1), (0.5, -0.5))))),
    ],
)
def test_tags(tag: str, use: Use) -> None:
    text, (read,) = take_tags(f"a {tag}, b")
    assert text == "a, b"
    assert read.source == tag
    assert read.use() == use


@pytest.mark.parametrize(
    ("lbw", "blocks", "text_weight"),
    [
        ("OUTALL", (("@OUTALL", 1.0),), None),
        ("outs", (("@OUTS", 1.0),), None),
        ("ALL", (), None),
        ("NONE", (("mid_block", 0.0),), 0.0),
        ("Style", (("@style", 1.0),), 0.0),
        ("MID", (("@M00", 1.0),), 0.0),
        ("IN04", (("@IN04", 1.0),), 0.0),
        ("0.5, 0,1", (("@0.5,0,1", 1.0),), 0.4),
        ("1,0,1", (("@1,0,1", 1.0),), None),
    ],
)
def test_block_presets_stay_symbolic(lbw: str, blocks: Any, text_weight: float | None) -> None:
    _, (tag,) = take_tags(f"<lora:fox:0.8:lbw={lbw}>")
    assert tag == LoraTag("fox", 0.8, lbw=lbw)
    assert tag.use() == Use("fox", 0.8, text_weight, blocks)


@pytest.mark.parametrize(
    "lbw", ["WEST", "a@x", "@", "1,R,0", "1,2,nan", "mid_block@1,up_blocks.1", "mid_block@1,@2", "a@1,b@x"]
)
def test_block_lists_that_mean_nothing_are_refused(lbw: str) -> None:
    _, (tag,) = take_tags(f"<lora:fox:0.8:lbw={lbw}>")
    with pytest.raises(PromptError, match="lbw="):
        tag.use()


def test_what_is_read_once_is_read_for_good() -> None:
    """No text makes another adapter of what is left of it."""
    with pytest.raises(PromptError, match="within another"):
        take_tags("a <lo<lora:a:1>ra:b:1>")


def test_a_tag_within_a_tag_of_another_program_refuses_nothing() -> None:
    _, tags, unread = sift_tags("a <lo<lora:a:1>ra:b:1>")
    assert ([tag.name for tag in tags], unread) == (["a"], ())


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("a fox <lora:fox:0.8, a hat, <lora:hat:1>", "a fox, a hat"),
        ("a fox <lora:fox:0.8 in a <lora:hat:1> hat", "a fox in a hat"),
        ("a fox <lora:fox:very high>, <lora:hat:1> a hat", "a fox, a hat"),
    ],
)
def test_of_another_program_a_tag_that_cannot_be_read_takes_no_words_with_it(prompt: str, kept: str) -> None:
    words, tags, unread = sift_tags(prompt)
    assert (words, [tag.name for tag in tags], len(unread)) == (kept, ["hat"], 1)
    assert "<lora:fox:" in unread[0]


def test_a_bare_tag_says_no_strength() -> None:
    _, (bare, said) = take_tags("<lora:fox> <lora:hat:1>")
    assert (bare.bare, said.bare) == (True, False)


def test_dynamic_rank_is_read_and_refused() -> None:
    _, (tag,) = take_tags("<lora:fox:0.8:0.8:64>")
    assert tag.dyn == 64
    with pytest.raises(PromptError, match="dyn=64"):
        tag.use()


@pytest.mark.parametrize(
    ("tag", "complaint"),
    [
        ("<lora:>", "names no adapter"),
        ("<lora::0.8>", "names no adapter"),
        ("<lora:fox:>", "not a number"),
        ("<lora:fox:high>", "'high'"),
        ("<lora:fox:0,8,1>", "'0,8,1'"),
        ("<lora:fox:nan>", "'nan'"),
        ("<lora:fox:1e999>", "'1e999'"),
        ("<lora:fox:1:1:8:1>", "at most 3"),
        ("<lora:fox:1:1:big>", "dyn=big"),
        ("<lora:fox:weight=1>", "weight= is not known"),
        ("<lora:fox:te=1:te=2>", "twice"),
        ("<lora:fox:te=0@0,1@0.5:unet=1>", "cannot change"),
        ("<lora:fox:start=-1>", "start=-1"),
        ("<lora:fox:stop=2.5>", "stop=2.5"),
        ("<lora:fox:stop=1.5>", "stop=1.5"),
        ("<lora:fox:step=4>", "not a range"),
        ("<lora:fox:step=0.1-0.2:stop=0.5>", "either step="),
        ("<lora:fox:1@0,0@0.5:stop=0.5>", "either"),
        ("<lora:fox:1@x>", "'x'"),
        ("<lora:fox:1@1.5>", "1.5"),
        ("<lora:fox:1@-0.5>", "-0.5"),
        ("<lora:fox:0.8, a hat", "not closed"),
        ("<lora:fox <lora:hat>", "not closed"),
        ("<hypernet:fox:1>", "hypernetworks are not supported"),
    ],
)
def test_malformed_tags_are_named(tag: str, complaint: str) -> None:
    with pytest.raises(PromptError) as error:
        take_tags(f"a fox, {tag}")
    assert complaint in str(error.value)
    assert tag.split(" ")[0].rstrip(",") in str(error.value)
    assert "<lora:name:0.8>" in str(error.value) or "remove the tag" in str(error.value)


@pytest.mark.parametrize("tag", ["<lora:fox:step=0.5-0.2>", "<lora:fox:1@0.5,0@0.5>", "<lora:fox:step=9-4>"])
def test_moments_must_rise(tag: str) -> None:
    _, (read,) = take_tags(tag)
    with pytest.raises(PromptError, match="must rise"):
        read.use()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a fox", "a fox"),
        ("  a , fox,, ", "  a , fox,, "),
        ("a <b> <i:c> d", "a <b> <i:c> d"),
        ("<T> a fox", "a fox"),
        ("<T>, a fox", "a fox"),
        ("a fox, <T>", "a fox"),
        ("a fox <T>", "a fox"),
        ("a, <T>, b", "a, b"),
        ("a, <T> b", "a, b"),
        ("a <T>, b", "a, b"),
        ("a,<T>,b", "a,b"),
        ("a <T> b", "a b"),
        ("a<T>b", "ab"),
        ("a, <T><T>, <T> b", "a, b"),
        ("<T> <T>", ""),
        ("a\n<T>\nb", "a\nb"),
        ("(a <T>:1.2)", "(a:1.2)"),
        ("(<T>, a)", "(a)"),
        ("[a, <T>] b", "[a] b"),
        ("a <T> BREAK b", "a BREAK b"),
        ("a  b <T>, c  d", "a  b, c  d"),
    ],
)
def test_what_remains_is_tidy(text: str, kept: str) -> None:
    remaining, tags = take_tags(text.replace("<T>", "<lora:fox:0.8>"))
    assert remaining == kept
    assert len(tags) == text.count("<T>")


def test_tags_keep_their_order() -> None:
    _, tags = take_tags("<lora:b:1> fox <lora:a:0.5><lyco:c>")
    assert [(tag.name, tag.weight) for tag in tags] == [("b", 1.0), ("a", 0.5), ("c", 1.0)]


def test_written_tags_read_back() -> None:
    names = ["fox", "add detail, v1.0", r"a:b<c>d\e\\f", "ünï"]
    weights = [(1.0, None), (0.1 + 0.2, None), (0.8, 0.8), (-1.5, 0.0), (1e-7, 3e20), (2.0, 1 / 3)]
    blocks = [(), (("mid_block", 1.0), ("@content", 1 / 3))]
    schedules = [None, Schedule(((0.0, 0.5), (1 / 3, 1.25))), Schedule(((0.5, 0.0),))]
    for name, (weight, text), block, schedule in itertools.product(names, weights, blocks, schedules):
        use = Use(name, weight, text, block, schedule)
        text_left, (tag,) = take_tags(f"fox {write_tag(use)} hat")
        assert text_left == "fox hat"
        assert tag.use() == use


def test_written_tags_are_short() -> None:
    assert write_tag(Use("fox", 0.8)) == "<lora:fox:0.8>"
    assert write_tag(Use("fox", 1.0, 0.5)) == "<lora:fox:te=0.5:unet=1>"
    assert write_tag(Use("fox", 1.0, schedule=Schedule(((0.5, 0.0),)))) == "<lora:fox:1:step=0@0.5>"
