"""What a page is sent while it looks, and again where an answer was lost."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from studio.web.parts.desk import Desk
from studio.web.parts.job_line import only_new
from studio.web.parts.job_viewer import Viewer


class NoWorker:
    """Nobody looks."""


def kept(sent: Any) -> bool:
    return isinstance(sent, dict) and sent.get("__type__") == "update" and len(sent) == 1


def test_what_did_not_change_is_not_sent_again_and_what_was_lost_is() -> None:
    line, count, seen = only_new(("running", 1), ("running", 1), "")
    assert (line, count) == ("running", 1)
    line, count, after = only_new(("running", 2), ("running", 2), seen)
    assert kept(line)
    assert count == 2
    again = only_new(("running", 2), ("running", 2), seen)  # the page holds the old marks: no answer came
    assert again[1] == 2
    assert kept(only_new(("running", 2), ("running", 2), after)[1])
    assert only_new(("a", "b"), ("a", "b"), "nonsense from elsewhere")[:2] == ("a", "b")


def test_another_model_is_told_once_and_again_until_the_page_holds_it() -> None:
    with gr.Blocks(analytics_enabled=False) as pages:
        choice = gr.Dropdown([], label="Choice")
        model = gr.State("tiny")
        worker: Any = NoWorker()
        desk = Desk(worker, worker, worker, gr.BrowserState(""), gr.BrowserState(None), model, gr.State(True))
        viewer = Viewer.drawn(desk, gr.Button("Stop"))
        asked: list[str] = []

        def choices(model: str) -> dict[Any, Any]:
            asked.append(model)
            if len(asked) == 1:
                raise OSError("the disk sleeps")
            return {choice: gr.Dropdown(choices=["fox"])}

        viewer.on_model(choices, model, [choice])
    [push] = [each for each in pages.fns.values() if choice in each.outputs]
    assert push.queue is False
    assert {event for _, event in push.targets} == {"change"}
    told = push.outputs[-1]
    answer: Any = push.fn
    with pytest.raises(OSError, match="the disk sleeps"):
        answer("tiny here", "", "tiny")
    assert answer("tiny here", "", "tiny")[told] == "tiny here"
    assert answer("tiny here", "tiny here", "tiny") == {told: "tiny here"}
    assert asked == ["tiny", "tiny"]
    assert answer("other here", "tiny here", "other").keys() == {choice, told}
