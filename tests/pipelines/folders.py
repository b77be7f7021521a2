"""Odd things in folders, for tests: what is no file, and folders that do not answer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(before)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name(f".{path.name}.pipe"))
    path.symlink_to(path.with_name(f".{path.name}.pipe"))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


ODD = (pipe, bound_socket, link_to_device, link_to_pipe, link_to_itself, link_to_nowhere)
"""Each makes something that is no file."""

SECONDS = 20.0


def in_time(work: Callable[[], T], seconds: float = SECONDS) -> T:
    """What `work` gives or raises; the test fails where it hangs."""
    given: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            given.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it hangs for more than {seconds:.0f} seconds"
    if raised:
        raise raised[0]
    return given[0]


class Dead:
    """A folder of which no call ends. calls: how many hang; `answer` lets all of them go on, and the folder be."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._go = threading.Event()
        self.calls = 0

    def hold(self, path: object) -> None:
        if isinstance(path, str | os.PathLike) and not self._go.is_set():
            text = os.path.abspath(os.fspath(path))  # type: ignore[type-var]
            if text == self._folder or text.startswith(self._folder + os.sep):
                self.calls += 1
                self._go.wait(120)
                self.calls -= 1

    def answer(self) -> None:
        self._go.set()


@contextmanager
def dead(folder: Path) -> Iterator[Dead]:
    """Within: whoever lists, opens or looks at the folder, or at anything in it, waits."""
    held = Dead(folder)

    def waits(call: Callable[..., Any]) -> Callable[..., Any]:
        def waited(path: Any = ".", *rest: Any, **named: Any) -> Any:
            held.hold(path)
            return call(path, *rest, **named)

        return waited

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "scandir", "open", "listdir", "readlink"):
            patch.setattr(os, name, waits(getattr(os, name)))
        try:
            yield held
        finally:
            held.answer()
