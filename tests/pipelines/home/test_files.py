"""Files of users: only regular ones are opened, each within bounds; each is written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.errors import SetupError
from pipelines.home.files import (
    Content,
    NoRegularFile,
    is_regular,
    open_regular,
    read_regular,
    read_text,
    sha256_of,
    write_atomically,
    write_whole,
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


# -- writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["füchse", "füchse".encode(), lambda path: path.write_bytes("füchse".encode())]
)
def test_a_file_holds_what_was_given(tmp_path: Path, content: Content) -> None:
    file = tmp_path / "fox.txt"
    file.write_text("before")
    assert write_atomically(file, content) == file
    assert file.read_bytes() == "füchse".encode()
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_came_to_be_meanwhile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "fox.png"
    file.write_text("precious")
    written = write_whole(file, "new", force=False)
    assert (file.read_text(), written.name, written.read_text()) == ("precious", "fox~2.png", "new")
    assert write_whole(file, "newer", force=False).name == "fox~3.png"
    assert write_whole(file, "new", force=True) == file
    assert file.read_text() == "new"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        SetupError, match=r"fox.png cannot be written \(No space left on device\); choose another"
    ):
        write_whole(tmp_path / "new" / "fox.png", fails, force=False)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "new" / "fox.png", fails)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    def stopped(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    file = tmp_path / "state"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, stopped)
    assert (file.read_text(), list(tmp_path.iterdir())) == ("before", [file])


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(SetupError, match="cannot be written"):
        write_whole(tmp_path / "a" / "fox.png", "new", force=True)


def test_a_name_may_be_as_long_as_a_file_allows(tmp_path: Path) -> None:
    file = tmp_path / f"{'ü' * 125}.png"  # 254 bytes
    assert write_atomically(file, "new", force=False).read_text() == "new"


def test_many_write_one_file_at_once(tmp_path: Path) -> None:
    file, texts = tmp_path / "rates.json", [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: write_atomically(file, text), texts * 4))
    assert file.read_text() in texts
    assert list(tmp_path.iterdir()) == [file]


def test_many_write_under_one_name_and_none_is_lost(tmp_path: Path) -> None:
    file, texts = tmp_path / "fox.png", [f"picture {number}" for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        files = list(threads.map(lambda text: write_whole(file, text, force=False), texts))
    assert [kept.read_text() for kept in files] == texts
    assert sorted(tmp_path.iterdir()) == sorted(files)
