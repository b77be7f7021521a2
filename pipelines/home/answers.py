"""Folders that may not answer. A network share that went away holds whoever asks for a file, for minutes, in a call
that nothing can end. So the files of users are asked for on threads of their own, and whoever asks waits for
PATIENCE seconds without a sign of life.

    path -> its root -> at most MOST calls that wait for a first sign of life -> the answer, or NoAnswer

While a call hangs, what it looks at is silent, with all below: further calls are refused at once, so that no thread is
spent on it. Where MOST calls hang under one root, all of it is silent. It answers again as soon as they end.
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
"""Seconds without a sign of life after which a folder counts as one that does not answer."""
MOST = 4
"""Calls under one root at a time that had no sign of life yet, so that few threads hang when it goes away."""

_SLICE = 0.05  # seconds; waiting is counted in these, so that a process that stood still blames no folder
_KEPT = 4  # helpers that wait for further work

T = TypeVar("T")


class NoAnswer(SetupError):
    """A folder, or a file, does not answer. at: which."""

    def __init__(self, at: str) -> None:
        super().__init__(
            f"the folder {at} does not answer; see to the drive or the network it lies on, then try again"
        )
        self.at = at


class Question(Generic[T]):
    """Something that is asked of a root. at: what it looks at now; hangs: whoever asked gave it up, and it goes on."""

    def __init__(self, root: str, at: str, work: Callable[[], T]) -> None:
        self.root, self.at = root, at
        self.hangs = False
        self.signs = 0
        self._work = work
        self._over = threading.Event()
        self._answer: list[T] = []
        self._error: BaseException | None = None

    def result(self) -> T:
        """The answer. Raises what the work raised, and NoAnswer where nothing moves."""
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
        """On a thread that may hang."""
        _HERE.call = self
        try:
            self._answer.append(self._work())
        except BaseException as error:  # it belongs to whoever asked
            self._error = error
        finally:
            _HERE.call = None
            with _CHANGED:
                self._over.set()
                self.hangs = False
                _CALLS.remove(self)
                _CHANGED.notify_all()


class _Helper(threading.Thread):
    """A thread that may hang; it does one thing after another and holds up no end of the program."""

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


_CHANGED = threading.Condition()  # guards the three below, and is never held while a folder is asked
_CALLS: list[Question[Any]] = []
_IDLE: list[_Helper] = []
_ROOTS: set[str] = set()
_HERE = threading.local()


def ask(root: str | Path, work: Callable[[], T]) -> Question[T]:
    """Begins to ask a root that files are listed under, for `work` that opens, lists or looks at files there; its
    `result` is waited for later, so that several roots can be asked at once. Raises NoAnswer for a silent one."""
    root = _text(root)
    with _CHANGED:
        _ROOTS.add(root)
    return _begun(root, root, work)


def answered(path: str | Path, work: Callable[[], T]) -> T:
    """What `work` gives, which opens, lists or looks at `path` and what lies near it. Raises NoAnswer where nothing
    comes.

    Work that takes long calls `sign` now and then. Within such work, further calls are simply made.
    """
    if _call_here() is not None:
        return work()
    return _begun(root_of(path), _text(path), work).result()


def each(
    paths: Iterable[Path],
    look: Callable[[Path], T],
    told: Callable[[Path, T], None] = lambda path, value: None,
) -> dict[Path, T]:
    """What `look` gives for each path, those under one root on one thread. What does not answer is left out.

    told: is called with each, as it comes. Raises what `look` raises.
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
            except NoAnswer:  # what it looked at is left out, and the rest is looked at by another thread
                given |= batch.given
                batch = batch.without_what_hangs()
        given |= batch.given
    return given


class _Batch(Generic[T]):
    """Paths to be looked at one after another. left: to be looked at; given: what came of the others."""

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
        self._ended = True
        rest = _Batch(self._look, self._told)
        rest.left.extend(list(self.left))
        self.given = dict(self.given)
        return rest


def sign(at: str | None = None) -> None:
    """A sign of life: a folder has just answered something. at: what is looked at from now on."""
    call = _call_here()
    if call is not None:
        call.signs += 1
        call.at = at or call.at


def silent(roots: Iterable[str | Path] | None = None) -> tuple[str, ...]:
    """What does not answer at present: under some roots, or anywhere."""
    texts = None if roots is None else [_text(root) for root in roots]
    with _CHANGED:
        found = dict.fromkeys(call.at for call in _CALLS if call.hangs)
    return tuple(at for at in found if texts is None or any(_is_under(at, root) for root in texts))


def is_silent(path: str | Path) -> bool:
    """Whether a path lies under what does not answer at present. The path itself is not looked at."""
    hanging = silent()
    return bool(hanging) and any(_is_under(_text(path), at) for at in hanging)


def root_of(path: str | Path) -> str:
    """The root that a path lies under: one that was listed, else the folder it lies in. It is not looked at."""
    text = _text(path)
    with _CHANGED:
        above = [root for root in _ROOTS if _is_under(text, root)]
    return max(above, key=len, default=os.path.dirname(text))


def _begun(root: str, at: str, work: Callable[[], T]) -> Question[T]:
    call = Question(root, at, work)
    with _CHANGED:
        enough = time.monotonic() + 2 * PATIENCE
        while True:
            beside = [other for other in _CALLS if other.root == root]
            if any(other.hangs and _is_under(at, other.at) for other in _CALLS):
                raise NoAnswer(at)
            if sum(other.hangs for other in beside) >= MOST:
                raise NoAnswer(root)
            # those that had a sign of life may take long: whoever hashes large files holds up nobody
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
    """What this thread works on, where it is a helper."""
    return getattr(_HERE, "call", None)


def _text(path: str | Path) -> str:
    return os.path.abspath(path)


def _is_under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
