"""Folders that may not answer. A network share that has gone away blocks whoever asks it for a file, for minutes, in a
system call that nothing can end. So users' files are asked for on threads of their own. Whoever asks waits until there
has been no sign of life for `PATIENCE` seconds.

    path -> its root -> at most `MOST` questions that wait for a first sign of life -> the answer, or NoAnswer

While a question hangs, the path that it is about is silent, with all below it. Further questions about it are refused
at once, so that no more threads hang. Where `MOST` questions hang under one root, the whole root is silent. As soon as
the questions end, it is asked again.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from pipelines.errors import SetupError

PATIENCE = 2.0
"""Seconds without a sign of life after which a folder counts as silent."""
MOST = 4
"""Questions under one root that may wait for a first sign of life at once, so that few threads hang if it goes away."""

_SLICE = 0.05  # seconds; waiting is counted in these, so that no folder is blamed when the process itself stood still
_KEPT = 4  # idle helpers that are kept for further questions

T = TypeVar("T")


class NoAnswer(SetupError):
    """A folder or a file does not answer. at: its path."""

    def __init__(self, at: str) -> None:
        super().__init__(
            f"the folder {at} does not answer; see to the drive or the network it lies on, then try again"
        )
        self.at = at


class Question(Generic[T]):
    """Work that asks a folder something, on a thread of its own.

    root: the root that it belongs to. at: the path that it looks at now. hangs: whoever asked has given up, but the
    thread still waits. signs: how many signs of life there have been.
    """

    def __init__(self, root: str, at: str, work: Callable[[], T]) -> None:
        self.root, self.at = root, at
        self.hangs = False
        self.signs = 0
        self._work = work
        self._over = threading.Event()
        self._answer: list[T] = []
        self._error: BaseException | None = None

    def result(self) -> T:
        """Wait for the answer. Raises what the work raises, and NoAnswer after `PATIENCE` seconds without a sign."""
        signs, waited = self.signs, 0.0
        while not self._over.wait(_SLICE):
            waited = waited + _SLICE if self.signs == signs else 0.0
            signs = self.signs
            if waited >= PATIENCE:
                with _CHANGED:
                    self.hangs = not self._over.is_set()
                    _CHANGED.notify_all()
                if self.hangs:
                    raise NoAnswer(self.at)
        if self._error is not None:
            raise self._error
        return self._answer[0]

    def run(self) -> None:
        """Do the work. This is called on a thread that may hang."""
        _HERE.call = self
        try:
            self._answer.append(self._work())
        except BaseException as error:  # `result` raises it for whoever asked
            self._error = error
        finally:
            _HERE.call = None
            with _CHANGED:
                self._over.set()
                self.hangs = False
                _CALLS.remove(self)
                _CHANGED.notify_all()


class _Helper(threading.Thread):
    """A thread that may hang. It does one question's work after another, and does not keep the program from ending."""

    def __init__(self) -> None:
        super().__init__(name="folder", daemon=True)
        self._given: SimpleQueue[Question[Any]] = SimpleQueue()

    def give(self, call: Question[Any]) -> None:
        self._given.put(call)

    def run(self) -> None:
        while True:
            self._given.get().run()
            with _CHANGED:
                if len(_IDLE) >= _KEPT:
                    return
                _IDLE.append(self)


_CHANGED = threading.Condition()  # guards the next three, and is never held while a folder is asked
_CALLS: list[Question[Any]] = []
_IDLE: list[_Helper] = []
_ROOTS: set[str] = set()
_HERE = threading.local()


def ask(root: str | Path, work: Callable[[], T]) -> Question[T]:
    """Begin to ask a root something, and remember it as a root. work: opens, lists or looks at files there.

    Its `result` is waited for later, so that several roots can be asked at once. Raises NoAnswer for a silent root.
    """
    root = _text(root)
    with _CHANGED:
        _ROOTS.add(root)
    return _begun(root, root, work)


def answered(path: str | Path, work: Callable[[], T]) -> T:
    """What `work` returns. It opens, lists or looks at `path` and what is near it.

    Work that takes long must call `sign` now and then. Within such work, a nested call just does its own work.
    Raises what `work` raises, and NoAnswer where the folder does not answer.
    """
    if _call_here() is not None:
        return work()
    return _begun(root_of(path), _text(path), work).result()


def each(
    paths: Iterable[Path],
    look: Callable[[Path], T],
    told: Callable[[Path, T], None] = lambda path, value: None,
) -> dict[Path, T]:
    """Path -> what `look` returns for it. Paths that do not answer are left out.

    Paths under one root are looked at by one thread. told: is called with each path and its value as it comes, on that
    thread. Raises what `look` raises.
    """
    roots: dict[Path, str] = {}
    batches: dict[str, _Batch[T]] = {}
    for path in paths:
        folder = path.parent
        if folder not in roots:
            roots[folder] = root_of(path)
        batches.setdefault(roots[folder], _Batch(look, told)).left.append(path)
    given: dict[Path, T] = {}
    for root, batch in batches.items():
        while batch.left:
            try:
                call = _begun(root, root, batch.run)
            except NoAnswer:
                break
            try:
                call.result()
            except NoAnswer:  # the path that it looked at is left out; another thread looks at the rest
                given |= batch.given
                batch = batch.without_what_hangs()
        given |= batch.given
    return given


class _Batch(Generic[T]):
    """Paths to look at, one after another. left: those still to come. given: path -> value, for those that are done."""

    def __init__(self, look: Callable[[Path], T], told: Callable[[Path, T], None]) -> None:
        self.left: deque[Path] = deque()
        self.given: dict[Path, T] = {}
        self._look, self._told = look, told
        self._ended = False

    def run(self) -> None:
        while self.left and not self._ended:
            path = self.left.popleft()
            if is_silent(path):
                continue
            sign(str(path))
            value = self._look(path)
            if not self._ended:
                self.given[path] = value
                self._told(path, value)

    def without_what_hangs(self) -> _Batch[T]:
        """End this batch, and return one with the paths that are left."""
        self._ended = True
        rest = _Batch(self._look, self._told)
        rest.left.extend(list(self.left))
        self.given = dict(self.given)
        return rest


def sign(at: str | None = None) -> None:
    """Give a sign of life: the folder has just answered something. at: the path that is looked at from now on.

    Does nothing outside of a question's work.
    """
    call = _call_here()
    if call is not None:
        call.signs += 1
        call.at = at or call.at


def silent(roots: Iterable[str | Path] | None = None) -> tuple[str, ...]:
    """The paths that do not answer at present: under these roots, or anywhere."""
    texts = None if roots is None else [_text(root) for root in roots]
    with _CHANGED:
        found = dict.fromkeys(call.at for call in _CALLS if call.hangs)
    return tuple(at for at in found if texts is None or any(_is_under(at, root) for root in texts))


def is_silent(path: str | Path) -> bool:
    """Whether a path is, or is under, one that does not answer at present. The path itself is not looked at."""
    hanging = silent()
    return bool(hanging) and any(_is_under(_text(path), at) for at in hanging)


def root_of(path: str | Path) -> str:
    """The root of a path: the innermost one given to `ask` that it is under, else its folder. Nothing is looked at."""
    text = _text(path)
    with _CHANGED:
        above = [root for root in _ROOTS if _is_under(text, root)]
    return max(above, key=len, default=os.path.dirname(text))


def _begun(root: str, at: str, work: Callable[[], T]) -> Question[T]:
    """A question whose work has been given to a thread. It may have to wait for others under its root first."""
    call = Question(root, at, work)
    with _CHANGED:
        enough = time.monotonic() + 2 * PATIENCE
        while True:
            beside = [other for other in _CALLS if other.root == root]
            if any(other.hangs and _is_under(at, other.at) for other in _CALLS):
                raise NoAnswer(at)
            if sum(other.hangs for other in beside) >= MOST:
                raise NoAnswer(root)
            # those that had a sign of life do not count: hashing a large file takes long, and must not hold up others
            if sum(not other.signs for other in beside) < MOST or time.monotonic() > enough:
                break
            _CHANGED.wait(_SLICE)
        _CALLS.append(call)
        helper = _IDLE.pop() if _IDLE else None
    try:
        if helper is None or not helper.is_alive():  # a forked process has none of its parent's
            helper = _Helper()
            helper.start()
        helper.give(call)
    except BaseException:
        with _CHANGED:
            _CALLS.remove(call)
        raise
    return call


def _call_here() -> Question[Any] | None:
    """The question that this thread works on; None on other threads."""
    return getattr(_HERE, "call", None)


def _text(path: str | Path) -> str:
    return os.path.abspath(path)


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
