"""What a person at the terminal is told."""

from __future__ import annotations

import pytest

from studio.terminal.progress import Teller, duration


def test_a_long_run_says_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    with Teller().counting(10, 1, slow=True) as counter:
        counter.steps(1)
        counter.steps(1)
    assert capsys.readouterr().err.count(" left (") == 1
    assert [duration(seconds) for seconds in (40, 725, 12000)] == ["40 s", "12 min", "3 h 20 min"]
