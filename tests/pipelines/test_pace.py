"""The host prepares one call ahead of the device, and every call's seconds are told once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pipelines import pace
from pipelines.pace import Pace, moved


@dataclass
class Device:
    """Takes calls in and has done `done` of them, a second each; `waits`: how often it was waited for."""

    taken: int = 0
    done: int = 0
    waits: int = 0


@dataclass
class Mark:
    device: Device
    place: int = 0

    def record(self) -> None:
        self.place = self.device.taken

    def query(self) -> bool:
        return self.place <= self.device.done

    def synchronize(self) -> None:
        if not self.query():
            self.device.waits += 1
            self.device.done = self.place

    def elapsed_time(self, end: Mark) -> float:
        return 1000.0 * (end.place - self.place)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(pace, "_event", lambda: Mark(device))
    return device


def test_a_call_waits_for_the_one_before_the_last(device: Device) -> None:
    own, told = Pace(), []
    for call in range(5):
        with own.lap(torch.device("cuda"), told.append):
            assert device.done == max(call - 1, 0)
            device.taken += 1
    assert device.waits == 3
    assert told == [1.0] * 3


def test_what_the_device_has_done_is_told_without_waiting(device: Device) -> None:
    own, told = Pace(), []
    for _ in range(2):
        with own.lap(torch.device("cuda"), told.append):
            device.taken += 1
    own.settle()
    assert told == []
    device.done = 1
    own.settle()
    assert told == [1.0]
    device.done = 2
    own.settle()
    own.settle()
    assert told == [1.0, 1.0]
    assert device.waits == 0


def test_a_call_that_fails_is_not_told(device: Device) -> None:
    own, told = Pace(), []
    for kind in ("cuda", "cpu"):
        with pytest.raises(RuntimeError), own.lap(torch.device(kind), told.append):
            raise RuntimeError
    own.settle()
    assert told == []


def test_on_a_cpu_seconds_are_told_at_once() -> None:
    told: list[float] = []
    with Pace().lap(torch.device("cpu"), told.append):
        assert told == []
    assert len(told) == 1


def test_what_a_call_needs_goes_to_devices_that_are_no_cuda_devices_too() -> None:
    """ "meta" stands for Apple's GPUs: a device that is neither the host nor CUDA's."""
    assert moved(torch.tensor([1.0]), torch.device("meta")).device.type == "meta"
    host = torch.tensor([1.0])
    assert moved(host, torch.device("cpu")) is host
