"""A batch on the terminal. Files go to stdout; to stderr go a bar, the pace, how full UNet calls are, and failures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from studio.batch.manifest import PictureOutcome
from studio.batch.run import Batch
from studio.rendering.machine import MachineFault, machine_fault
from studio.rendering.runner import Fill
from studio.terminal.exits import INTERRUPTED, OK, SOME_FAILED
from studio.terminal.interruption import noting_interrupts
from studio.terminal.progress import Teller, duration
from studio.terminal.stdout import abandon_stdout

WORDS_EVERY = 60.0
"""Seconds between lines of progress, where there is no terminal for a bar."""


def render(
    batch: Batch,
    teller: Teller,
    *,
    as_json: bool,
    files: bool = True,
    tell: Callable[[PictureOutcome], None] = lambda outcome: None,
) -> int:
    """Renders what is missing and reports it; returns the exit code.

    files: print the files' names. tell: called with every outcome.
    """
    if batch.earlier:
        teller.say(f"{len(batch.earlier)} of {len(batch.jobs)} pictures are there already")
    failed = [outcome for outcome in batch.earlier if outcome.failed]
    with metered(teller, batch.pending) as meter, noting_interrupts(at_once=True) as stopped:
        try:
            for outcome in batch.run():
                meter.count(outcome, batch.fill)
                if outcome.failed:
                    failed.append(outcome)
                tell(outcome)
                _print(outcome, as_json, files)
                if stopped:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            teller.error(f"interrupted; {meter.done} pictures are kept. The same command goes on from here")
            return INTERRUPTED
        seconds = meter.seconds
    done = meter.done - meter.failed
    if done:
        filled = (
            "" if batch.fill.busy is None else f", calls {batch.fill.busy:.0%} full while work was waiting"
        )
        pace = spell_pace(done / max(seconds, 1e-3))
        teller.say(f"{done} picture{'' if done == 1 else 's'} in {duration(seconds)}, {pace}{filled}")
        if batch.ray is not None:
            places = sorted(batch.ray.made.items())
            teller.say("made by " + ", ".join(f"{place}: {count}" for place, count in places))
    _name_failed(failed, batch.order.retry_failed, teller)
    return SOME_FAILED if failed else OK


def _print(outcome: PictureOutcome, as_json: bool, files: bool) -> None:
    """Raises MachineFault where stdout is a file that cannot be written, as on a full disk."""
    try:
        _print_line(outcome, as_json, files)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        fault = machine_fault(error)
        if fault is None:
            raise
        raise MachineFault(
            f"stdout cannot be written: {fault}; the pictures are kept, and the same command goes on from here"
        ) from error


def _print_line(outcome: PictureOutcome, as_json: bool, files: bool) -> None:
    if as_json:
        plain = {
            "index": outcome.job.index,
            "name": outcome.job.name,
            "key": outcome.job.key,
            "file": None if outcome.file is None else str(outcome.file),
            "error": outcome.error,
            "record": outcome.record,
        }
        print(json.dumps(plain, ensure_ascii=False), flush=True)
    elif files and outcome.file is not None:
        print(outcome.file, flush=True)


def _name_failed(failed: list[PictureOutcome], retried: bool, teller: Teller) -> None:
    if not failed:
        return
    remedy = "" if retried else "; --retry-failed renders them again"
    teller.error(f"{len(failed)} of the jobs failed{remedy}")
    for outcome in sorted(failed, key=lambda outcome: outcome.job.index):
        teller.error(f"  {outcome.job.where} ({outcome.job.name}): {outcome.error}")


class Meter:
    """Counts outcomes and shows progress."""

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

    def count(self, outcome: PictureOutcome, fill: Fill) -> None:
        """Counts one more outcome. fill: how full the UNet calls have been."""
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
    """While the block runs, a bar shows how many of `total` pictures are done."""
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
