"""Files of users: only regular ones are opened, each within bounds; each is written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.errors import SetupError
from pipelines.home import files
from pipelines.home.files import (
    Content,
    NoRegularFile,
    check_name,
    is_regular,
    open_regular,
    parse_json,
    read_regular,
    read_text,
    sha256_of,
    slug,
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


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{", b"\xff{}", ""])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_json(text)


def test_texts_in_json_can_be_written_again() -> None:
    assert parse_json('{"\\ud83d": ["\\ud83e\\udd8a", "\\uDE00x"]}') == {"?": ["\N{FOX FACE}", "?x"]}


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
        written = list(threads.map(lambda text: write_whole(file, text, force=False), texts))
    assert [kept.read_text() for kept in written] == texts
    assert sorted(tmp_path.iterdir()) == sorted(written)


# -- systems that differ -------------------------------------------------------------------------------------


def no_link(*paths: object) -> None:
    raise OSError(1, "Operation not permitted")


@pytest.fixture(params=["refused", "missing"])
def without_hard_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has no hard links, and a system that does not know them."""
    if request.param == "missing":
        monkeypatch.delattr(os, "link")
    else:
        monkeypatch.setattr(os, "link", no_link)


@pytest.mark.usefixtures("without_hard_links")
def test_without_hard_links_none_is_lost_either(tmp_path: Path) -> None:
    test_a_file_that_came_to_be_meanwhile_is_kept(tmp_path)
    (tmp_path / "many").mkdir()
    test_many_write_under_one_name_and_none_is_lost(tmp_path / "many")


@pytest.mark.usefixtures("without_hard_links")
def test_without_hard_links_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "fox.png", "new", force=False)
    assert list(tmp_path.iterdir()) == []


def in_use(winerror: int, times: int) -> Callable[[Path, Path], None]:
    """`os.replace` as on Windows, while somebody reads the file: it is refused so many times."""
    replace, left = os.replace, [times]

    def refused(temporary: Path, file: Path) -> None:
        left[0] -= 1
        if left[0] >= 0:
            error = PermissionError(13, "The process cannot access the file", str(file))
            error.winerror = winerror  # type: ignore[attr-defined]
            raise error
        replace(temporary, file)

    return refused


@pytest.mark.parametrize("winerror", [5, 32])
def test_a_file_that_is_being_read_is_replaced_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winerror: int
) -> None:
    monkeypatch.setattr(os, "replace", in_use(winerror, 3))
    assert write_atomically(tmp_path / "rates.json", "new").read_text() == "new"


def test_a_file_that_stays_in_use_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", in_use(32, 99))
    monkeypatch.setattr(files, "_WAITS", (0.001, 0.001))
    with pytest.raises(SetupError, match="cannot be written"):
        write_whole(tmp_path / "rates.json", "new", force=True)
    assert list(tmp_path.iterdir()) == []


def test_a_text_has_the_same_bytes_on_all_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", lambda *given, **named: pytest.fail("it would change line ends"))
    assert write_atomically(tmp_path / "config.toml", "a\nb\n").read_bytes() == b"a\nb\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("con", "con_"),
        ("NUL", "NUL_"),
        ("aux.safetensors", "aux_.safetensors"),
        ("Com1.a.b", "Com1_.a.b"),
        ("lpt³", "lpt³_"),
        ("console", "console"),
        ("a con", "a-con"),
        ("com12", "com12"),
        ("fox. . .", "fox"),
        ("  fox  ", "fox"),
        ('a<b>:"/\\|?*\0\x1fc', "a-b-c"),
        ("..", "picture"),
        ("x" * 300, "x" * 60),
        ("nul." + "x" * 300, "nul_." + "x" * 55),
    ],
)
def test_part_of_a_name_can_be_one_on_every_system(text: str, name: str) -> None:
    assert slug(text) == name
    assert check_name(Path(slug(text)), windows=True) == Path(name)


@pytest.mark.parametrize(
    "name", ["con", "NUL.png", "com1.a.png", "a:b.png", "a?.png", "fox.", "fox ", "a\tb", "aux .x"]
)
def test_a_name_that_windows_does_not_take_is_refused_there(name: str) -> None:
    with pytest.raises(OSError, match="no file can have this name on Windows"):
        check_name(Path(name), windows=True)
    assert check_name(Path(name), windows=False) == Path(name)
