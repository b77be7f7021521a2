"""The Frequency page: how LoRAs change a picture's high frequencies, step by step, and which band that puts them in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from composers.shown import shown
from pipelines import spectrum
from pipelines.errors import RequestError
from pipelines.spectrum import Profile
from studio.jobs.profiles import profile
from studio.web.parts.desk import Desk, who
from studio.web.parts.job_viewer import Viewer
from studio.web.waiting import Waits, worker_result

WAIT = 1800.0
"""Most seconds that a measurement may take, including the wait for its turn."""
MOST = 8
"""Most LoRAs that are measured at once."""


def add(desk: Desk, viewer: Viewer) -> None:
    """Draws the page into the current blocks."""
    gr.Markdown(
        "A LoRA is measured in a few short runs with and without it. Those that change high frequencies early "
        "(**high** band) dominate early in CMLoRA, the others late. Measured once, then remembered.",
        elem_classes="small-note",
    )
    with gr.Row():
        names = gr.Dropdown(
            [], multiselect=True, max_choices=MOST, label="LoRAs", scale=5, elem_id="profile-names"
        )
        measure = gr.Button("Measure", variant="primary", scale=1, elem_id="profile")
    plot = gr.Image(
        label="Change of high frequencies",
        type="filepath",
        interactive=False,
        elem_id="profile-plot",
        format="png",
    )

    waits = Waits()

    async def measured(
        names: Sequence[str],
        model: str,
        browser: str | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> str:
        if not names:
            raise RequestError("choose at least one LoRA")
        if len(names) > MOST:
            raise RequestError(
                f"{len(names)} LoRAs are more than are measured at once ({MOST}); leave some out"
            )
        source = await run_in_threadpool(desk.chosen, model)

        async def measure_all() -> dict[str, Profile]:
            found = {}
            for place, name in enumerate(names):
                progress((place, len(names)), desc=f"measuring {name}")
                found[name] = await worker_result(partial(profile, desk.worker, name, model=source))
            return found

        what = f"the measurement of {', '.join(map(shown, names))} for {shown(source)}"
        found = await waits.of(who(browser, request), what, measure_all, WAIT)
        return await run_in_threadpool(drawn, source, names, found)

    def drawn(source: str, names: Sequence[str], found: Mapping[str, Profile]) -> str:
        mark = hashlib.sha256("|".join([source, *names]).encode()).hexdigest()[:16]
        file = desk.worker.home.made(desk.worker.home.cache / "web") / f"profile-{mark}.png"
        spectrum.plot(found, file)
        return str(file)

    measure.click(
        measured, [names, desk.model, desk.browser], plot, concurrency_limit=None, api_visibility="private"
    )

    def offered(model: str) -> dict[Any, Any]:
        return {names: gr.Dropdown(choices=[card.name for card in desk.fitting(model)])}

    viewer.on_model(offered, desk.model, [names])
