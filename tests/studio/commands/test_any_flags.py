"""Whatever is written on a command line: it is read, or refused with a message and no traceback."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

from hypothesis import strategies as st

from studio.cli import parser

from ...fuzzing import cases
from ...odd_values import changed_texts, one_of, only_refused, texts

WORDS = {
    "render": [
        "-p",
        "a fox",
        "-n",
        "2",
        "--size",
        "64x64",
        "--seed",
        "7",
        "--lora",
        "fox=0.8:0.5",
        "--crop",
        "1,2",
        "--from",
        "~/a.png",
        "--composer",
        "switch:interval=3",
        "--guidance-scale",
        "3.5",
        "--out",
        "x.png",
        "--lora-ram",
        "2.5",
        "--row-limit",
        "4",
    ],
    "batch": [
        "jobs.yaml",
        "--out",
        "x",
        "--set",
        "steps=8",
        "--name",
        "{index:05d}_{name}",
        "--wildcards",
        "~/w",
        "--workers",
        "2",
    ],
    "grid": ["--x", "seed=1-4", "--y", "method=merge", "-p", "a fox", "--cell", "64", "--out", "x"],
    "train-flora": [
        "a.png",
        "b.png",
        "-p",
        "x",
        "-o",
        "x.safetensors",
        "--steps",
        "4",
        "--lr",
        "1e-4",
        "--size",
        "64",
    ],
    "train-blora": ["a.png", "-p", "x", "-o", "x.safetensors", "--rank", "4"],
    "inspect": ["a.png", "~nobody/b.safetensors"],
    "convert": ["fox", "--to", "peft", "--rank", "4", "--out", "x", "--model", "tiny-sdxl"],
}


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    command = draw(one_of(list(WORDS)))
    words = list(WORDS[command])
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(words) - 1))
        words[place] = draw(st.one_of(texts, changed_texts([words[place]]), one_of(WORDS[command])))
    return [command, *words]


@cases(ci=200, words=lines())
def test_a_command_line_is_read_or_refused(words: list[str]) -> None:
    said = io.StringIO()
    code: object = 0
    with redirect_stderr(said), redirect_stdout(io.StringIO()), only_refused():
        try:
            args = parser(words).parse_args(words)
            args.chosen.read(args)
        except SystemExit as stop:
            code = stop.code
    assert code in (0, 2)
    assert len(said.getvalue()) < 1500
