"""The Gallery page: all finished pictures with their records, what can be done with one, and settings from dropped
files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.errors import RequestError
from studio.drafts.draft import Draft
from studio.drafts.entries import read_draft
from studio.jobs import GalleryPicture, JobView
from studio.pictures.restore import restore
from studio.web.form.components import Fields
from studio.web.form.form import form_of, left_out, whole
from studio.web.form.job_file import FILE, job_file, written
from studio.web.parts.desk import Desk, plain, who, whose_files
from studio.web.parts.job_viewer import Viewer
from studio.web.parts.submit import submit

SHOWN = 60
"""Pictures on one page."""


@dataclass(frozen=True)
class GalleryWays:
    """Where the page's buttons lead. compose, compare: ids of tabs. compared: the viewer of the Compare page."""

    tabs: gr.Tabs
    compose: str
    compare: str
    compared: Viewer


@dataclass(frozen=True)
class _Page:
    """The page's controls. shown: the pictures on it. chosen: the place of the chosen one, -1 for none. sure: asks
    before a picture is deleted."""

    search: gr.Textbox
    number: gr.Number
    refresh: gr.Button
    pictures: gr.Gallery
    everything: gr.DownloadButton
    job_file: gr.DownloadButton
    dropped: gr.File
    note: gr.HTML
    reuse: gr.Button
    start: gr.Button
    who_did: gr.Button
    delete: gr.Button
    sure: gr.Row
    for_good: gr.Button
    keep: gr.Button
    record: gr.JSON
    shown: gr.State
    chosen: gr.State

    @classmethod
    def drawn(cls) -> _Page:
        """Draws them into the current blocks."""
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=340):
                with gr.Row():
                    search = gr.Textbox(
                        label="Search", placeholder="words of the prompt, a LoRA, a method", scale=4
                    )
                    number = gr.Number(1, label="Page", precision=0, minimum=1, scale=1)
                    refresh = gr.Button("Refresh", scale=1, elem_id="gallery-refresh")
                pictures = gr.Gallery(
                    label="Your pictures", columns=4, object_fit="contain", height=640, preview=False,
                    elem_id="gallery", format="png",
                )  # fmt: skip
                with gr.Row():
                    everything = gr.DownloadButton("Download all shown", elem_id="download-all")
                    job_file = gr.DownloadButton("Turn into a job file", elem_id="job-file")
            with gr.Column(scale=5, min_width=320):
                dropped = gr.File(
                    label="Drop a picture to take its settings (LoRA Studio, A1111, ComfyUI, InvokeAI)",
                    type="filepath",
                    file_types=["image"],
                    height=110,
                    elem_id="drop",
                )
                note = gr.HTML(elem_id="restored", elem_classes="live", container=False)
                with gr.Row():
                    reuse = gr.Button("Reuse settings", variant="primary", elem_id="reuse")
                    start = gr.Button("Start from it", elem_id="start-from-it")
                    who_did = gr.Button("Who did this?", elem_id="gallery-who-did-this")
                    delete = gr.Button("Delete", elem_id="delete")
                with gr.Row(visible=False) as sure:
                    gr.Markdown("The picture's file goes too.", elem_classes="small-note")
                    for_good = gr.Button("Delete it for good", variant="stop", elem_id="delete-for-good")
                    keep = gr.Button("Keep it")
                record = gr.JSON(label="Its record", elem_id="record", max_height=520)
        return cls(
            search, number, refresh, pictures, everything, job_file, dropped, note, reuse, start, who_did, delete,
            sure, for_good, keep, record, gr.State(()), gr.State(-1),
        )  # fmt: skip


def add(desk: Desk, fields: Fields, here: gr.Tab, ways: GalleryWays) -> None:
    """Draws the page into the current blocks. here: its tab."""
    page = _Page.drawn()
    _show(desk, page, here)
    _take_settings(desk, fields, page, ways)
    _ask_who_did(desk, page, ways)
    _take_away(desk, page)


def _show(desk: Desk, page: _Page, here: gr.Tab) -> None:
    """Wires the list of pictures, the record of the chosen one, and its deletion."""

    def listed(search: str, number: float, browser: str | None, request: gr.Request) -> tuple[Any, ...]:
        offset = (whole(number or 1, "page", 1, 1_000_000) - 1) * SHOWN
        found = desk.worker.pictures(who(browser, request), limit=SHOWN, offset=offset, search=search or "")
        found = [picture for picture in found if picture.file.is_file()]
        files = [(str(picture.file), _caption(picture)) for picture in found]
        return gr.Gallery(files, selected_index=None), tuple(found), -1, None, gr.Row(visible=False)

    inputs = [page.search, page.number, desk.browser]
    outputs = [page.pictures, page.shown, page.chosen, page.record, page.sure]
    gr.on(
        [here.select, page.refresh.click, page.search.submit, page.number.change],
        listed,
        inputs,
        outputs,
        show_progress="hidden",
        api_visibility="private",
    )

    def select(event: gr.SelectData, shown: Sequence[GalleryPicture]) -> tuple[Any, ...]:
        place = int(event.index)
        return place, dict(shown[place].record) if place < len(shown) else None, gr.Row(visible=False)

    page.pictures.select(
        select,
        page.shown,
        [page.chosen, page.record, page.sure],
        show_progress="hidden",
        api_visibility="private",
    )

    def doubted(shown: Sequence[GalleryPicture], chosen: int) -> Any:
        _picked(shown, chosen)
        return gr.Row(visible=True)

    def deleted(
        shown: Sequence[GalleryPicture], chosen: int, search: str, number: float, browser: str | None,
        request: gr.Request,
    ) -> tuple[Any, ...]:  # fmt: skip
        picture = _picked(shown, chosen)
        desk.worker.delete_picture(picture.job, picture.index, who(browser, request))
        return listed(search, number, browser, request)

    page.delete.click(
        doubted, [page.shown, page.chosen], page.sure, show_progress="hidden", api_visibility="private"
    )
    page.keep.click(
        lambda: gr.Row(visible=False), None, page.sure, show_progress="hidden", api_visibility="private"
    )
    page.for_good.click(
        deleted,
        [page.shown, page.chosen, *inputs],
        outputs,
        show_progress="hidden",
        api_visibility="private",
    )


def _take_settings(desk: Desk, fields: Fields, page: _Page, ways: GalleryWays) -> None:
    """Wires what puts the settings of the chosen picture, or of a dropped file, into the Compose form."""

    def fill(
        draft: Draft, vae: str | None, structure: int, model: str, request: gr.Request
    ) -> dict[Any, Any]:
        owner = whose_files(request)
        filled = fields.filled(form_of(draft, vae), structure, lambda file: desk.files.lent(file, owner))
        return {**filled, desk.model: model, ways.tabs: gr.Tabs(selected=ways.compose)}

    filled: list[Any] = [*fields.changed, desk.model, ways.tabs]

    def reused(got: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        draft, job = _asked_by(desk, got[page.shown], got[page.chosen], got[desk.browser], request)
        return fill(draft, job.vae, got[fields.structure], job.model, request)

    def started(got: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The chosen picture becomes the one to start from, with its own settings; it is drawn anew with a new seed."""
        draft, job = _asked_by(desk, got[page.shown], got[page.chosen], got[desk.browser], request)
        file = _picked(got[page.shown], got[page.chosen]).file
        draft = replace(draft.with_value("seed", None), images={"init_image": file})
        return fill(draft, job.vae, got[fields.structure], job.model, request)

    for button, filling in ((page.reuse, reused), (page.start, started)):
        button.click(
            filling,
            {page.shown, page.chosen, fields.structure, desk.browser},
            filled,
            api_visibility="private",
        )

    def taken(got: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        if got[page.dropped] is None:
            return {page.note: ""}
        found = restore(Path(got[page.dropped]), desk.worker.home, desk.worker.library)
        lines = [f"missing: {one}" for one in found.missing] + list(found.notes)
        model = found.model or got[desk.model]
        return {
            **fill(found.draft, found.vae, got[fields.structure], model, request),
            ways.tabs: gr.skip() if lines else gr.Tabs(selected=ways.compose),
            page.note: plain(f"Settings of a picture by {found.program}, put into Compose.", lines),
        }

    page.dropped.upload(
        taken, {page.dropped, fields.structure, desk.model}, [*filled, page.note], api_visibility="private"
    )


def _ask_who_did(desk: Desk, page: _Page, ways: GalleryWays) -> None:
    """Wires the button that draws the chosen picture's mix on the Compare page, with each LoRA left out in turn."""

    def ask(
        shown: Sequence[GalleryPicture], chosen: int, browser: str | None, request: gr.Request
    ) -> tuple[Any, ...]:
        draft, job = _asked_by(desk, shown, chosen, browser, request)
        form = form_of(draft, job.vae)
        id = submit(desk, who(browser, request), form, left_out(form), job.model, "leave-one-out")
        return id, gr.Tabs(selected=ways.compare)

    page.who_did.click(
        ask,
        [page.shown, page.chosen, desk.browser],
        [ways.compared.job, ways.tabs],
        trigger_mode="multiple",
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )


def _asked_by(
    desk: Desk, shown: Sequence[GalleryPicture], chosen: int, browser: str | None, request: gr.Request
) -> tuple[Draft, JobView]:
    """The draft of the chosen picture, and its job. Raises RequestError."""
    picture = _picked(shown, chosen)
    job = desk.worker.view(picture.job, who(browser, request))
    if job is None:
        raise RequestError("the picture was deleted meanwhile; press Refresh")
    return read_draft(picture.draft, ""), job


def _take_away(desk: Desk, page: _Page) -> None:
    """Wires the downloads: all shown pictures with their metadata, and a job file."""

    def zipped(pictures: Sequence[GalleryPicture], request: gr.Request) -> str:
        if not pictures:
            raise RequestError("there is no picture here yet; press Refresh, or draw one")
        file = desk.files.place("pictures.zip", whose_files(request))
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for number, picture in enumerate(pictures, 1):
                archive.write(picture.file, f"{number:03d}_{picture.file.name}")
        return str(file)

    def as_job_file(pictures: Sequence[GalleryPicture], chosen: int, request: gr.Request) -> str:
        """The chosen picture, or all shown ones, as a job file that `lora-studio batch` renders."""
        picked = [_picked(pictures, chosen)] if chosen >= 0 else list(pictures)
        if not picked:
            raise RequestError("there is no picture here yet; press Refresh, or draw one")
        drafts = [read_draft(picture.draft, "") for picture in picked]
        place = desk.files.place(FILE, whose_files(request))
        models = [str(picture.record["model"]) for picture in picked]
        return written(job_file(drafts, models, paths=desk.worker.trust.paths), place)

    page.everything.click(zipped, page.shown, page.everything, api_visibility="private")
    page.job_file.click(as_job_file, [page.shown, page.chosen], page.job_file, api_visibility="private")


def _picked(pictures: Sequence[GalleryPicture], chosen: int) -> GalleryPicture:
    if not 0 <= chosen < len(pictures):
        raise RequestError("choose a picture first: click one")
    return pictures[chosen]


def _caption(picture: GalleryPicture) -> str:
    return f"{picture.label or picture.record['composer']} · seed {picture.record['seed']} · {picture.prompt}"
