"""The figures as a table for people, JSON for programs and a plot for both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studio.bench.speed.run import Measured


@dataclass(frozen=True)
class About:
    """Where it was measured."""

    device: str
    torch: str
    dtype: str

    @property
    def line(self) -> str:
        return f"{self.device}, torch {self.torch}, {self.dtype}"


def table(measured: Measured) -> str:
    """One workload: a line for each way."""
    lines = [
        f"{measured.model}, {measured.dtype}: {measured.workload.label}",
        f"  {'way':34}{'ms a step':>11}{'spread':>8}{'x base':>8}{'difference':>12}{'ready s':>9}",
    ]
    for outcome in measured.outcomes:
        if outcome.timing is None:
            lines.append(f"  {outcome.way.label:34}  {outcome.note}")
            continue
        median = outcome.timing.median
        ratio = f"{outcome.over_base:8.3f}" if outcome.over_base is not None else " " * 8
        difference = f"{outcome.difference:12.1e}" if outcome.difference is not None else " " * 12
        lines.append(
            f"  {outcome.way.label:34}{1000 * median:11.2f}{outcome.timing.spread:8.1%}{ratio}{difference}"
            f"{outcome.ready:9.1f}  {outcome.note}".rstrip()
        )
        if outcome.profile is not None:
            lines += [f"    {line}" for line in outcome.profile.lines(median)]
    if measured.noise is not None:
        lines.append(f"  the base against itself, batch split into pairs: {measured.noise:.1e}")
    if measured.peak_bytes:
        lines.append(f"  device memory at most {measured.peak_bytes / 2**30:.1f} GiB")
    return "\n".join(lines)


def as_data(measured: Measured) -> dict[str, Any]:
    """For JSON: the workload, and for each way its median, spread and every sample in milliseconds."""
    ways = {}
    for outcome in measured.outcomes:
        timing = outcome.timing
        figures: dict[str, Any] = {"note": outcome.note}
        if timing is not None:
            figures = {
                "milliseconds": round(1000 * timing.median, 3),
                "spread": round(timing.spread, 4),
                "samples": [round(1000 * value, 3) for value in timing.seconds],
                "ready_seconds": round(outcome.ready, 2),
                "over_base": outcome.over_base,
                "difference": outcome.difference,
                "note": outcome.note,
                "profile": asdict(outcome.profile)["parts"] if outcome.profile else None,
            }
        ways[outcome.way.label] = figures
    return {
        "model": measured.model,
        "dtype": measured.dtype,
        "workload": {"label": measured.workload.label, **asdict(measured.workload)},
        "noise": measured.noise,
        "peak_bytes": measured.peak_bytes,
        "ways": ways,
    }


def write_json(path: Path, about: About, found: Sequence[Measured], extra: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {**asdict(about), "measured": [as_data(each) for each in found], **extra}
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def write_plot(path: Path, device: str, all_measured: Sequence[Measured]) -> None:
    """A panel for each workload: medians as bars, smallest to largest sample as whiskers."""
    from matplotlib.figure import Figure

    shown = [measured for measured in all_measured if any(outcome.timing for outcome in measured.outcomes)]
    most = max(sum(1 for outcome in measured.outcomes if outcome.timing) for measured in shown)
    figure = Figure(figsize=(9, (0.8 + 0.28 * most) * len(shown)), layout="constrained")
    for measured, axes in zip(shown, figure.subplots(len(shown), squeeze=False)[:, 0], strict=True):
        timed = [(o.way, o.timing) for o in reversed(measured.outcomes) if o.timing]
        medians = [1000 * timing.median for _, timing in timed]
        low = [m - 1000 * min(timing.seconds) for m, (_, timing) in zip(medians, timed, strict=True)]
        high = [1000 * max(timing.seconds) - m for m, (_, timing) in zip(medians, timed, strict=True)]
        colours = ["#d95f02" if way.kind == "studio" else "#9a9a9a" for way, _ in timed]
        axes.barh([way.label for way, _ in timed], medians, xerr=(low, high), color=colours)
        top = measured.fastest(lambda way: way.kind == "base")
        if top and top.timing:
            axes.axvline(1000 * top.timing.median, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(f"{measured.model}, {measured.dtype}: {measured.workload.label}", fontsize=9)
        axes.tick_params(labelsize=8)
    figure.axes[-1].set_xlabel(f"milliseconds a step on {device}; dotted: the fastest way without adapters")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
