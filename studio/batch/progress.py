"""The bar of a batch: pictures done, pictures a second, how full the calls are, time left. On stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from studio.batch.manifest import Outcome
from studio.batch.worker import Fill
from studio.terminal.progress import Teller, duration

WORDS_EVERY = 60.0
"""Seconds between lines where there is no terminal to draw a bar on."""


class Meter:
    """Counts outcomes and tells of them."""

    def __init__(self, teller: Teller, bar: Progress, total: int) -> None:
        self._teller = teller
        self._bar = bar
        self._task = bar.add_task("", total=total, pace="", fill="")
        self._total = total
        self._began = self._told = time.monotonic()
        self.done = 0
        self.failed = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def count(self, outcome: Outcome, fill: Fill) -> None:
        """One more outcome."""
        self.done += 1
        if outcome.failed:
            self.failed += 1
            self._teller.error(f"{outcome.job.where}: {outcome.error}")
        pace = self.done / max(self.seconds, 1e-3)
        filled = "" if fill.busy is None else f"calls {fill.busy:.0%} full"
        self._bar.update(self._task, completed=self.done, pace=spell_pace(pace), fill=filled)
        if self._bar.disable and time.monotonic() - self._told > WORDS_EVERY:
            self._told = time.monotonic()
            left = duration((self._total - self.done) / pace)
            self._teller.say(f"{self.done} of {self._total} pictures, {spell_pace(pace)}, about {left} left")


@contextmanager
def metered(teller: Teller, total: int) -> Iterator[Meter]:
    """A bar over so many pictures."""
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures  {task.fields[pace]}  {task.fields[fill]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=teller.console,
        transient=True,
        disable=teller.quiet or not teller.console.is_terminal,
    )
    with bar:
        yield Meter(teller, bar, total)


def spell_pace(pictures_a_second: float) -> str:
    """ "2.5 pictures/s", "4.1 pictures/min"."""
    if pictures_a_second >= 0.5:
        return f"{pictures_a_second:.1f} pictures/s"
    return f"{pictures_a_second * 60:.1f} pictures/min"
