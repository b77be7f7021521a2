"""The grid as one self-contained HTML page: the pictures with alternative texts, and the record of every cell."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence

from studio.grid.grid import Cell, Grid

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c22; --muted: #55555f; --line: #d4d4dc; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16161a; --ink: #ececf1; --muted: #b0b0bb; --line: #3a3a44; }
}
body { margin: 1.5rem; background: var(--paper); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: .5rem; }
th { text-align: left; font-weight: 600; color: var(--muted); vertical-align: top; max-width: 16rem; }
td { vertical-align: top; max-width: 24rem; }
img { display: block; width: 100%; min-width: 9rem; max-width: 24rem; height: auto; border-radius: 4px; }
summary { cursor: pointer; color: var(--muted); font-size: .85rem; }
summary:focus-visible, .wide:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
pre { max-height: 24rem; overflow: auto; font-size: .75rem; border: 1px solid var(--line); padding: .5rem; }
.failed { border: 1px dashed var(--line); padding: .75rem; min-width: 9rem; }
"""


def write_page(grid: Grid, cells: Sequence[Cell]) -> str:
    """The page's HTML."""
    tables = "\n".join(_sheet(grid, cells, number) for number in range(len(grid.z.cells)))
    axes = ", ".join(axis.name for axis in (grid.x, grid.y, grid.z) if axis.name)
    title = html.escape(grid.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{len(cells)} pictures: {html.escape(axes)}. Each picture's record is below it.</p>
{tables}
</main>
</body>
</html>
"""


def _sheet(grid: Grid, cells: Sequence[Cell], number: int) -> str:
    own = {cell.place[:2]: cell for cell in cells if cell.place[2] == number}
    heading = html.escape(f"{grid.z.name} {grid.z.cells[number][0]}".strip())
    caption = f"<h2>{heading}</h2>\n" if heading else ""
    corner = "<td></td>" if grid.y.name else ""
    columns = "".join(f'<th scope="col">{_label(grid.x.name, label)}</th>' for label, _ in grid.x.cells)
    rows = []
    for row, (label, _) in enumerate(grid.y.cells):
        head = f'<th scope="row">{_label(grid.y.name, label)}</th>' if grid.y.name else ""
        rows.append(
            f"<tr>{head}{''.join(_cell(own[column, row]) for column in range(len(grid.x.cells)))}</tr>"
        )
    region = html.escape(f"Grid {heading}".strip(), quote=True)
    return (
        f'{caption}<div class="wide" role="region" aria-label="{region}" tabindex="0">\n<table>\n'
        f"<thead><tr>{corner}{columns}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>\n</div>"
    )


def _label(name: str, value: str) -> str:
    return html.escape(f"{name} {value}".strip())


def _cell(cell: Cell) -> str:
    if cell.file is None:
        return f'<td><div class="failed">{html.escape(cell.error or "")}</div></td>'
    data = base64.b64encode(cell.file.read_bytes()).decode()
    alt = html.escape("; ".join([str(cell.record.get("prompt", "")), *cell.labels]), quote=True)
    record = html.escape(json.dumps(cell.record, indent=1, ensure_ascii=False))
    size = f'width="{cell.record.get("width", "")}" height="{cell.record.get("height", "")}"'
    return (
        f'<td><img src="data:image/png;base64,{data}" alt="{alt}" {size}>'
        f"<details><summary>{html.escape(', '.join(cell.labels)) or 'record'}</summary>"
        f"<pre>{record}</pre></details></td>"
    )
