"""Files of users: only regular ones are opened, each within bounds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.home.files import (
    NoRegularFile,
    is_regular,
    open_regular,
    parse_json,
    read_regular,
    read_text,
    sha256_of,
)

from ..folders import ODD, in_time

Opened = Callable[[Path], object]


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("read", [open_regular, read_regular, read_text, sha256_of])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None], read: Opened) -> None:
    make(tmp_path / "x")
    assert not in_time(lambda: is_regular(tmp_path / "x"))
    with pytest.raises(OSError):  # noqa: PT011
        in_time(lambda: read(tmp_path / "x"))


@pytest.mark.parametrize(("make", "what"), list(zip(ODD, ["pipe", "socket", "device", "pipe"], strict=False)))
def test_what_it_is_is_said(tmp_path: Path, make: Callable[[Path], None], what: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(NoRegularFile, match=f"it is a {what}, not a file; take it away or give a file"):
        open_regular(tmp_path / "x")
    with pytest.raises(NoRegularFile, match="it is a folder"):
        open_regular(tmp_path)


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    really, looked = os.stat, os.stat(tmp_path / "file")
    monkeypatch.setattr(
        os, "stat", lambda path, **o: looked if path == tmp_path / "pipe" else really(path, **o)
    )
    with pytest.raises(NoRegularFile):
        in_time(lambda: open_regular(tmp_path / "pipe"))


def test_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbffox" * 1)
    (tmp_path / "link").symlink_to("x")
    assert read_text(tmp_path / "link") == "fox"
    assert read_regular(tmp_path / "x", 6) == b"\xef\xbb\xbffox"
    assert sha256_of(tmp_path / "x", 3) == hashlib.sha256(b"fox").hexdigest()
    with pytest.raises(OSError, match="larger than the 5 bytes"):
        read_regular(tmp_path / "x", 5)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "no")
    with pytest.raises(OSError, match="no file can have this name"):
        read_regular("a\0b")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{", b"\xff{}", ""])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)


def test_texts_in_json_can_be_written_again() -> None:
    assert parse_json('{"\\ud83d": ["\\ud83e\\udd8a", "\\uDE00x"]}') == {"?": ["\N{FOX FACE}", "?x"]}
