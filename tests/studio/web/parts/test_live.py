"""Live drafts: a newer one of a page takes the place of the one before it, and few are kept."""

from __future__ import annotations

from typing import Any

from studio.drafts.draft import Draft
from studio.jobs import LIVE, JobState
from studio.web.parts.live import KEPT, Drafts


def begin(drafts: Drafts, running: Any, page: str, steps: int = 3) -> str:
    values = {"prompt": "a fox", "steps": steps, "width": 32, "height": 32, "seed": 1}
    return drafts.begin(
        page, "ann", lambda: running.worker.submit("ann", [Draft(values)], model=running.model, kind=LIVE)
    )


def over(running: Any, job: str) -> JobState:
    view = running.worker.view(job, "ann")
    while not view.state.over:
        running.worker.wait(running.worker.version, 5)
        view = running.worker.view(job, "ann")
    return view.state


def test_a_newer_draft_ends_the_one_before_it_and_no_other_pages(running: Any) -> None:
    drafts = Drafts(running.worker)
    elsewhere = begin(drafts, running, "other page", steps=60)
    first = begin(drafts, running, "page", steps=500)
    second = begin(drafts, running, "page")
    assert over(running, first) is JobState.CANCELLED
    assert over(running, second) is JobState.DONE
    assert over(running, elsewhere) is JobState.DONE


def test_the_files_of_earlier_drafts_go(running: Any) -> None:
    drafts = Drafts(running.worker)
    jobs = []
    for _ in range(KEPT + 2):
        jobs.append(begin(drafts, running, "page"))
        assert over(running, jobs[-1]) is JobState.DONE
    views = [running.worker.view(job, "ann") for job in jobs]
    assert [view is None for view in views] == [True, True, False, False, False]
    assert all(view.pictures[0].file.is_file() for view in views if view is not None)
