"""Makes the rows of the tables, and results.json, of scored pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from studio.bench.quality.elements import CATEGORIES
from studio.bench.quality.measures import NAMES, TRUE, WRONG, Scored
from studio.bench.quality.methods import BASELINE
from studio.bench.quality.statistics import Against, Mean, against, mean

SHALLOW = 1 / 3
"""The work of a shallow row, relative to a full one: 0.28 … 0.38 at the published models' sizes (BENCHMARKS.md,
CMLoRA)."""


@dataclass(frozen=True)
class ScoreRow:
    """A method's results for the compositions of one kind and size. size: None is all sizes.

    means: score -> its mean. against: score -> comparison with the baseline; empty for the baseline itself.
    found: category -> share of pictures in which its element is read. rows: UNet rows of one picture, (full, shallow).
    work: both together, in full rows. seconds: one picture's share of the UNet calls' time.
    """

    kind: str
    size: int | None
    method: str
    pictures: int
    compositions: int
    means: dict[str, Mean]
    against: dict[str, Against]
    found: dict[str, float]
    rows: tuple[float, float] | None
    work: float | None
    seconds: float | None

    @property
    def is_bound(self) -> bool:
        return self.method in (TRUE, WRONG)


def rows_of(scored: Sequence[Scored], *, baseline: str = BASELINE) -> list[ScoreRow]:
    """The rows for every kind, size and method; all sizes together come first, and so does the best presence.

    A method that was drawn only for some compositions of a kind (as one with another leader) is listed with these, and
    compared with the baseline on these.
    """
    found = []
    for kind in dict.fromkeys(one.composition.kind for one in scored):
        own = [one for one in scored if one.composition.kind == kind]
        sizes = sorted({one.composition.size for one in own})
        for size in (None, *sizes) if len(sizes) > 1 else (None,):
            here = [one for one in own if size in (None, one.composition.size)]
            base = [one for one in here if one.method == baseline]
            methods = dict.fromkeys(one.method for one in here)
            rows = [
                _row(kind, size, [one for one in here if one.method == method], base) for method in methods
            ]
            found += sorted(rows, key=_rank)
    return found


def _rank(row: ScoreRow) -> float:
    score = next(
        (row.means[name].value for name in ("presence", "clip", "identity") if name in row.means), 0.0
    )
    return -score


def _row(kind: str, size: int | None, own: Sequence[Scored], base: Sequence[Scored]) -> ScoreRow:
    method = own[0].method
    is_base = bool(base) and method == base[0].method
    differences = (
        {} if is_base or method in (TRUE, WRONG) else {name: against(own, base, name) for name in NAMES}
    )
    means = {name: mean(own, name) for name in NAMES}
    shots = [one.shot for one in own if one.shot is not None]
    full, shallow, seconds = (
        (
            float(np.mean([shot.full_rows for shot in shots])),
            float(np.mean([shot.shallow_rows for shot in shots])),
            float(np.mean([shot.seconds for shot in shots])),
        )
        if shots
        else (None, None, None)
    )
    return ScoreRow(
        kind=kind,
        size=size,
        method=method,
        pictures=len(own),
        compositions=len({one.composition for one in own}),
        means={name: value for name, value in means.items() if value is not None},
        against={name: value for name, value in differences.items() if value is not None},
        found=_found(own),
        rows=None if full is None or shallow is None else (full, shallow),
        work=None if full is None or shallow is None else full + SHALLOW * shallow,
        seconds=seconds,
    )


def _found(own: Iterable[Scored]) -> dict[str, float]:
    seen: dict[str, list[bool]] = {}
    for one in own:
        for category, there in one.scores.elements.items():
            seen.setdefault(category, []).append(there)
    order = [*CATEGORIES, *sorted(set(seen) - set(CATEGORIES))]
    return {category: float(np.mean(seen[category])) for category in order if category in seen}


# -- text ------------------------------------------------------------------------------------------------


def table(rows: Sequence[ScoreRow]) -> list[tuple[str, ...]]:
    """The table of one kind and size, headings first. Wins are judged by presence, else by CLIPScore."""
    names = [name for name in NAMES if any(name in row.means for row in rows)]
    decisive = next((name for name in ("presence", "clip", "identity") if name in names), "")
    heads = ["method", *names, "W/T/L %", "net", "UNet rows", "UNet s"]
    lines = [tuple(heads)]
    for row in rows:
        cells = [row.method]
        for name in names:
            cells.append(_mean(name, row.means.get(name), row.against.get(name)))
        versus = row.against.get(decisive)
        cells += (
            ["", ""]
            if versus is None
            else [
                f"{100 * versus.wins:.0f}/{100 * versus.ties:.0f}/{100 * versus.losses:.0f}",
                f"{100 * versus.net[0]:+.0f} [{100 * versus.net[1]:+.0f}, {100 * versus.net[2]:+.0f}]",
            ]
        )
        cells.append(
            "" if row.rows is None else f"{row.rows[0]:.0f}" + f"+{row.rows[1]:.0f}" * (row.rows[1] > 0)
        )
        cells.append("" if row.seconds is None else f"{row.seconds:.3g}")
        lines.append(tuple(cells))
    return lines


def _mean(name: str, value: Mean | None, versus: Against | None) -> str:
    """As "71.2 ±1.3 ▲": shares in percent; ▲ or ▼ if the interval of the difference from the baseline excludes 0."""
    if value is None:
        return "-"
    factor = 1 if name == "clip" else 100
    error = "" if value.error is None else f" ±{factor * value.error:.1f}"
    mark = {"better": " ▲", "worse": " ▼"}.get(versus.verdict if versus else "", "")
    return f"{factor * value.value:.1f}{error}{mark}"


def groups(rows: Sequence[ScoreRow]) -> Iterator[tuple[str, list[ScoreRow]]]:
    """(title, rows) of each table."""
    for kind, size in dict.fromkeys((row.kind, row.size) for row in rows):
        own = [row for row in rows if (row.kind, row.size) == (kind, size)]
        count = max(row.compositions for row in own)
        sizes = f"k = {size}" if size is not None else "all k"
        yield f"{kind or 'compositions'}, {sizes}: {count} compositions", own


def as_text(rows: Sequence[ScoreRow]) -> str:
    """All tables, in columns."""
    blocks = []
    for title, own in groups(rows):
        lines = table(own)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = "\n".join(
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        blocks.append(f"{title}\n{text}")
    return "\n\n".join(blocks)


def as_json(rows: Sequence[ScoreRow], scored: Sequence[Scored], about: dict[str, Any]) -> str:
    """All results as JSON: what was asked, the tables' rows, and every picture's scores."""
    pictures = [
        {
            "composition": [element.name for element in one.composition.elements],
            "kind": one.composition.kind,
            "method": one.method,
            "seed": one.seed,
            "file": None if one.shot is None else one.shot.file.name,
            **asdict(one.scores),
        }
        for one in scored
    ]
    return json.dumps({"about": about, "rows": [asdict(row) for row in rows], "pictures": pictures}, indent=1)
