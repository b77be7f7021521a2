"""Folders that do not answer: who waits, how long, and for what."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipelines.errors import SetupError
from pipelines.home import answers
from pipelines.home.answers import MOST, NoAnswer, answered, ask, each, is_silent, sign, silent

from ..folders import in_time


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.3)


def test_what_answers_is_given_and_what_it_raises_is_raised(tmp_path: Path) -> None:
    assert answered(tmp_path / "a", lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        answered(tmp_path / "a", lambda: 1 // 0)
    assert silent() == ()


def test_what_does_not_answer_is_said_by_name_and_then_refused_at_once_until_it_answers(
    tmp_path: Path,
) -> None:
    go = threading.Event()
    with pytest.raises(SetupError, match=rf"the folder {tmp_path}/a does not answer; see to the drive"):
        answered(tmp_path / "a", go.wait)
    assert silent([tmp_path]) == (str(tmp_path / "a"),)
    assert is_silent(tmp_path / "a" / "deep")
    assert not is_silent(tmp_path / "ab")
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        answered(tmp_path / "a" / "deep", lambda: pytest.fail("it was asked"))
    assert time.monotonic() - began < 0.2
    assert answered(tmp_path / "b", lambda: 7) == 7
    go.set()
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(silent([tmp_path])), False)])
    assert answered(tmp_path / "a", lambda: 7) == 7


def test_slow_is_not_silent(tmp_path: Path) -> None:
    def slow() -> int:
        for _ in range(10):
            time.sleep(0.1)
            sign()
        return 7

    assert answered(tmp_path / "a", slow) == 7


def test_few_threads_hang_under_one_root(tmp_path: Path) -> None:
    go, begun = threading.Event(), []
    ask(tmp_path, lambda: None).result()

    def one(number: int) -> None:
        def hang() -> None:
            begun.append(number)
            go.wait(60)

        with pytest.raises(NoAnswer):
            answered(tmp_path / f"folder {number}" / "file", hang)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(begun) <= MOST
    with pytest.raises(NoAnswer):
        ask(tmp_path, lambda: None)
    go.set()


def test_calls_beside_each_other_are_few_and_all_come_to_their_end(tmp_path: Path) -> None:
    together, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.005)
        with lock:
            together -= 1

    threads = [threading.Thread(target=answered, args=(tmp_path / "a", work)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert 1 <= most <= MOST


def test_what_takes_long_holds_up_nobody(tmp_path: Path) -> None:
    go = threading.Event()

    def long() -> None:
        while not go.wait(0.02):
            sign()

    threads = [threading.Thread(target=answered, args=(tmp_path / "a", long)) for _ in range(MOST + 2)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    assert answered(tmp_path / "a", lambda: 7) == 7
    assert time.monotonic() - began < 0.3
    go.set()
    for thread in threads:
        thread.join(20)


def test_of_many_paths_what_does_not_answer_is_left_out_alone(tmp_path: Path) -> None:
    go, told = threading.Event(), []
    paths = [tmp_path / "x" / name for name in "abc"] + [tmp_path / "y" / "d"]

    def look(path: Path) -> str:
        if path.name == "b":
            go.wait(60)
        return path.name

    found = in_time(lambda: each(paths, look, lambda path, name: told.append(name)))
    assert list(found.values()) == told == ["a", "c", "d"]
    go.set()


def test_work_within_work_is_simply_done(tmp_path: Path) -> None:
    def outer() -> tuple[str, str]:
        inner = answered(tmp_path / "b", lambda: threading.current_thread().name)
        return threading.current_thread().name, inner

    outer_name, inner_name = answered(tmp_path / "a", outer)
    assert outer_name == inner_name == "folder"


def test_a_process_that_stood_still_blames_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is counted in slices: a clock that leaps ahead is no silence."""
    leaps = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(answers.time, "monotonic", lambda: float(next(leaps)))
    assert answered(tmp_path / "a", lambda: time.sleep(0.1) or 7) == 7
