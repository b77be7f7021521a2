"""The command line's run: all requests are given at once, and each picture is saved as soon as it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pipelines import Event, Failed, Finished, Record, Request, Stepped, StudioError, StudioPipeline, Ticket
from pipelines.faults import forget_tensors
from pipelines.home.files import write_whole
from studio.drafts.draft import placed
from studio.pictures.metadata import Setup
from studio.rendering.acceleration import proposals
from studio.rendering.runner import Runner
from studio.rendering.saver import Made, Saved, Saver
from studio.terminal.exits import INTERRUPTED, OK, SOME_FAILED
from studio.terminal.interruption import noting_interrupts
from studio.terminal.progress import Teller

PREVIEWS = 4
"""Previews of one picture, about."""


@dataclass(frozen=True)
class Picture:
    """One picture to render. where: where it was asked for, for messages. file: where it goes."""

    request: Request
    where: str
    file: Path


@dataclass(frozen=True)
class Saving:
    """How pictures are saved. adapters: name -> file of the loaded ones. force: overwrite files. previews: write
    previews of pictures in the making."""

    adapters: Mapping[str, Path]
    setup: Setup
    force: bool = False
    previews: bool = False


@dataclass(frozen=True)
class Drawn:
    """A finished picture."""

    file: Path
    image: Image.Image
    record: Record


@dataclass
class Outcome:
    """What has become of the pictures so far, by their places in the list. failed: place -> the reason."""

    finished: dict[int, Drawn] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def code(self) -> int:
        return INTERRUPTED if self.interrupted else SOME_FAILED if self.failed else OK


class Drive:
    """Renders pictures with one model. on_file: called with each file once it is written, in the order they finish."""

    def __init__(
        self,
        pipe: StudioPipeline,
        jobs: Sequence[Picture],
        saving: Saving,
        *,
        teller: Teller,
        on_file: Callable[[Path], None],
    ) -> None:
        self._jobs = jobs
        self._saving = saving
        self._teller = teller
        self._on_file = on_file
        self._runner: Runner[int] = Runner(pipe.model)
        self._metadata = {name: pipe.model.adapter(name).metadata for name in pipe.adapters}
        self._digests = {name: pipe.model.adapter(name).report.sha256 for name in pipe.adapters}
        self._images: dict[int, Image.Image] = {}
        self._previews: set[Path] = set()
        self.outcome = Outcome()

    def run(self, *, slow: bool) -> Outcome:
        """Renders all pictures, in shared UNet calls. After Ctrl+C the finished ones are kept.

        slow: say how long it will take. Raises StudioError, before any work, for a request that cannot be rendered.
        """
        tickets = [self._give(place, job) for place, job in enumerate(self._jobs)]
        for line in proposals(self._metadata, [ticket.request for ticket in tickets], self._digests):
            self._teller.say(line)
        steps = sum(ticket.steps for ticket in tickets)
        began = time.monotonic()
        try:
            with Saver[int, Saved[int]](lambda saved: saved) as saver:
                try:
                    self._rounds(saver, steps, slow)
                except KeyboardInterrupt:
                    self.outcome.interrupted = True
                    self._tell(saver.rest())
        finally:
            for file in self._previews:
                file.unlink(missing_ok=True)
        self._sum_up(time.monotonic() - began)
        return self.outcome

    def _rounds(self, saver: Saver[int, Saved[int]], steps: int, slow: bool) -> None:
        """Returns when all pictures are done and saved. Raises KeyboardInterrupt on Ctrl+C."""
        with (
            noting_interrupts(at_once=True) as stopped,
            self._teller.counting(steps, len(self._jobs), slow=slow) as counter,
        ):
            while not self._runner.idle:
                if stopped:
                    raise KeyboardInterrupt
                events = self._runner.step()
                counter.steps(sum(isinstance(event, Stepped) for _, event in events))
                for place, event in events:
                    self._take(place, event, saver)
                self._tell(saver.told())
            self._tell(saver.rest())

    def _give(self, place: int, job: Picture) -> Ticket:
        """Gives a picture to the runner."""
        try:
            return self._runner.give(place, job.request)
        except StudioError as error:
            raise placed(error, job.where) from error

    def _take(self, place: int, event: Event, saver: Saver[int, Saved[int]]) -> None:
        job, saving = self._jobs[place], self._saving
        match event:
            case Stepped() if saving.previews and event.step < event.count:
                self._preview(event, job.file)
            case Finished():
                made = Made.of(event, saving.adapters, saving.setup)
                self._images[place] = made.image
                saver.take(place, made, job.file, force=saving.force)
            case Failed():
                self._fail(place, event.error)

    def _preview(self, event: Stepped, file: Path) -> None:
        if event.step % max(event.count // PREVIEWS, 1):
            return
        preview = file.with_name(f"{file.stem}.preview.png")
        try:
            image = event.preview()
            write_whole(preview, lambda path: image.save(path, format="PNG"), force=True)
        except Exception as error:  # a lasting fault shows again when the picture itself is decoded and saved
            forget_tensors(error)
            return
        self._previews.add(preview)

    def _tell(self, saved: Iterable[Saved[int]]) -> None:
        for one in saved:
            if one.error is not None:
                self._fail(one.picture, one.error)
                continue
            assert one.file is not None
            assert one.record is not None
            self.outcome.finished[one.picture] = Drawn(one.file, self._images.pop(one.picture), one.record)
            self._on_file(one.file)

    def _fail(self, place: int, error: StudioError) -> None:
        self.outcome.failed[place] = str(placed(error, self._jobs[place].where))
        self._teller.error(self.outcome.failed[place])

    def _sum_up(self, seconds: float) -> None:
        done = [picture.record for picture in self.outcome.finished.values()]
        count = f"{len(done)} picture{'' if len(done) == 1 else 's'}"
        if self.outcome.interrupted:
            self._teller.error(f"interrupted; {count} of {len(self._jobs)} finished and kept")
            return
        if not done:
            return
        seeds = sorted({record.seed for record in done})
        spelled = ", ".join(map(str, seeds)) if len(seeds) <= 4 else f"{seeds[0]} … {seeds[-1]}"
        calls = max(record.unet_calls for record in done)
        self._teller.say(
            f"{count} in {seconds:.1f} s, {calls} UNet calls, seed{'s' if len(seeds) > 1 else ''} {spelled}"
        )
        for note in dict.fromkeys(note for record in done for note in record.notes):
            self._teller.say(note)
