"""Strangers' texts: bounded before anything is made of them, and whatever their readers raise is one error."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import strategies as st

from pipelines.errors import AdapterFileError, ModelError, RequestError, SetupError, StudioError
from pipelines.home.plain import (
    check_json_size,
    read_json,
    read_kept,
    read_text,
    read_toml,
    read_yaml,
    reading,
    short,
)

from ...fuzzing import cases


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (ValueError("a\nb"), "x cannot be read: a b; mend it"),
        (OSError(13, "Permission denied"), r"x cannot be read \(Permission denied\); mend it"),
        (KeyError("unet"), "x cannot be read: it lacks 'unet'; mend it"),
        (RecursionError(), "x cannot be read: it is nested too deep; mend it"),
        (MemoryError(), "x cannot be read: memory ran out; mend it"),
        (IndexError(), "x cannot be read: IndexError; mend it"),
        (ValueError("y" * 10_000), "x cannot be read: y{5,60}"),
    ],
)
def test_whatever_a_reader_raises_is_one_error(fault: Exception, said: str) -> None:
    with pytest.raises(ModelError, match=said), reading("x", ModelError, "mend it"):
        raise fault


def test_an_error_for_people_passes_as_it_is() -> None:
    with pytest.raises(RequestError, match=r"^too long$"), reading("x", ModelError):
        raise RequestError("too long")


def test_what_is_quoted_is_short_whatever_it_is() -> None:
    assert short("a\n b") == "a b"
    assert short(7) == "7"
    assert len(short("x" * 10**6)) < 100
    assert len(short(1 << 10**6)) < 100


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "{", b"\xff{}", "", '{"a": 1}}', "[" + "{}," * 2_000_000 + "1]"],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_json_is_refused_with_the_readers_own_error(text: str | bytes) -> None:
    with pytest.raises(AdapterFileError, match=r"^the note (is|holds) ") as caught:
        read_json(text, "the note", error=AdapterFileError, remedy="mend it")
    assert len(str(caught.value)) < 200


def test_commas_and_brackets_in_texts_are_not_counted() -> None:
    text = json.dumps({"a,[{\\": '",[{"\\' * 1000, "b": ["]" * 100]})
    check_json_size(text, most=4, deepest=2)
    check_json_size(text.encode(), most=4, deepest=2)
    with pytest.raises(ValueError, match="nested more than 1 deep"):
        check_json_size(text, deepest=1)
    with pytest.raises(ValueError, match="holds 3 values"):
        check_json_size(text, most=2)


def test_values_are_counted_before_they_are_made() -> None:
    text = "[" + "{}," * 1_000_000 + "1]"
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="holds 2000001 values or so, far more than 1000000; split it"):
            read_json(text, "it")
        assert tracemalloc.get_traced_memory()[1] < 5 * len(text)
    finally:
        tracemalloc.stop()


def test_texts_are_refused_or_mended_where_no_file_can_hold_them() -> None:
    halves = '{"\\ud83d": ["\\ud83e\\udd8a", "\\uDE00x"]}'
    assert read_json(halves, "it", mended=True) == {"?": ["\N{FOX FACE}", "?x"]}
    with pytest.raises(RequestError, match="half a character"):
        read_json(halves, "it")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_or_kept(number: str) -> None:
    with pytest.raises(RequestError, match="is no number"):
        read_json(f"[{number}]", "it")
    assert isinstance(read_json(f"[{number}]", "it", finite=False)[0], float)


@pytest.mark.parametrize(
    "text",
    [
        "a = 0x" + "f" * 70_000,
        "a = " + "9" * 5000,
        "a = " + "[" * 10_000,
        "a." * 10_000 + "a = 1",
        "a = 9999-99-99T00:00:00+99:99",
        '"' * 60_000,
        "\0",
    ],
    ids=range(7),
)
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match=r"^x cannot be read: .*; mend it"):
        read_toml(text, "x", error=SetupError, remedy="mend it")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 30_000,
        "- " * 15_000,
        "*a",
        "!!python/object:os.system {",
        "a: b: c",
        "\0",
        "---\n---\n",
        "#" * 40_000,
    ],
)
def test_what_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match=r"^x cannot be read: .*; mend it"):
        read_yaml(text, "x", error=SetupError, remedy="mend it")


def test_yaml_gives_texts_whatever_stands_there() -> None:
    text = "a: 1:1:1\nb: 0xff\nc: 2001-99-99\nd: .inf\ne: !!int x\nf: [yes, ~]\ng: &g {h: 1}\ni: *g\n"
    assert read_yaml(text, "x", error=SetupError) == {
        "a": "1:1:1", "b": "0xff", "c": "2001-99-99", "d": ".inf", "e": "x", "f": ["yes", "~"],
        "g": {"h": "1"}, "i": {"h": "1"},
    }  # fmt: skip


def test_a_file_is_read_as_text_or_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "x") == "a\nb"
    with pytest.raises(RequestError, match="at most 0 are read: split it"):
        read_text(tmp_path / "x", 2)
    for name in ("no", "a\0b", "x" * 300):
        with pytest.raises(SetupError, match="cannot be read"):
            read_text(tmp_path / name)
    with pytest.raises(SetupError, match="is no file"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"a": "x"}', '{"a": NaN}', "[" * 10_000, '{"a": ' + "9" * 400 + "}"]
)
def test_what_was_kept_and_is_damaged_counts_as_absent(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "kept.json").write_text(text)
    assert read_kept(tmp_path / "kept.json", lambda kept: float(kept["a"])) is None
    (tmp_path / "kept.json").write_text('{"a": 2}')
    assert read_kept(tmp_path / "kept.json", lambda kept: float(kept["a"])) == 2.0


SIGNS = st.text(
    st.sampled_from("[]{}\",:\\\n 0123456789eE+-.truefalsn'#=\ud83da\0ä*&!|>?%@`~<T"), max_size=60
)
BYTES = st.one_of(st.binary(max_size=60), SIGNS.map(lambda text: text.encode("utf-8", "surrogatepass")))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@contextmanager
def _refused_shortly() -> Iterator[None]:
    """An error for people may end the block."""
    said = ""
    try:
        yield
    except StudioError as error:
        said = str(error)
    assert len(said) < 300


@cases(text=BYTES, mended=st.booleans())
def test_any_bytes_are_json_or_refused(text: bytes, mended: bool) -> None:
    with _refused_shortly():
        json.dumps(read_json(text, "it", mended=mended), ensure_ascii=False).encode()


@cases(content=JSON)
def test_json_within_bounds_comes_back(content: object) -> None:
    text = json.dumps(content)
    check_json_size(text, most=200, deepest=20)
    assert json.dumps(read_json(text, "it", finite=False, mended=True)) in (
        text,
        json.dumps(_mended(content)),
    )


def _mended(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_mended(one) for one in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(one) for key, one in value.items()}
    return value


@cases(text=SIGNS)
def test_any_text_is_toml_or_refused(text: str) -> None:
    with _refused_shortly():
        assert isinstance(read_toml(text, "it", error=SetupError), dict)


@cases(text=SIGNS)
def test_any_text_is_yaml_or_refused(text: str) -> None:
    with _refused_shortly():
        read_yaml(text, "it", error=SetupError)
