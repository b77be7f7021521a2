"""Whatever a browser kept: a form is put back into the page, and nothing is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st

from pipelines.home import Home
from studio.jobs.gate import Trust
from studio.web.form.form import Form
from studio.web.form.kept import kept, put_back

from ....fuzzing import cases
from ....odd_values import anything, changed_values
from .test_kept import FORM

KEPT = json.loads(json.dumps(kept(FORM, "random-sdxl", "ann", ())))
OLD = {
    "format": 1,
    "user": "ann",
    "model": "",
    "prompt": "a fox",
    "negative": "",
    "seed": 7,
    "steps": 4,
    "guidance": 3.5,
    "width": 64,
    "height": 64,
    "scheduler": "Euler",
    "rescale": 0.0,
    "clip_skip": 0,
    "strength": 0.8,
    "method": "switch",
    "method_values": {"interval": 3},
    "rows": KEPT["rows"],
    "count": 1,
    "vae": "",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.resolve(tmp_path_factory.mktemp("home"))


@cases(ci=200, value=st.one_of(changed_values(KEPT, anything), changed_values(OLD, anything), anything))
def test_whatever_was_kept_becomes_a_form(own: Home, value: Any) -> None:
    found = put_back(value, "ann", own, Trust(), lambda names: ())
    if found is None:
        return
    assert isinstance(found.form, Form)
    json.dumps(kept(found.form, found.model, "ann", ()))
    assert all(len(note) < 1500 for note in found.notes)
    "".join(found.notes).encode()
