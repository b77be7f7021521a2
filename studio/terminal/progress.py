"""What a person at the terminal sees while pictures are made. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Teller:
    """Speaks to the user. quiet: print errors only."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text)

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}")

    def error(self, text: str) -> None:
        self.console.print(f"error: {text}")

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """While the block runs, a spinner turns beside the text; on a terminal only."""
        if self.quiet or not self.console.is_terminal:
            yield
            return
        with self.console.status(text):
            yield

    @contextmanager
    def counting(self, steps: int, pictures: int, *, slow: bool) -> Iterator[Counter]:
        """While the block runs, a bar shows the steps of all pictures. slow: after the first step, also say in words
        how long the rest will take."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # piped output would otherwise land on stderr
            disable=self.quiet or not self.console.is_terminal,
        )
        with bar:
            yield Counter(self, bar, steps, pictures, slow=slow)

    @contextmanager
    def training(self, steps: int) -> Iterator[Callable[[int, float], None]]:
        """While the block runs, a bar shows the steps of a training run. Call the result with each step that is done,
        and its loss."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
            disable=self.quiet or not self.console.is_terminal,
        )
        task = bar.add_task("training", total=steps, loss="")
        with bar:
            yield lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.4f}")


class Counter:
    """Counts finished steps and pictures."""

    def __init__(self, teller: Teller, bar: Progress, steps: int, pictures: int, *, slow: bool) -> None:
        self._teller = teller
        self._bar = bar
        self._steps = steps
        self._done = 0
        self._began = time.monotonic()
        self._slow = slow
        self._task = bar.add_task(f"{pictures} picture{'s' if pictures > 1 else ''}", total=steps)

    def steps(self, count: int) -> None:
        """Counts `count` more finished steps."""
        self._done += count
        self._bar.advance(self._task, count)
        if self._slow and count:
            self._slow = False
            seconds = time.monotonic() - self._began
            left = seconds / self._done * (self._steps - self._done)
            self._teller.say(f"about {duration(left)} left ({seconds:.0f} s for the first step on this CPU)")


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
