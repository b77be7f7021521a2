"""Jobs from the gate to the saved picture, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from studio.jobs import JobState
from studio.metadata import read_picture

Drafts = Callable[..., Any]


def test_a_job_becomes_pictures_with_their_records(studio: Any, draft: Drafts) -> None:
    id = studio.ask("ann", draft("a fox", "fox", seed=7), draft("a hat <lora:hat:0.5>"), title="both")
    view = studio.over(id, "ann")
    assert (view.state, view.title, view.message) == (JobState.DONE, "both", "2 of 2 pictures done")
    first, second = view.pictures
    assert first.file is not None
    assert first.file.is_relative_to(studio.home.outputs)
    assert Image.open(first.file).size == (32, 32)
    assert read_picture(first.file).draft.values["seed"] == first.seed == 7
    assert second.record is not None
    assert second.record["seed"] == second.seed
    assert [use["name"] for use in second.record["adapters"]] == ["hat"]
