"""A machine without Chromium."""

from __future__ import annotations

from typing import Any

import pytest


def test_browser_tests_skip_and_say_why_and_fail_under_ci(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = request.config.pluginmanager.get_plugins()
    here: Any = next(each for each in plugins if hasattr(each, "NO_CHROMIUM"))
    monkeypatch.setattr(here, "chromium", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    here.pytest_runtest_setup(request.node)  # not of a browser
    request.node.add_marker("browser")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        here.pytest_runtest_setup(request.node)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        here.pytest_runtest_setup(request.node)
