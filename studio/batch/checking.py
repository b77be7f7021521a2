"""Checks that need a model: whether adapters fit it, sizes, methods. All are made before the first picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from composers.plan import Use
from pipelines import Request, StudioPipeline
from pipelines.errors import AdapterError, ModelError
from pipelines.home import Entry, Home
from pipelines.home.files import next_name
from pipelines.text.prompt import parse
from studio.batch.manifest import PictureOutcome
from studio.batch.plan import PlannedPicture
from studio.batch.problems import Problems
from studio.drafts.draft import Wanted
from studio.drafts.shelf import Shelf
from studio.pictures.identity import is_whole, record_if_made_by


@dataclass(frozen=True)
class ModelGroup:
    """The jobs of one model, and the adapters that they ask for. model_hash: of its weights; "" until it was opened."""

    model: str
    shelf: Shelf
    jobs: tuple[PlannedPicture, ...]
    model_hash: str = ""
    _preferred: dict[str, float] = field(default_factory=dict, compare=False, repr=False)

    def request(self, job: PlannedPicture) -> Request:
        """The job's request, with its adapters looked up. Raises StudioError."""
        return job.draft.build(self._use)

    def _use(self, wanted: Wanted) -> Use:
        """The use of an adapter. The file that says its preferred weight is read once, not for every job."""
        if wanted.weight is None:
            if wanted.adapter not in self._preferred:
                self._preferred[wanted.adapter] = self.shelf.use(wanted).weight
            wanted = replace(wanted, weight=self._preferred[wanted.adapter])
        return self.shelf.use(wanted)


def grouped(jobs: Iterable[PlannedPicture], home: Home, problems: Problems) -> list[ModelGroup]:
    """The jobs by model, models in the order of their first jobs. Unknown models and adapters go to `problems`."""
    by_model: dict[str, list[PlannedPicture]] = {}
    for job in jobs:
        by_model.setdefault(job.model, []).append(job)
    groups = []
    for model, own in by_model.items():
        try:
            entry: Entry | None = home.find_model(model)
        except ModelError as error:
            problems.add(own[0].where, error)
            continue
        shelf = Shelf(home, entry.name if entry else None)
        for job in own:
            for missing in shelf.missing(job.draft.wanted):
                problems.add(job.where, missing)
        groups.append(ModelGroup(model, shelf, tuple(own)))
    return groups


def check_group(group: ModelGroup, pipe: StudioPipeline, problems: Problems) -> ModelGroup:
    """Judges a group's jobs with their model; mistakes go to `problems`. Returns the group with its jobs sorted by
    size, so that equal latent shapes follow one another."""
    requests = []
    for job in group.jobs:
        with problems.gathered(job.where):
            requests.append((job, group.request(job)))
    pipe.store.add(group.shelf.files)
    for name in group.shelf.files:
        try:
            pipe.store.read(name)
        except AdapterError as error:
            problems.add("", error)
    facts = replace(pipe.model.facts, adapters=tuple(group.shelf.files))
    sizes: dict[tuple[int | None, int | None], list[PlannedPicture]] = {}
    for job, request in requests:
        with problems.gathered(job.where):
            resolved = request.resolved(facts)
            parse(resolved.prompt)
            sizes.setdefault((resolved.width, resolved.height), []).append(job)
    ordered = tuple(job for jobs in sizes.values() for job in jobs)
    return replace(group, jobs=ordered, model_hash=pipe.model.checkpoint.hash)


def find_places(
    group: ModelGroup,
    pipe: StudioPipeline,
    folder: Path,
    claimed: Mapping[Path, str],
    taken: Set[Path],
    *,
    force: bool,
) -> tuple[ModelGroup, list[PictureOutcome]]:
    """The group's jobs that are still to be rendered, each with its file, and the outcomes of jobs whose pictures are
    there already.

    A picture may be there without a line in the manifest, if the run was ended between writing the two. It belongs to
    the job if it says that it was made by exactly this request. Other files are never overwritten, unless `force`.
    """
    facts = replace(pipe.model.facts, adapters=tuple(group.shelf.files))
    taken = set(taken)
    own = {key: path for path, key in claimed.items()}
    jobs: list[PlannedPicture] = []
    found: list[PictureOutcome] = []
    for job in group.jobs:
        file, record = folder / job.file, None
        named = own.get(job.key)
        if named is not None and named.exists() and not is_whole(named):
            named.unlink()
        while True:
            if file not in taken and (force or claimed.get(file, job.key) == job.key):
                if force or not file.exists():
                    break
                record = record_if_made_by(
                    file, group.request(job).resolved(facts), pipe.model.checkpoint.hash
                )
                if record is not None:
                    break
            file = next_name(file)
        taken.add(file)
        job = replace(job, file=file.relative_to(folder))
        if record is not None:
            found.append(PictureOutcome(job, file, record))
        else:
            jobs.append(job)
    return replace(group, jobs=tuple(jobs)), found
