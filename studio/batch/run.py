"""A batch from its job file to its last picture.

    with Batch(Order(Path("jobs.yaml"), Path("out"))) as batch:
        for outcome in batch.run():
            print(outcome.file or outcome.error)

On entering, everything that can be known before the first picture is judged. If there are mistakes, all of them are
reported at once and nothing is rendered. Later, a job that goes wrong fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pipelines import StudioError, StudioPipeline
from pipelines.errors import RenderError
from pipelines.home import Home
from pipelines.home.paths import expanded
from studio.batch.checking import ModelGroup, check_group, find_places, grouped
from studio.batch.jobfile import JobFile, from_objects, read_jobs
from studio.batch.manifest import Manifest, PictureOutcome
from studio.batch.plan import TEMPLATE, Ground, PlannedPicture, plan
from studio.batch.problems import Problems
from studio.batch.renderer import Rendered, Renderer
from studio.batch.variants import Wildcards
from studio.pictures.metadata import Setup
from studio.rendering.machine import MachineFault, machine_fault, machine_faults
from studio.rendering.opening import Opening, model_name, open_pipeline
from studio.rendering.runner import Fill
from studio.rendering.saver import Saved, Saver

if TYPE_CHECKING:
    from studio.batch.ray_engine import RayEngine

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class BatchOrder:
    """What a batch is asked to do.

    jobs: a job file, or jobs as objects with the same fields. out: the batch's folder.
    opening: how to open the models; its `source` wins over the jobs' own models.
    overrides: fields that win over those of every job. wildcards: their folder (None: `wildcards` beside the job file).
    template: of the files' names. retry_failed: render jobs again that failed in an earlier run. force: overwrite files
    that are not this batch's. engine: "local" or "ray". address: of the Ray cluster (None: start one on this computer).
    workers: of Ray (None: one for each GPU, or one for every four CPU cores).
    check_only: judge on entering, and write nothing.
    """

    jobs: Path | Sequence[Mapping[str, Any]]
    out: Path
    opening: Opening = field(default_factory=Opening)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    wildcards: Path | None = None
    template: str = TEMPLATE
    retry_failed: bool = False
    force: bool = False
    engine: EngineName = "local"
    address: str | None = None
    workers: int | None = None
    check_only: bool = False


class Batch:
    """An order made ready. Use as a context manager: entering judges everything, `run` renders what is missing.

    jobs: all of them. earlier: outcomes of earlier runs. pending: how many outcomes `run` will yield.
    fill: how full the UNet calls have been. Raises StudioError on entering; RequestError lists every mistake.
    """

    def __init__(
        self, order: BatchOrder, home: Home | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.order = order
        self.home = home or Home.resolve()
        self.say = say
        self.jobs: list[PlannedPicture] = []
        self.earlier: list[PictureOutcome] = []
        self.pending = 0
        self.fill = Fill()
        self._stack = ExitStack()
        self._judge_only = False
        self._groups: list[ModelGroup] = []
        self._found: list[PictureOutcome] = []
        self.ray: RayEngine | None = None
        self._ready: tuple[str, StudioPipeline] | None = None

    def __enter__(self) -> Batch:
        with ExitStack() as stack:
            problems = Problems()
            name = self._plan(problems)
            self._judge_only = self.order.check_only or bool(problems.messages)
            if not self._judge_only:
                self._manifest = stack.enter_context(Manifest(expanded(self.order.out).absolute()))
                self._recall()
            self._check(problems)  # even after mistakes: all of them are reported at once
            problems.refuse(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self) -> Iterator[PictureOutcome]:
        """Renders what is missing. Yields outcomes as they come; each is on the disk already.

        Raises MachineFault where pictures cannot be written, as on a full disk. What is done is kept, the others are
        not marked as failed, and the next run goes on.
        """
        try:
            with machine_faults(writing=False):
                yield from self._outcomes()
        except MachineFault as fault:
            done, count = self._manifest.finished(self.jobs), len(self.jobs)
            raise MachineFault(
                f"{fault}, then run the same command again to go on: {done} of {count} pictures are done and kept"
            ) from fault

    def _outcomes(self) -> Iterator[PictureOutcome]:
        folders = {(self._manifest.folder / job.file).parent for job in self.jobs}
        self._manifest.sweep(folders)
        jobs = {job.key: job for group in self._groups for job in group.jobs}
        for outcome in self._found:
            self._manifest.append(outcome)
            yield outcome
        with Saver(self._note) as saver:
            for rendered in self._rendered():
                if rendered is not None:
                    self._save(saver, jobs[rendered.key], rendered)
                yield from saver.told()
            yield from saver.rest()

    def _save(
        self, saver: Saver[PlannedPicture, PictureOutcome], job: PlannedPicture, rendered: Rendered
    ) -> None:
        if rendered.made is None:
            saver.fail(job, RenderError(rendered.error))
        else:
            saver.take(job, rendered.made, self._manifest.folder / job.file, force=self.order.force)

    def _note(self, saved: Saved[PlannedPicture]) -> PictureOutcome:
        """Writes a picture's line into the manifest, after its file, on the saver's thread. Raises MachineFault, also
        for a picture that the machine kept from being written: it has not failed."""
        fault = None if saved.error is None else machine_fault(saved.error, writing=False)
        if fault is not None:
            raise fault from saved.error
        record = None if saved.record is None else saved.record.to_dict()
        error = None if saved.error is None else str(saved.error)
        outcome = PictureOutcome(saved.picture, saved.file, record, error)
        with machine_faults():
            self._manifest.append(outcome)
        return outcome

    # -- before ------------------------------------------------------------------------------------------

    def _plan(self, problems: Problems) -> str:
        order = self.order
        source = order.jobs
        jobs = read_jobs(expanded(source), problems) if isinstance(source, Path) else from_objects(source)
        for note in jobs.notes:
            self.say(note)
        overrides = dict(order.overrides)
        if order.opening.source is not None:
            overrides["model"] = order.opening.source
        ground = Ground(
            model=model_name(replace(order.opening, source=None), self.home),
            overrides=overrides,
            wildcards=Wildcards(self._wildcard_folder(jobs)),
            template=order.template,
            vae=order.opening.vae,
        )
        self.jobs = plan(jobs, ground, problems)
        self._groups = grouped(self.jobs, self.home, problems)
        return jobs.name

    def _wildcard_folder(self, jobs: JobFile) -> Path | None:
        if self.order.wildcards is not None:
            return expanded(self.order.wildcards)
        beside = jobs.folder / "wildcards"
        return beside if beside.is_dir() else None

    def _recall(self) -> None:
        """Takes out the jobs that earlier runs have done."""
        kept: dict[str, PictureOutcome] = {}
        for job in self.jobs:
            outcome = self._manifest.done(job)
            if outcome is not None and not (outcome.failed and self.order.retry_failed):
                kept[job.key] = outcome
        self.earlier = list(kept.values())
        left = (replace(g, jobs=tuple(job for job in g.jobs if job.key not in kept)) for g in self._groups)
        self._groups = [group for group in left if group.jobs]

    def _check(self, problems: Problems) -> None:
        """Judges each group with its model. The first group's model is opened last, and stays open for the run."""
        checked: list[ModelGroup] = []
        taken = {outcome.file for outcome in self.earlier if outcome.file is not None}
        for group in reversed(self._groups):
            self._ready = None
            pipe = self._open(group.model)
            group = check_group(group, pipe, problems)
            if not (problems.messages or self._judge_only):
                group, found = find_places(
                    group,
                    pipe,
                    self._manifest.folder,
                    self._manifest.claimed(),
                    taken,
                    force=self.order.force,
                )
                taken |= {self._manifest.folder / job.file for job in group.jobs}
                taken |= {outcome.file for outcome in found if outcome.file is not None}
                self._found += found
            checked.insert(0, group)
            self._ready = (group.model, pipe)
        self._groups = checked
        self.pending = len(self._found) + sum(len(group.jobs) for group in checked)

    def _open(self, model: str) -> StudioPipeline:
        opening = replace(self.order.opening, source=model)
        if self.order.engine == "ray":  # it is opened only to judge jobs; the workers have the devices
            opening = replace(opening, device="cpu")
        return open_pipeline(opening, self.home, self.say)

    # -- the run -----------------------------------------------------------------------------------------

    def _rendered(self) -> Iterator[Rendered | None]:
        """Yields what the engine makes, and None from time to time."""
        if self.order.engine == "ray":
            yield from self._on_ray()
            return
        for group in self._groups:
            if group.jobs:
                yield from self._on_this_computer(group)

    def _on_ray(self) -> Iterator[Rendered | None]:
        from studio.batch.ray_engine import RayEngine

        self._ready = None
        self.ray = RayEngine(
            [group for group in self._groups if group.jobs],
            opening=self.order.opening,
            home=self.home,
            address=self.order.address,
            workers=self.order.workers,
            say=self.say,
        )
        for rendered in self.ray.render():
            self.fill = self.ray.fill
            yield rendered

    def _on_this_computer(self, group: ModelGroup) -> Iterator[Rendered | None]:
        if self._ready is not None and self._ready[0] == group.model:
            _, pipe = self._ready
        else:
            self._ready = None  # one model at a time
            pipe = self._open(group.model)
        setup = Setup(self.order.opening.vae, self.order.opening.low_memory)
        worker = Renderer(pipe, group.shelf.files, setup)
        before = self.fill
        try:
            for rendered in render_group(worker, group):
                self.fill = before + worker.fill
                yield rendered
        finally:
            moved = pipe.store.stats.device
            worker.close()
            if moved.evictions:
                self.say(f"adapters on the device: {moved}")


def render_group(worker: Renderer, group: ModelGroup) -> Iterator[Rendered | None]:
    """Renders all jobs of a group. Yields what is finished, and None after every round."""
    waiting = iter(group.jobs)
    left = True
    while left or worker.busy:
        while left and worker.room:
            job = next(waiting, None)
            if job is None:
                left = False
            else:
                refused = give(worker, group, job)
                if refused is not None:
                    yield refused
        yield from worker.step()
        yield None


def give(worker: Renderer, group: ModelGroup, job: PlannedPicture) -> Rendered | None:
    """Gives a job to a worker. None: its picture will come; else what says why it cannot be made, such as a lost
    file."""
    try:
        return worker.give(job.key, group.request(job))
    except StudioError as error:
        return Rendered(job.key, error=str(error))


def render_jobs(
    jobs: Path | Sequence[Mapping[str, Any]],
    out: Path,
    *,
    opening: Opening | None = None,
    overrides: Mapping[str, Any] | None = None,
    wildcards: Path | None = None,
    template: str = TEMPLATE,
    retry_failed: bool = False,
    force: bool = False,
    engine: EngineName = "local",
    address: str | None = None,
    workers: int | None = None,
    home: Home | None = None,
) -> Iterator[PictureOutcome]:
    """Renders a job file, or jobs as objects, into a folder. Yields outcomes as they come, without those of earlier
    runs.

    for outcome in render_jobs([{"prompt": "a fox", "seed": "1-4"}], Path("out")):
        print(outcome.file, outcome.record)

    The parameters are those of `BatchOrder`. When the first outcome is asked for, one RequestError lists all mistakes.
    """
    order = BatchOrder(
        jobs=jobs,
        out=out,
        opening=opening or Opening(),
        overrides=overrides or {},
        wildcards=wildcards,
        template=template,
        retry_failed=retry_failed,
        force=force,
        engine=engine,
        address=address,
        workers=workers,
    )
    with Batch(order, home) as batch:
        yield from batch.run()
