"""The Library page: every LoRA file, by its header. A file that does not fit says why."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from composers.shown import shown
from pipelines.adapters import LoadReport, inspect_file, read_adapter
from pipelines.errors import RequestError
from pipelines.home.files import is_folder
from pipelines.home.paths import expanded
from pipelines.home.settings import Roots
from studio.library.card import Card
from studio.library.fit import Fit
from studio.library.hashes import short_hash
from studio.library.scan import Choice, Glance
from studio.pictures.restore import Restored, restore
from studio.web.api import inspection_to_dict
from studio.web.form import mix
from studio.web.form.components import Fields
from studio.web.parts.desk import Desk, plain, who
from studio.web.parts.thumbs import thumb
from studio.web.parts.words import words_of
from studio.web.waiting import Waits, worker_result

SHOWN = 120
ANY = "any"


@dataclass(frozen=True)
class _Page:
    """The page's controls. shown: the names of the cards on it. chosen: the chosen one's name, "" for none. beat: a
    timer that looks again while files are being read."""

    search: gr.Textbox
    family: gr.Dropdown
    category: gr.Dropdown
    kind: gr.Dropdown
    fitting: gr.Checkbox
    refresh: gr.Button
    cards: gr.Gallery
    found: gr.HTML
    title: gr.HTML
    use: gr.Button
    report: gr.Button
    reported: gr.HTML
    details: gr.JSON
    dropped: gr.File
    picture: gr.File
    folder: gr.Textbox
    point: gr.Button
    shown: gr.State
    chosen: gr.State
    beat: gr.Timer

    @classmethod
    def drawn(cls) -> _Page:
        """Draws them into the current blocks."""
        with gr.Row():
            search = gr.Textbox(
                label="Search", placeholder="name, trigger word, tag", scale=4, elem_id="library-search"
            )
            family = gr.Dropdown([ANY], value=ANY, label="Base", scale=1)
            category = gr.Dropdown([ANY], value=ANY, label="Category", scale=1)
            kind = gr.Dropdown([ANY], value=ANY, label="Type", scale=1)
            fitting = gr.Checkbox(True, label="Only what fits the model", scale=1)
            refresh = gr.Button("Refresh", scale=1, elem_id="library-refresh")
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=340):
                cards = gr.Gallery(
                    label="LoRAs", columns=5, object_fit="cover", height=620, allow_preview=False, elem_id="library",
                    format="png",
                )  # fmt: skip
                found = gr.HTML(elem_classes=["live", "small-note"], container=False, elem_id="library-found")
            with gr.Column(scale=5, min_width=320):
                title = gr.HTML("<p>Choose a LoRA.</p>", elem_id="library-title", container=False)
                with gr.Row():
                    use = gr.Button(
                        "Add to the mix", variant="primary", elem_id="library-add", interactive=False
                    )
                    report = gr.Button("Load report", elem_id="library-report", interactive=False)
                reported = gr.HTML(elem_id="library-reported", container=False)
                details = gr.JSON(label="What the file says", max_height=420, elem_id="library-details")
                dropped = gr.File(
                    label="Drop a LoRA file to add it",
                    file_types=[".safetensors"],
                    type="filepath",
                    height=110,
                    elem_id="library-drop",
                )
                picture = gr.File(
                    label="Drop a picture to find the LoRAs it was made with",
                    file_types=["image"],
                    type="filepath",
                    height=110,
                    elem_id="library-picture",
                )
                with gr.Row():
                    folder = gr.Textbox(
                        label="Use another folder of LoRAs", placeholder="its path on this computer", scale=4
                    )
                    point = gr.Button("Add folder", scale=1)
        return cls(
            search, family, category, kind, fitting, refresh, cards, found, title, use, report, reported, details,
            dropped, picture, folder, point, gr.State(()), gr.State(""), gr.Timer(1.0, active=False),
        )  # fmt: skip


def add(desk: Desk, fields: Fields, here: gr.Tab) -> None:
    """Draws the page into the current blocks. here: its tab; whenever it is opened, files are looked at again."""
    page = _Page.drawn()
    listing = _Listing(desk, page)
    listing.wire(here)
    _choose(desk, page)
    _use(desk, fields, page)
    _find_by_picture(desk, page)
    _bring(desk, page, listing)


class _Listing:
    """The list of cards that match the filters. inputs, outputs: of `looked` and `listed`."""

    def __init__(self, desk: Desk, page: _Page) -> None:
        self._desk, self._page = desk, page
        self.inputs = [page.search, page.family, page.category, page.kind, page.fitting, desk.model]
        self.outputs = [
            page.cards, page.shown, page.found, page.family, page.category, page.kind, page.beat,
        ]  # fmt: skip

    def looked(self, *chosen: Any) -> tuple[Any, ...]:
        """Looks at the files again, and lists them."""
        return self._draw(self._desk.worker.library.glance(), *chosen)

    def listed(self, *chosen: Any) -> tuple[Any, ...]:
        """Lists the files as they were at the last look, so that typing stays quick with thousands of files."""
        return self._draw(self._desk.worker.library.glance(again=False), *chosen)

    def _draw(
        self, seen: Glance, words: str, family_name: str, category_name: str, kind_name: str, only: bool, model: str
    ) -> tuple[Any, ...]:  # fmt: skip
        everything, fit = seen.cards, self._desk.fit(model)
        choice = Choice(
            words or "", _chosen(family_name), _chosen(category_name), _chosen(kind_name), fit, only
        )
        matching = choice.among(everything)
        page = matching[:SHOWN]
        more = f"; the first {SHOWN} are shown, search for the others" if len(matching) > SHOWN else ""
        return (
            _pictures(self._desk, page, fit),
            tuple(card.name for card in page),
            plain(
                f"{len(matching)} of {len(everything)} files{more}{_reading(seen)}", self._desk.unanswered()
            ),
            gr.Dropdown(choices=[ANY, *sorted({card.family for card in everything})]),
            gr.Dropdown(choices=[ANY, *sorted({card.category for card in everything if card.category})]),
            gr.Dropdown(choices=[ANY, *sorted({kind for card in everything for kind in card.kinds})]),
            gr.Timer(active=not seen.whole),
        )

    def wire(self, here: gr.Tab) -> None:
        page = self._page
        filters = [
            page.search.change,
            page.family.input,
            page.category.input,
            page.kind.input,
            page.fitting.change,
            self._desk.model.change,
            page.beat.tick,
        ]
        for triggers, answer in (
            ([here.select, page.refresh.click], self.looked),
            (filters, self.listed),
        ):
            gr.on(
                triggers,
                answer,
                self.inputs,
                self.outputs,
                show_progress="hidden",
                trigger_mode="always_last",
                api_visibility="private",
            )


def _choose(desk: Desk, page: _Page) -> None:
    """Wires what shows the clicked card, and the report on loading it."""

    def select(event: gr.SelectData, names: Sequence[str], model: str) -> tuple[Any, ...]:
        name = names[int(event.index)]
        card = desk.worker.library.card(name, desk.chosen(model))
        why = card.misfit(desk.fit(model))
        said = inspection_to_dict(inspect_file(card.path)) if card.readable else {"error": card.error}
        said["short_hash"] = short_hash(card.path) if card.readable else ""
        readable = gr.Button(interactive=card.readable)
        return name, _title(card, why), gr.Button(interactive=not why), readable, "", said

    page.cards.select(
        select,
        [page.shown, desk.model],
        [page.chosen, page.title, page.use, page.report, page.reported, page.details],
        show_progress="hidden",
        api_visibility="private",
    )

    waits = Waits()

    async def loaded(name: str, model: str, browser: str | None, request: gr.Request) -> str:
        """The report on what the model would apply of the file."""

        def begin() -> Future[LoadReport]:
            card = desk.worker.library.card(name, desk.chosen(model))
            return desk.worker.call(
                lambda pipe: read_adapter(card.path, pipe.model.layers, card.name).report, model=model or None
            )

        what = f"the report on {shown(name)}{f' for {shown(model)}' if model else ''}"
        report = await waits.of(who(browser, request), what, lambda: worker_result(begin))
        return f"<pre>{escape(str(report))}</pre>"

    page.report.click(
        loaded,
        [page.chosen, desk.model, desk.browser],
        page.reported,
        concurrency_limit=None,
        api_visibility="private",
    )


def _use(desk: Desk, fields: Fields, page: _Page) -> None:
    """Wires the button that adds the chosen LoRA to the mix."""

    def used(name: str, rows: mix.MixRows, structure: int, model: str) -> tuple[Any, ...]:
        card = desk.worker.library.card(name, desk.chosen(model))
        weight = 1.0 if card.preferred_weight is None else card.preferred_weight
        gr.Info(f"{escape(card.name)} is in the mix")
        return mix.added(tuple(rows), card.name, weight), structure + 1

    page.use.click(
        used,
        [page.chosen, fields.rows, fields.structure, desk.model],
        [fields.rows, fields.structure],
        api_visibility="private",
    )


def _find_by_picture(desk: Desk, page: _Page) -> None:
    """Wires what finds the LoRAs that a dropped picture was made with."""

    def made_with(file: str | None, model: str) -> tuple[Any, ...]:
        if file is None:
            return gr.skip(), gr.skip(), gr.skip(), None
        restored = restore(Path(file), desk.worker.home, desk.worker.library)
        here = desk.worker.library.named(wanted.adapter for wanted in restored.draft.wanted)
        cards = _pictures(desk, here, desk.fit(model))
        return cards, tuple(card.name for card in here), _made_with(restored), None

    page.picture.upload(
        made_with,
        [page.picture, desk.model],
        [page.cards, page.shown, page.found, page.picture],
        api_visibility="private",
    )


def _bring(desk: Desk, page: _Page, listing: _Listing) -> None:
    """Wires what adds files and folders to the library."""

    def added(file: str | None, *rest: Any) -> tuple[Any, ...]:
        if file is None:
            return (*[gr.skip()] * len(listing.outputs), gr.skip())
        card = desk.worker.library.add(Path(file), Path(file).name)
        gr.Info(f"{escape(card.name)} is in the library")
        return (*listing.looked(*rest), None)

    page.dropped.upload(
        added,
        [page.dropped, *listing.inputs],
        [*listing.outputs, page.dropped],
        api_visibility="private",
    )

    def pointed(path: str, *rest: Any) -> tuple[Any, ...]:
        if not desk.worker.trust.paths:
            raise RequestError("folders of this computer are its owner's to add, with --lora-dir")
        place = expanded(path)
        if not path.strip() or not is_folder(place):
            raise RequestError(
                f"{shown(path)} is no folder on this computer; give the path of one with LoRAs"
            )
        desk.worker.add_folders(Roots(loras=(place.absolute(),)))
        return (*listing.looked(*rest), "")

    page.point.click(
        pointed, [page.folder, *listing.inputs], [*listing.outputs, page.folder], api_visibility="private"
    )


def _pictures(desk: Desk, cards: Sequence[Card], fit: Fit | None) -> list[tuple[str, str]]:
    return [(str(thumb(card, desk.worker.home) or _blank(desk)), _caption(card, fit)) for card in cards]


def _chosen(name: str) -> str | None:
    return None if name == ANY else name


def _reading(seen: Glance) -> str:
    if seen.whole:
        return ""
    return f"; reading more, {seen.read} of {seen.of} so far" if seen.of else "; looking for more"


def _made_with(restored: Restored) -> str:
    """What a dropped picture says of its LoRAs: those that are shown, those that are missing, and those that have
    another name here."""
    count = len(restored.draft.wanted)
    said = (
        f"A picture by {restored.program}, made with {count or 'no'} LoRA{'' if count == 1 else 's'} that "
        f"{'is' if count == 1 else 'are'} here. Refresh shows all files again."
    )
    return plain(said, [f"missing: {one}" for one in restored.missing] + list(restored.notes))


def _caption(card: Card, fit: Fit | None) -> str:
    return f"{card.name} (does not fit)" if card.misfit(fit) else card.name


def _title(card: Card, why: str) -> str:
    """What a file says of itself, as HTML with escaped text, in which nothing makes a browser fetch or run anything."""
    lines = [f"<h3>{escape(card.title or card.name)}</h3>"]
    if why:
        lines.append(f"<p><strong>Does not fit:</strong> {escape(why)}</p>")
    if card.triggers:
        lines.append(f"<p>Trigger words: {escape(', '.join(card.triggers))}</p>")
    strength = "" if card.preferred_weight is None else f" · recommended strength {card.preferred_weight:g}"
    ranks = (
        ""
        if card.ranks is None
        else f" · rank {' to '.join(str(rank) for rank in dict.fromkeys(card.ranks))}"
    )
    kinds, made_for = ", ".join(card.kinds), card.made_for or card.family_label
    lines.append(f"<p>{escape(f'{kinds} for {made_for}{ranks}, {card.layers} layers{strength}')}</p>")
    lines += [f"<p>{escape(part)}</p>" for part in words_of(card.description)]
    return "".join(lines)


def _blank(desk: Desk) -> Path:
    """The file of a plain square, which is shown for LoRAs without a preview."""
    from PIL import Image

    file = desk.worker.home.made(desk.worker.home.cache / "web" / "thumbs") / "none.webp"
    if not file.is_file():
        Image.new("RGB", (64, 64), (148, 152, 163)).save(file, format="WEBP")
    return file
