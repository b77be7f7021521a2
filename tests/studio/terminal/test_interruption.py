"""Ctrl+C is noted wherever it comes."""

from __future__ import annotations

import signal

import pytest

from studio.terminal.interruption import noting_interrupts


class Unlucky:
    """Is interrupted while it is taken down, where Python drops what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_one_that_python_drops_is_noted() -> None:
    with noting_interrupts(at_once=True) as stopped:
        Unlucky()
        assert stopped


def test_at_once_it_interrupts_as_always() -> None:
    with noting_interrupts(at_once=True) as stopped, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stopped


def test_between_steps_only_a_second_one_interrupts() -> None:
    with noting_interrupts(at_once=False) as stopped:
        signal.raise_signal(signal.SIGINT)
        assert stopped
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_afterwards_all_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noting_interrupts(at_once=True):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
