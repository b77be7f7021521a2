"""The safety page promises nothing that no test holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "studio/web/SAFETY.md").read_text(encoding="utf-8")
PROMISED, _, NOT_PROMISED = PAGE.partition("\n## Not promised\n")
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
PROMISES = re.findall(r"^- (.*(?:\n  .*)*)", PROMISED, re.MULTILINE)


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED])
def test_the_tests_that_it_names_are_there(file: str, test: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert not test or test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_names_a_test(promise: str) -> None:
    assert "`tests/" in promise or promise.startswith("All logins share")


def test_what_is_not_promised_is_told_too() -> None:
    assert len(PROMISES) > 10
    assert len(re.findall(r"^- \*\*", NOT_PROMISED, re.MULTILINE)) >= 5


def test_the_page_is_linked_where_others_are_let_in() -> None:
    assert "(studio/web/SAFETY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
