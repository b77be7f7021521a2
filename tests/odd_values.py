"""What strangers send: odd texts and values, and valid ones with something changed in them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from pipelines.errors import StudioError


@contextmanager
def only_refused(longest: int = 1500) -> Iterator[None]:
    """The block may raise a StudioError, whose message is short and can be written, and nothing else."""
    try:
        yield
    except StudioError as error:
        message = str(error)
    else:
        return
    assert len(message) < longest
    message.encode()


SIGNS = st.characters(exclude_categories=())
"""Any character, halves of characters included."""
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "a\udfffb",
    "\n",
    "\r\n",
    "null",
    "true",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    "9" * 5000,
    "1" * 320,
    "٣",
    "²",
    "1_0",
    "~",
    "~nosuch",
    "~\0",
    "~\ud800",
    "/",
    "../x",
    "a/" * 3000,
    "n" * 300,
    "ä" * 130,
    "(" * 300,
    "[" * 5000,
    "{" * 60,
    "{a|" * 40,
    "<lora:",
    "<lora:a:1>",
    ":" * 50,
    "\\",
    '"',
    "'",
    "%s",
    "{}",
    "{0}",
    "{index}",
    "__a__",
    "<b>",
    "\x1b[31m",
    "\u202e",
    "1-4",
    "1-9999999999 (+1e-9)",
    "1-2 [99999]",
    "1e308-1.7e308 [3]",
    "-1.7e308-1.7e308 [3]",
    "0.1-1",
    "x" * 30_000,
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**64),
    10**20,
    10**400,
    -(10**400),
    10**5000,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    -1e308,
    math.inf,
    -math.inf,
    math.nan,
)


def one_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the values; unlike `sampled_from`, it does not write them all into every report."""
    return _strategy(lambda draw: values[draw(st.integers(0, len(values) - 1))])


def _strategy(make: Callable[[st.DrawFn], Any]) -> st.SearchStrategy[Any]:
    @st.composite
    def made(draw: st.DrawFn) -> Any:
        return make(draw)

    return made()


texts = st.one_of(one_of(ODD_TEXTS), st.text(SIGNS, max_size=40), st.text(max_size=200))
"""Short texts of any kind, and long or odd ones."""
numbers = st.one_of(one_of(ODD_NUMBERS), st.integers(), st.floats())
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)


def _nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


plain = st.one_of(
    leaves,
    st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
        max_leaves=6,
    ),
    st.builds(_nested, st.sampled_from([3, 50, 300])),
    st.builds(lambda count: [0] * count, st.sampled_from([101, 2000])),
    st.builds(lambda count: {str(n): n for n in range(count)}, st.sampled_from([101, 2000])),
)
"""A value that JSON can hold."""
anything = st.one_of(
    plain,
    st.dictionaries(st.one_of(st.none(), st.booleans(), numbers, st.tuples(numbers)), leaves, max_size=3),
)
"""A value that YAML or a caller in Python can give: its keys need not be texts."""


def json_of(value: Any) -> str:
    """The value as JSON, also where Python alone would not write its numbers."""
    most = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(most)


def changed_texts(valid: Iterable[str], parts: Iterable[str] = ()) -> st.SearchStrategy[str]:
    """One of the valid texts, with pieces taken out, doubled, moved, or put in. parts: what may be put in."""
    whole, known = one_of(list(valid)), one_of([*parts, *ODD_TEXTS])

    def make(draw: st.DrawFn) -> str:
        text = draw(whole)
        for _ in range(draw(st.integers(0, 4))):
            begin = draw(st.integers(0, len(text)))
            end = draw(st.integers(begin, min(len(text), begin + 40)))
            put = draw(st.one_of(known, st.text(SIGNS, max_size=8), st.just(text[begin:end] * 2)))
            text = text[:begin] + put + text[end:]
        return text

    return _strategy(make)


def changed_bytes(valid: Iterable[bytes]) -> st.SearchStrategy[bytes]:
    """One of the valid files, cut off, with bytes changed, taken out, or put in."""
    whole = one_of(list(valid))
    put_in = st.one_of(
        st.binary(max_size=8), one_of([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0" * 3000])
    )

    def make(draw: st.DrawFn) -> bytes:
        data = draw(whole)
        for _ in range(draw(st.integers(0, 4))):
            begin = draw(st.integers(0, len(data)))
            end = draw(
                st.one_of(st.just(begin), st.integers(begin, min(len(data), begin + 64)), st.just(len(data)))
            )
            data = data[:begin] + draw(put_in) + data[end:]
        return data

    return _strategy(make)


def changed_values(valid: Any, other: st.SearchStrategy[Any] = plain) -> st.SearchStrategy[Any]:
    """A valid value of lists and objects, in which some parts became anything else, were taken out, or were added."""
    whole = json.dumps(valid)

    def make(draw: st.DrawFn) -> Any:
        value = json.loads(whole)
        for _ in range(draw(st.integers(0, 3))):
            value = _changed(draw, value, other)
        return value

    return _strategy(make)


def _changed(draw: st.DrawFn, value: Any, other: st.SearchStrategy[Any]) -> Any:
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[draw(st.integers(0, len(keys) - 1))]
        match draw(st.integers(0, 7)):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[draw(texts)] = draw(other)
            case 1:
                value.append(draw(other))
            case _:
                value[key] = _changed(draw, value[key], other)
        return value
    return draw(other)
