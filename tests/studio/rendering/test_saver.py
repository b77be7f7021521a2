"""Pictures go to the disk beside the steps: the file first, then whoever is to know of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from pipelines import Record
from pipelines.errors import RenderError, SetupError
from studio.rendering import saver as module
from studio.rendering.saver import Png, Saved, Saver

RECORD = cast(Record, object())
"""Nobody here looks into it."""


class Slow:
    """A picture whose file is written when it may be. began: somebody is at it."""

    def __init__(self) -> None:
        self.record = RECORD
        self.began, self.go = threading.Event(), threading.Event()

    def write(self, file: Path, *, force: bool) -> Path:
        self.began.set()
        assert self.go.wait(60)
        file.write_bytes(b"slow")
        return file


class Broken:
    """A picture that cannot be written."""

    def __init__(self, error: Exception) -> None:
        self.record = RECORD
        self.error = error

    def write(self, file: Path, *, force: bool) -> Path:
        raise self.error


def png(content: bytes = b"a picture") -> Png:
    return Png(content, RECORD)


def as_it_is(saved: Saved[str]) -> Saved[str]:
    return saved


def test_a_file_is_there_before_anybody_is_told(tmp_path: Path) -> None:
    seen: list[tuple[str, bytes]] = []

    def then(saved: Saved[str]) -> None:
        assert saved.file is not None
        seen.append((saved.picture, saved.file.read_bytes()))

    with Saver(then) as saver:
        saver.take("fox", png(b"a fox"), tmp_path / "fox.png")
        saver.settle()
        assert seen == [("fox", b"a fox")]


def test_steps_go_on_while_a_picture_is_written(tmp_path: Path) -> None:
    slow = Slow()
    with Saver(as_it_is) as saver:
        saver.take("slow", slow, tmp_path / "slow.png")
        assert slow.began.wait(60)
        assert list(saver.told()) == []
        assert saver.pending == 1
        slow.go.set()
        assert list(saver.rest()) == [Saved("slow", tmp_path / "slow.png", RECORD)]
        assert saver.pending == 0


def test_pictures_are_told_in_the_order_they_were_handed_over(tmp_path: Path) -> None:
    gone = RenderError("it is not finite")
    with Saver(as_it_is) as saver:
        saver.take("1", png(), tmp_path / "1.png")
        saver.fail("2", gone)
        saver.take("3", png(), tmp_path / "3.png")
        told = list(saver.rest())
    assert [saved.picture for saved in told] == ["1", "2", "3"]
    assert [saved.error for saved in told] == [None, gone, None]


def test_as_many_are_waited_for_as_are_asked_for(tmp_path: Path) -> None:
    slow = Slow()
    with Saver(as_it_is) as saver:
        saver.take("1", png(), tmp_path / "1.png")
        saver.take("2", slow, tmp_path / "2.png")
        assert [saved.picture for saved in saver.told(least=1)] == ["1"]
        slow.go.set()
        assert [saved.picture for saved in saver.told(least=1)] == ["2"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SetupError("fox.png cannot be written (No space left on device)"), "^fox.png cannot be written"),
        (OSError(28, "No space left on device"), r"could not be saved \(No space .*make room on the disk"),
        (MemoryError(), "could not be saved: memory ran out"),
        (KeyError("x"), "could not be saved: KeyError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_picture_that_cannot_be_saved_fails_alone(tmp_path: Path, error: Exception, said: str) -> None:
    with Saver(as_it_is) as saver:
        saver.take("bad", Broken(error), tmp_path / "bad.png")
        saver.take("good", png(), tmp_path / "good.png")
        bad, good = saver.rest()
    assert (bad.file, bad.record) == (None, None)
    with pytest.raises(type(bad.error), match=said):  # type: ignore[arg-type]
        raise bad.error  # type: ignore[misc]
    assert good.error is None
    assert (tmp_path / "good.png").exists()


def test_what_cannot_be_noted_is_raised_where_it_is_asked_for(tmp_path: Path) -> None:
    def then(saved: Saved[str]) -> None:
        raise SetupError("the manifest cannot be written")

    with Saver(then) as saver:
        saver.take("fox", png(), tmp_path / "fox.png")
        with pytest.raises(SetupError, match="the manifest"):
            list(saver.rest())
        assert list(saver.rest()) == []  # once
    assert (tmp_path / "fox.png").exists()  # it is found there the next time


def test_rendering_waits_where_the_disk_cannot_keep_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PENDING", 2)
    slow = Slow()
    with Saver(as_it_is) as saver:
        saver.take("1", slow, tmp_path / "1.png")
        saver.take("2", png(), tmp_path / "2.png")
        taken = threading.Event()

        def third() -> None:
            saver.take("3", png(), tmp_path / "3.png")
            taken.set()

        thread = threading.Thread(target=third)
        thread.start()
        assert not taken.wait(0.2)
        slow.go.set()
        assert taken.wait(60)
        thread.join()
        assert len(list(saver.rest())) == 3


def test_where_a_picture_goes_is_asked_when_those_before_lie_there(tmp_path: Path) -> None:
    def next_free() -> Path:
        return tmp_path / f"{len(list(tmp_path.iterdir())) + 1}.png"

    with Saver(as_it_is) as saver:
        for picture in "abc":
            saver.take(picture, png(picture.encode()), next_free)
    assert [(tmp_path / f"{n}.png").read_bytes() for n in (1, 2, 3)] == [b"a", b"b", b"c"]


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / "fox.png"
    file.write_bytes(b"an old fox")
    with Saver(as_it_is) as saver:
        saver.take("beside", png(b"a fox"), file)
        saver.take("over", png(b"a new fox"), file, force=True)
        beside, over = saver.rest()
    assert beside.file == tmp_path / "fox~2.png"
    assert over.file == file
    assert file.read_bytes() == b"a new fox"


def test_leaving_waits_until_all_is_on_the_disk(tmp_path: Path) -> None:
    slow = Slow()
    with Saver(as_it_is) as saver:
        saver.take("fox", slow, tmp_path / "fox.png")
        threading.Timer(0.1, slow.go.set).start()
    assert (tmp_path / "fox.png").read_bytes() == b"slow"


def test_an_interruption_while_waiting_loses_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(futures: object) -> object:
        raise KeyboardInterrupt

    slow = Slow()
    with Saver(as_it_is) as saver:
        saver.take("fox", slow, tmp_path / "fox.png")
        with monkeypatch.context() as patch:
            patch.setattr(module, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(saver.rest())
        slow.go.set()
        assert [saved.picture for saved in saver.rest()] == ["fox"]


def test_several_threads_write_several_pictures_at_once(tmp_path: Path) -> None:
    slow: Any = [Slow(), Slow()]
    with Saver(as_it_is, threads=2) as saver:
        for place, one in enumerate(slow):
            saver.take(str(place), one, tmp_path / f"{place}.png")
        assert all(one.began.wait(60) for one in slow)
        for one in slow:
            one.go.set()
