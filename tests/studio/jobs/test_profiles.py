"""A LoRA's profile is measured between the rounds of pictures, and leaves the model as it was."""

from __future__ import annotations

import pytest

from pipelines.errors import AdapterError, AdapterFileError
from studio.jobs.profiles import profile

from .conftest import PATIENCE, Studio, draft


def test_a_profile_is_measured_once_and_leaves_nothing_loaded(studio: Studio) -> None:
    name = "fox"
    first = profile(studio.worker, name, model=studio.model).result(PATIENCE)
    assert first.band in ("high", "low")
    assert len(first.change) == len(first.energy)
    calls = studio.count_calls()
    again = profile(studio.worker, name, model=studio.model).result(PATIENCE)
    assert again == first
    assert calls.count == 0
    assert studio.worker.model_state().adapters == ()
    view = studio.over(studio.ask("ann", draft("a fox", name)), "ann")
    assert not view.error


def test_what_cannot_be_profiled_is_named(studio: Studio) -> None:
    with pytest.raises(AdapterFileError, match="no-such"):
        profile(studio.worker, "no-such", model=studio.model)
    misfit = profile(studio.worker, "b-panda", model=studio.model)
    with pytest.raises(AdapterError):
        misfit.result(PATIENCE)
