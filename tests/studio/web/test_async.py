"""What runs on the server's own thread: nothing there may wait for the database, or everybody waits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import studio.web

FILES = sorted(Path(studio.web.__file__).parent.rglob("*.py"))
AT_ONCE = {"discreet", "model_state"}
"""Calls that look into memory alone."""
HANDED_OVER = {"run_in_threadpool", "to_thread", "partial"}
"""What takes a function and calls it on another thread, or later."""


def name_of(called: ast.expr) -> str:
    return (
        called.attr
        if isinstance(called, ast.Attribute)
        else called.id
        if isinstance(called, ast.Name)
        else ""
    )


def is_worker(value: ast.expr) -> bool:
    return name_of(value) in ("worker", "_worker")


def coroutines(source: str) -> list[ast.AsyncFunctionDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AsyncFunctionDef)]


def own_calls(function: ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """The calls that a coroutine makes itself; a function in it is called elsewhere."""
    left = list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Call):
            yield node
        left += ast.iter_child_nodes(node)


def calls_at_once(source: str) -> list[str]:
    """Calls of the worker, and of functions that are given one, which a coroutine makes without handing them over."""
    later = HANDED_OVER | {
        function.name for file in FILES for function in coroutines(file.read_text("utf-8"))
    }
    found = []
    for function in coroutines(source):
        for call in own_calls(function):
            of_worker = isinstance(call.func, ast.Attribute) and is_worker(call.func.value)
            given = any(is_worker(argument) for argument in call.args)
            if (of_worker and name_of(call.func) not in AT_ONCE) or (
                given and name_of(call.func) not in later
            ):
                found.append(f"{function.name}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_no_coroutine_asks_the_worker_itself(file: Path) -> None:
    assert calls_at_once(file.read_text(encoding="utf-8")) == []


def test_a_call_at_once_is_found_and_one_on_a_thread_is_not() -> None:
    source = """
async def look(worker, owner):
    def later():
        worker.heads(owner)
    await run_in_threadpool(worker.head, "a", owner)
    await asyncio.to_thread(pictures.progress, worker, owner)
    desk.worker.view("a", owner)
    shown(worker)
"""
    assert calls_at_once(source) == ["look: shown(worker)", "look: desk.worker.view('a', owner)"]
