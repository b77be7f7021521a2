"""Whatever a prompt holds, reading it ends soon, and in nothing else than its words or a StudioError."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import strategies as st

from pipelines.bounds import LONGEST_PROMPT
from pipelines.errors import StudioError
from pipelines.request import Request
from pipelines.text.prompt import parse
from pipelines.text.tags import sift_tags, take_tags, write_tag
from pipelines.text.vocabulary import unknown

from ...fuzzing import cases
from ...odd_values import SIGNS, changed_texts, only_refused, texts

PROMPTS = (
    "a (fox:1.3) in a [red] hat, ((very)) \\(old\\) BREAK a hill",
    "a fox <lora:fox:0.8>, <lora:hat:te=0.5:unet=0.8:lbw=mid_block@1,up_blocks.1@0.5:start=0.2:stop=0.6>",
    "<lyco:owl:0.4@0,0.8@0.5> a <lora:fox:0.5:0.8:dyn=4> b <lora:a\\:b:1:step=1@0,0.5@0.4> <hypernet:x:1>",
    "<lora:fox:0.8:lbw=1,0,0,0,1,1,1,1,1,1,1,1> {red|2::blue} __animal__ [a:b:0.5] (a:1.2.3)",
)
PARTS = (
    "(",
    ")",
    "[",
    "]",
    ":1.3)",
    "BREAK",
    "<lora:",
    "<",
    ">",
    "\\",
    ":",
    "=",
    "@",
    ",",
    "lbw=",
    "step=",
    "-",
    "te=",
    "1e308",
    "-0",
    "@INALL",
    "content",
    "NONE",
    "IN04",
    "dyn=",
)
prompts = st.one_of(
    changed_texts(PROMPTS, PARTS),
    texts,
    st.lists(st.sampled_from(PARTS), max_size=60).map("".join),
    st.builds(
        lambda part, times: (part * times)[:LONGEST_PROMPT],
        st.text(SIGNS, min_size=1, max_size=6),
        st.integers(1, 5000),
    ),
)


@cases(ci=100, prompt=prompts)
def test_words_and_tags_are_read_or_refused(prompt: str) -> None:
    with only_refused():
        words, tags = take_tags(prompt)
        for tag in tags:
            use = tag.use()
            assert take_tags(write_tag(use))[1][0].name == use.adapter
        assert all(run.text for section in parse(words).sections for run in section)


@cases(ci=100, prompt=prompts)
def test_every_prompt_of_another_program_gives_some_words(prompt: str) -> None:
    words, tags, unread = sift_tags(prompt)
    assert len(words) <= len(prompt)
    assert all(tag.use() for tag in tags)
    assert all(len(why) < 1500 for why in unread)


@cases(ci=100, prompt=prompts)
def test_a_request_takes_a_prompt_or_refuses_it(prompt: str) -> None:
    with suppress(StudioError):
        Request(prompt, negative_prompt=prompt)
    assert len(unknown(prompt, {"animal": {"fox": ("foxes",)}})) <= 30
