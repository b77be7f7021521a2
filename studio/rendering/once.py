"""The run itself: requests are submitted together, every picture is saved as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pipelines import (
    Event,
    Failed,
    Finished,
    Record,
    Request,
    Session,
    Started,
    Stepped,
    StudioError,
    StudioPipeline,
)
from pipelines.faults import forget_tensors, own_error
from pipelines.home.files import write_whole
from studio.drafts.draft import placed
from studio.pictures.metadata import Setup, save_picture
from studio.terminal.exits import INTERRUPTED, OK, SOME_FAILED
from studio.terminal.interruption import noted
from studio.terminal.progress import Teller

PREVIEWS = 4
"""How often a picture is shown while it is made."""


@dataclass(frozen=True)
class Job:
    """One picture: what was asked for, where (for messages), and its file."""

    request: Request
    where: str
    file: Path


@dataclass(frozen=True)
class Saving:
    """How pictures are saved. adapters: name -> file of those that are loaded. previews: show them in the making."""

    adapters: Mapping[str, Path]
    setup: Setup
    force: bool = False
    previews: bool = False


@dataclass(frozen=True)
class Picture:
    """One that is done."""

    file: Path
    image: Image.Image
    record: Record


@dataclass
class Outcome:
    """What has come of the jobs so far, by their place."""

    finished: dict[int, Picture] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def code(self) -> int:
        return INTERRUPTED if self.interrupted else SOME_FAILED if self.failed else OK


class Drive:
    """Renders jobs with one model. `on_file` is told every picture's path as soon as it is written."""

    def __init__(
        self,
        pipe: StudioPipeline,
        jobs: Sequence[Job],
        saving: Saving,
        *,
        teller: Teller,
        on_file: Callable[[Path], None],
    ) -> None:
        self._jobs = jobs
        self._saving = saving
        self._teller = teller
        self._on_file = on_file
        self._session = Session(pipe.model)
        self._facts = pipe.model.facts
        self._places: dict[int, int] = {}
        self._resolved: dict[int, Request] = {}
        self._previews: set[Path] = set()
        self.outcome = Outcome()

    def run(self, *, slow: bool) -> Outcome:
        """All jobs, in shared UNet calls. An interruption keeps what is finished.

        slow: say how long it will take. Raises StudioError, before any work, for a request that cannot be rendered.
        """
        steps = sum(self._submit(place, job) for place, job in enumerate(self._jobs))
        began = time.monotonic()
        try:
            with (
                noted(at_once=True) as stopped,
                self._teller.counting(steps, len(self._jobs), slow=slow) as counter,
            ):
                while not self._session.idle:
                    if stopped:
                        raise KeyboardInterrupt
                    events = self._session.step()
                    counter.steps(sum(isinstance(event, Stepped) for event in events))
                    for event in events:
                        self._take(event)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
        finally:
            for file in self._previews:
                file.unlink(missing_ok=True)
        self._sum_up(time.monotonic() - began)
        return self.outcome

    def _submit(self, place: int, job: Job) -> int:
        """Returns the steps it will take."""
        try:
            steps = job.request.resolved(self._facts).executed_steps
            self._places[self._session.submit(job.request)] = place
        except StudioError as error:
            raise placed(error, job.where) from error
        return steps

    def _take(self, event: Event) -> None:
        place = self._places[event.id]
        match event:
            case Started():
                self._resolved[place] = event.request
            case Stepped() if self._saving.previews and event.step < event.count:
                self._preview(event, self._jobs[place].file)
            case Finished():
                self._save(place, event)
            case Failed():
                self._fail(place, event.error)

    def _preview(self, event: Stepped, file: Path) -> None:
        if event.step % max(event.count // PREVIEWS, 1):
            return
        preview = file.with_name(f"{file.stem}.preview.png")
        try:
            image = event.preview()
            write_whole(preview, lambda path: image.save(path, format="PNG"), force=True)
        except Exception as error:  # the picture itself will tell, when it is decoded and saved
            forget_tensors(error)
            return
        self._previews.add(preview)

    def _save(self, place: int, event: Finished) -> None:
        assert isinstance(event.image, Image.Image)
        try:
            file = save_picture(
                event.image,
                self._jobs[place].file,
                request=self._resolved[place],
                record=event.record,
                adapters=self._saving.adapters,
                setup=self._saving.setup,
                force=self._saving.force,
            )
        except Exception as error:  # it is of this picture alone
            self._fail(place, own_error(error, "the picture could not be saved"))
            return
        self.outcome.finished[place] = Picture(file, event.image, event.record)
        self._on_file(file)

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
