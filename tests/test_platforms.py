"""The studio runs on Windows and macOS too: every call that is not the same everywhere is listed here, with what guards
it. A new one fails until it has another way, a test, and its line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("composers", "pipelines", "studio")

GUARDED = {
    ("pipelines/checkpoints/weights.py", "/sys/fs/cgroup/memory.current"): "OSError: no container's limit",
    ("pipelines/checkpoints/weights.py", "/sys/fs/cgroup/memory.max"): "OSError: no container's limit",
    (
        "pipelines/checkpoints/weights.py",
        "/sys/fs/cgroup/memory.stat",
    ): "read only where the two others are there",
    ("pipelines/home/files.py", "os.link"): "without hard links an empty file takes the name first",
    ("pipelines/home/files.py", "os.O_RDONLY"): "there everywhere; the other flags where the system has them",
    ("pipelines/home/files.py", "os.open"): "of a regular file, with O_BINARY on Windows",
    ("pipelines/home/files.py", "os.replace"): "tried again while Windows refuses it because of a reader",
    ("pipelines/home/scanning.py", "os.readlink"): "OSError: the link is left out",
    ("pipelines/memory.py", "/sys/fs/cgroup"): "OSError: no container's limit",
    ("pipelines/memory.py", "ctypes"): "None where libc has no malloc_trim",
    ("studio/terminal/stdout.py", "os.O_WRONLY"): "there everywhere",
    ("studio/terminal/stdout.py", "os.dup2"): "there everywhere",
    ("studio/terminal/stdout.py", "os.open"): "of os.devnull, which every system has",
    ("studio/web/door/files.py", ".chmod"): "without effect on Windows, where the home is the user's own",
    ("studio/web/server.py", "socket.SO_REUSEADDR"): "SO_EXCLUSIVEADDRUSE where there is one",
}
"""(file, call) -> why it is harmless elsewhere."""

MODULES = {
    *(
        "crypt",
        "ctypes",
        "curses",
        "fcntl",
        "grp",
        "msvcrt",
        "nis",
        "posix",
        "pty",
        "pwd",
        "readline",
        "resource",
    ),
    *("spwd", "syslog", "termios", "tty", "winreg", "_winapi"),
}
"""Modules that are not everywhere, or whose content is not."""
IN_OS = """
chmod chown chroot confstr copy_file_range ctermid dup2 eventfd fchdir fchmod fchown fdatasync fork
forkpty fstatvfs get_blocking getegid geteuid getgid getgroups getloadavg getpgid getpgrp getpriority
getresuid getsid getuid getxattr initgroups kill killpg lchown link listxattr lockf memfd_create
mkdirat mkfifo mknod nice open openpty pipe2 posix_fadvise posix_fallocate posix_spawn pread pwrite
readlink register_at_fork rename replace sched_getaffinity sched_setaffinity sched_yield sendfile
set_blocking setegid seteuid setgid setpgid setpriority setsid setuid setxattr splice startfile
statvfs symlink sync sysconf system tcgetpgrp ttyname umask uname wait wait3 wait4 waitid waitpid
"""
"""Functions of `os` that are missing somewhere, or do something else there."""
IN_OS_BY_PREFIX = ("O_", "sched_", "posix_", "WIF", "WEXIT", "WNOHANG", "EX_", "P_", "spawn", "exec")
ELSEWHERE = {
    "signal": {"SIGINT", "SIGTERM", "SIGABRT", "Signals", "signal", "getsignal", "default_int_handler"},
}
"""Modules of which only these names are everywhere."""
IN_OTHERS = {
    "socket": {"AF_UNIX", "SO_REUSEADDR", "SO_REUSEPORT", "SCM_RIGHTS", "send_fds", "recv_fds", "fromfd"},
    "select": {"poll", "epoll", "kqueue", "devpoll"},
    "time": {"tzset", "pthread_getcpuclockid", "clock_gettime", "clock_settime", "CLOCK_MONOTONIC"},
    "shutil": {"chown"},
    "threading": {"get_native_id"},
    "asyncio": {"open_unix_connection", "start_unix_server", "SafeChildWatcher", "ThreadedChildWatcher"},
    "tempfile": {"NamedTemporaryFile"},
    "platform": {"libc_ver", "freedesktop_os_release"},
}
"""Names of other modules that are missing somewhere, or do something else there. Windows does not let a second reader
open a NamedTemporaryFile."""
METHODS = {
    *(
        "add_signal_handler",
        "remove_signal_handler",
        "chmod",
        "lchmod",
        "symlink_to",
        "hardlink_to",
        "link_to",
    ),
    *("owner", "group", "is_mount", "create_unix_server", "create_unix_connection", "rename", "send_signal"),
}
"""Methods of the same kind, whosever they are."""
ARGUMENTS = {"preexec_fn", "start_new_session", "pass_fds", "process_group", "dir_fd", "shell"}
FOLDERS = ("/proc", "/sys/", "/dev/", "/tmp", "/etc/", "/usr/", "/var/", "/run/", "/bin/")


def found_in(source: str) -> Iterator[str]:
    """What a module's text names that is not the same on all systems."""
    tree = ast.parse(source)
    said = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in MODULES:
                    yield module
                yield from (f"{module}.{alias.name}" for alias in names if differs(module, alias.name))
            case ast.Attribute(value=ast.Name(id=module), attr=name) if differs(module, name):
                yield f"{module}.{name}"
            case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS:
                yield f".{name}"
            case ast.Call(
                func=ast.Name(id="getattr"), args=[ast.Name(id=module), ast.Constant(value=str(name)), *_]
            ):
                if differs(module, name) and len(node.args) == 2:
                    yield f"{module}.{name}"
            case ast.Constant(value=str(text)) if text.startswith(FOLDERS) and id(node) not in said:
                yield text
        if isinstance(node, ast.Call):
            yield from (f"{word.arg}=" for word in node.keywords if word.arg in ARGUMENTS)
            yield from by_the_locale(node)


def differs(module: str, name: str) -> bool:
    if module == "os":
        return name in IN_OS.split() or name.startswith(IN_OS_BY_PREFIX)
    if module in ELSEWHERE:
        return name not in ELSEWHERE[module]
    return name in IN_OTHERS.get(module, ())


def by_the_locale(call: ast.Call) -> Iterator[str]:
    """Texts that are read or written in the system's own encoding, which on Windows is not UTF-8."""
    words = {word.arg for word in call.keywords}
    if "encoding" in words or None in words:
        return
    match call.func:
        case ast.Attribute(value=owner, attr="read_text" | "write_text" as name):
            # `files.read_text` and its like are ours: they read UTF-8
            if not (isinstance(owner, ast.Name) and owner.id in ("files", "plain")):
                yield f".{name}"
        case (
            ast.Name(id="open")
            | ast.Attribute(attr="open" | "fdopen" | "TextIOWrapper" | "NamedTemporaryFile")
        ):
            given = [*call.args[:2], *(word.value for word in call.keywords if word.arg == "mode")]
            texts = [one.value for one in given if isinstance(one, ast.Constant)]
            modes = [text for text in texts if isinstance(text, str) and re.fullmatch("[rwaxbt+]{1,4}", text)]
            plain = not modes and isinstance(call.func, ast.Name) and len(call.args) == 1
            if plain or (modes and not any("b" in mode for mode in modes)):
                yield "open"
        case ast.Attribute(value=ast.Name(id="subprocess")):
            if words & {"text", "universal_newlines"}:
                yield "subprocess"


def files() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_every_call_that_differs_between_systems_is_listed() -> None:
    found = {
        (file.relative_to(ROOT).as_posix(), call)
        for file in files()
        for call in found_in(file.read_text(encoding="utf-8"))
    }
    assert not sorted(found - GUARDED.keys()), (
        "give it another way for Windows, a test, and a line in GUARDED"
    )
    assert not sorted(GUARDED.keys() - found), "it is gone: take its line away"


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("import fcntl", "fcntl"),
        ("def f():\n    import resource", "resource"),
        ("from os import geteuid", "os.geteuid"),
        ("import os\nos.fork()", "os.fork"),
        ("import os\nos.kill(pid, 9)", "os.kill"),
        ("import os\nx = getattr(os, 'statvfs')", "os.statvfs"),
        ("import os\nos.open(path, os.O_NOFOLLOW)", "os.O_NOFOLLOW"),
        ("import os\nos.sched_getaffinity(0)", "os.sched_getaffinity"),
        ("import os\nos.rename(one, other)", "os.rename"),
        ("import signal\nsignal.SIGKILL", "signal.SIGKILL"),
        ("from signal import SIGHUP", "signal.SIGHUP"),
        ("import signal\nsignal.alarm(3)", "signal.alarm"),
        ("import socket\nsocket.AF_UNIX", "socket.AF_UNIX"),
        ("import select\nselect.poll()", "select.poll"),
        ("import time\ntime.tzset()", "time.tzset"),
        ("loop.add_signal_handler(2, stop)", ".add_signal_handler"),
        ("path.symlink_to(other)", ".symlink_to"),
        ("path.chmod(0o600)", ".chmod"),
        ("run(words, start_new_session=True)", "start_new_session="),
        ("run(words, shell=True)", "shell="),
        ("Path('/proc/self/status')", "/proc/self/status"),
        ("file = '/dev/null'", "/dev/null"),
        ("path.read_text()", ".read_text"),
        ("path.write_text(text)", ".write_text"),
        ("open(path)", "open"),
        ("open(path, 'w')", "open"),
        ("path.open('a')", "open"),
        ("import subprocess\nsubprocess.run(words, text=True)", "subprocess"),
    ],
)
def test_such_calls_are_seen(source: str, call: str) -> None:
    assert call in set(found_in(source))


@pytest.mark.parametrize(
    "source",
    [
        '"""/proc is described here."""',
        "import os\nflags = getattr(os, 'O_NONBLOCK', 0)",
        "open(path, 'rb')",
        "path.open('a+b')",
        "path.write_text(text, encoding='utf-8')",
        "import signal\nsignal.signal(signal.SIGINT, note)",
        "text.replace('a', 'b')",
    ],
)
def test_others_are_not(source: str) -> None:
    assert not list(found_in(source))
