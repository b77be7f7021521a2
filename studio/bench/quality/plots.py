"""Figures: scores over the number of LoRAs, and scores over cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from studio.bench.quality.measures import TRUE, WRONG
from studio.bench.quality.methods import NONE, read_method
from studio.bench.quality.results import ScoreRow

TITLES = {
    "presence": "elements present, %",
    "complete": "pictures with all elements, %",
    "clip": "CLIPScore",
    "fidelity": "likeness to true renders, %",
    "identity": "likeness to single-LoRA pictures, %",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#666666")
"""Okabe and Ito's colours, which colour-blind people can tell apart."""
BOUND = {TRUE: ("black", "--"), WRONG: ("#999999", ":"), NONE: ("#555555", "-.")}


def over_size(
    rows: Sequence[ScoreRow], file: Path, names: Sequence[str] = ("presence", "fidelity", "clip")
) -> bool:
    """Draws scores over the number of LoRAs: a row for each kind, a column for each score. False if there is nothing
    to draw.

    Methods have their default settings; bars are standard errors.
    """
    sized = [row for row in rows if row.size is not None]
    kinds = list(dict.fromkeys(row.kind for row in sized))
    names = [name for name in names if any(name in row.means for row in sized)]
    if not kinds or not names:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(kinds), len(names), figsize=(4 * len(names), 3.1 * len(kinds)), squeeze=False, sharex=True
    )
    methods = _main(sized)
    for line, kind in enumerate(kinds):
        for column, name in enumerate(names):
            ax = axes[line][column]
            for method in methods:
                own = [r for r in sized if r.kind == kind and r.method == method and name in r.means]
                own.sort(key=lambda row: row.size or 0)
                factor = 1 if name == "clip" else 100
                colour, style = _look(method, methods)
                ax.errorbar(
                    [row.size for row in own],
                    [factor * row.means[name].value for row in own],
                    yerr=[factor * (row.means[name].error or 0) for row in own],
                    label=method,
                    color=colour,
                    linestyle=style,
                    marker="o",
                    markersize=3,
                    capsize=2,
                )
            ax.set_title(f"{kind}: {TITLES[name]}" if kind else TITLES[name], fontsize=9)
            ax.set_xticks(sorted({row.size for row in sized if row.size is not None}))
            ax.grid(alpha=0.25)
    for ax in axes[-1]:
        ax.set_xlabel("LoRAs in the mix")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(len(labels), 7), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.05 + 0.01 / len(kinds), 1, 1))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True


def over_cost(rows: Sequence[ScoreRow], file: Path, names: Sequence[str] = ("presence", "fidelity")) -> bool:
    """Draws every method's mean over all sizes against its UNet work for one picture. False if there is nothing to
    draw."""
    whole = [row for row in rows if row.size is None and row.work is not None]
    kinds = list(dict.fromkeys(row.kind for row in whole))
    names = [name for name in names if any(name in row.means for row in whole)] or ["clip"]
    whole = [row for row in whole if any(name in row.means for name in names)]
    if not whole:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(kinds), len(names), figsize=(4.6 * len(names), 3.4 * len(kinds)), squeeze=False
    )
    families = list(dict.fromkeys(read_method(row.method).family for row in whole))
    for line, kind in enumerate(kinds):
        for column, name in enumerate(names):
            ax = axes[line][column]
            for row in (row for row in whole if row.kind == kind and name in row.means):
                value = row.means[name]
                factor = 1 if name == "clip" else 100
                colour = COLOURS[families.index(read_method(row.method).family) % len(COLOURS)]
                assert row.work is not None
                ax.errorbar(
                    row.work, factor * value.value, yerr=factor * (value.error or 0), fmt="o", color=colour
                )
                ax.annotate(
                    row.method, (row.work, factor * value.value), fontsize=6, xytext=(4, 2),
                    textcoords="offset points",
                )  # fmt: skip
            ax.set_xscale("log")
            ax.set_title(f"{kind}: {TITLES[name]}" if kind else TITLES[name], fontsize=9)
            ax.set_xlabel("UNet rows a picture (a shallow one counts a third)", fontsize=8)
            ax.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True


def _main(rows: Sequence[ScoreRow]) -> list[str]:
    """The bounds, the base model, and each method in its shortest spelling."""
    labels = list(dict.fromkeys(row.method for row in rows))
    plain = [label for label in labels if label not in BOUND and not set(label) & set(":@^")]
    return [label for label in (TRUE, *plain, NONE, WRONG) if label in labels]


def _look(method: str, methods: Sequence[str]) -> tuple[str, str]:
    if method in BOUND:
        return BOUND[method]
    plain = [label for label in methods if label not in BOUND]
    return COLOURS[plain.index(method) % len(COLOURS)], "-"
