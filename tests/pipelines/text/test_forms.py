"""The guide and the help list what prompts understand, and prompts understand what they list."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import Request
from pipelines.text.editing import wording
from pipelines.text.forms import FORMS, Form, forms_help
from pipelines.text.prompt import parse
from pipelines.text.tags import take_tags

GUIDE = Path(__file__).parents[3] / "pipelines" / "text" / "PROMPTS.md"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.example)
def test_a_form_stands_in_the_guide_and_in_the_help(form: Form) -> None:
    cells = [cell.replace("|", r"\|") for cell in (form.example, form.meaning, form.elsewhere or "the same")]
    assert f"| `{cells[0]}` | {cells[1]} | {cells[2]} |" in GUIDE.read_text(encoding="utf-8")
    assert form.example in forms_help()


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.example != "name"], ids=lambda form: form.example
)
def test_a_form_is_more_than_words(form: Form) -> None:
    text, tags = take_tags(Request(form.example).prompt)
    said = wording(text, None, 10)
    runs = [
        run
        for words in said.texts
        if words is not None
        for section in parse(words).sections
        for run in section
    ]
    plain = [run.text for run in runs] == [form.example] and all(run.weight == 1 for run in runs)
    assert tags or not plain


def test_the_guide_tells_where_a1111_counts_other_steps() -> None:
    [edit] = (form for form in FORMS if form.example == "[fox:cat:0.5]")
    assert all(word in edit.elsewhere for word in ("Heun", "DPM2", "model calls", "initial image"))
