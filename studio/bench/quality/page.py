"""The results as one self-contained HTML page: tables, figures, and pictures side by side."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from studio.bench.quality.elements import Composition, spread
from studio.bench.quality.measures import TRUE, Scored
from studio.bench.quality.references import References
from studio.bench.quality.results import ScoreRow, groups, table
from studio.grid.page import STYLE

SHOWN = 3
"""Compositions of each kind and size whose pictures are on the page."""
WIDEST = 256
"""Side of a picture on the page, in pixels."""
MORE_STYLE = """
table.figures { border-collapse: collapse; border-spacing: 0; }
table.figures td, table.figures th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
table.figures td:first-child, table.figures th:first-child { text-align: left; }
figure { margin: 1rem 0; } figure img { max-width: 100%; }
.pictures td { width: 9rem; max-width: 9rem; }
"""
EXPLAINED = (
    "presence: elements read from the picture, %; complete: pictures with all of them, %; clip: CLIPScore; fidelity: "
    "likeness to the world's own renders, %; identity: likeness to each LoRA's own picture, %. ± is a standard error "
    "over compositions. ▲ and ▼: better or worse than Merge beyond a 95 % bootstrap interval. W/T/L: share of the "
    "pictures that win, tie and lose against Merge by presence (else CLIPScore); net is wins less losses, with its "
    "interval. UNet rows: in full + on remembered features."
)


def write_page(
    title: str,
    rows: Sequence[ScoreRow],
    scored: Sequence[Scored],
    figures: Mapping[str, Path],
    references: References | None,
) -> str:
    """The page's HTML. figures: caption -> file."""
    parts = [f"<p>{html.escape(EXPLAINED)}</p>"]
    for caption, file in figures.items():
        parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="{_data(file.read_bytes())}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    for name, own in groups(rows):
        parts.append(f"<h2>{html.escape(name)}</h2>{_table(table(own))}")
    parts.append("<h2>Side by side</h2>" + _pictures(scored, references))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{MORE_STYLE}</style></head><body><main><h1>{html.escape(title)}</h1>{''.join(parts)}"
        "</main></body></html>\n"
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in lines[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines[1:]
    )
    return (
        f'<div class="wide" tabindex="0"><table class="figures"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pictures(scored: Sequence[Scored], references: References | None) -> str:
    seeds = {one.seed for one in scored if one.shot is not None}
    seed = min(seeds) if seeds else 0
    here = {(one.composition, one.method): one for one in scored if one.shot is not None and one.seed == seed}
    methods = list(dict.fromkeys(method for _, method in here))
    lines = []
    for composition in shown([composition for composition, _ in here]):
        cells = []
        renders = references.of(composition)[:1] if references is not None else []
        cells += [_cell(TRUE, render, "") for render in renders] or (
            [] if references is None else ["<td></td>"]
        )
        for method in methods:
            one = here.get((composition, method))
            if one is None or one.shot is None:
                cells.append("<td></td>")
                continue
            with Image.open(one.shot.file) as image:
                cells.append(_cell(method, image, _said(one)))
        lines.append(f'<tr><th scope="row">{html.escape(composition.name)}</th>{"".join(cells)}</tr>')
    heads = ([TRUE] if references is not None else []) + methods
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in heads)
    return (
        f'<p>Seed {seed}.</p><div class="wide" tabindex="0"><table class="pictures"><thead><tr><th></th>{head}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def shown(compositions: Sequence[Composition], most: int = SHOWN) -> list[Composition]:
    """At most `most` evenly spaced compositions of each kind and size."""
    by_group: dict[tuple[str, int], list[Composition]] = {}
    for one in dict.fromkeys(compositions):
        by_group.setdefault((one.kind, one.size), []).append(one)
    return [one for own in by_group.values() for one in spread(own, most)]


def _said(one: Scored) -> str:
    missing = [category for category, there in one.scores.elements.items() if not there]
    return f"without {', '.join(missing)}" if missing else ""


def _cell(name: str, image: Image.Image, said: str) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((WIDEST, WIDEST))
    stream = io.BytesIO()
    shown.save(stream, "WEBP", quality=88)
    alt = html.escape(", ".join(filter(None, (name, said))))
    note = f"<small>{html.escape(said)}</small>" if said else ""
    return f'<td><img alt="{alt}" src="{_data(stream.getvalue(), "webp")}">{note}</td>'


def _data(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
