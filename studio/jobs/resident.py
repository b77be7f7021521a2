"""One loaded model at work: its pipeline, its runner, and its adapters, which are read when they are first needed.

Everything here runs on the worker's thread.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from pipelines import Event, Stepped, StudioPipeline
from pipelines.checkpoints.hub import DownloadProgress
from pipelines.errors import AdapterFileError
from pipelines.flight import Aside
from pipelines.home import Home
from pipelines.home.answers import answered
from pipelines.memory import empty_cache
from pipelines.request import Facts
from pipelines.spectrum import cached
from studio.drafts.shelf import Shelf
from studio.jobs.gate import ModelKey, Trust
from studio.jobs.job import ModelState
from studio.jobs.queue import Task
from studio.rendering.opening import Opening, open_pipeline
from studio.rendering.runner import Runner

Stamp = tuple[int, int]


class Resident:
    """A model that is loaded. Raises ModelError and SetupError where it cannot be.

    key: which model it is. names: file -> the name it is loaded by, shared with the shelves of its jobs.
    notify, progress: see `open_pipeline`.
    """

    def __init__(
        self,
        key: ModelKey,
        names: dict[Path, str],
        home: Home,
        opening: Opening,
        trust: Trust,
        notify: Callable[[str], None],
        progress: DownloadProgress,
    ) -> None:
        self.key = key
        self.opening = opening
        self.pipe: StudioPipeline = open_pipeline(
            opening, home, notify, allow_downloads=trust.downloads, progress=progress
        )
        self._names = names
        self._home = home
        self._stamps: dict[str, Stamp] = {}
        self._runner: Runner[Task] = Runner(self.pipe.model)

    def close(self) -> None:
        """Frees the device's memory."""
        device = self.pipe.model.device
        del self._runner, self.pipe
        gc.collect()
        empty_cache(device)

    # -- pictures ----------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return self._runner.idle

    @property
    def tasks(self) -> list[Task]:
        """The pictures that were given and are not done."""
        return self._runner.pictures

    @property
    def hungry(self) -> bool:
        """Whether more pictures should be given, so that no row stays empty."""
        return self._runner.hungry

    @property
    def owners_waiting(self) -> set[str]:
        """The owners of pictures that were given and are not in flight yet."""
        return {task.work.job.owner for task in self._runner.waiting}

    def give(self, task: Task, shelf: Shelf) -> float:
        """Gives a picture to the session; returns its cost, in UNet rows x steps x pixels.

        Raises StudioError for a picture that cannot be rendered.
        """
        request = task.draft.build(shelf.use)
        self._load([use.adapter for use in request.uses])
        ticket = self._runner.give(task, request, owner=task.work.job.owner, priority=task.work.priority)
        task.request, task.count = ticket.request, ticket.steps
        task.work.most_steps = max(task.work.most_steps, task.count)
        assert task.request.width is not None
        assert task.request.height is not None
        return float(ticket.all_rows * task.request.width * task.request.height)

    @property
    def model_hash(self) -> str:
        """The hash of the model's weights."""
        return self.pipe.model.checkpoint.hash

    def resume(self, task: Task, aside: Aside) -> None:
        """Goes on with a picture that was set aside. Raises AdapterError where its adapters have changed since."""
        self._load([use.adapter for use in aside.flight.request.uses])
        self._runner.resume(task, aside)

    def suspend(self) -> tuple[list[tuple[Task, Aside]], list[Task]]:
        """Takes out every picture that is not being decoded. Returns those in flight with what `resume` needs, and
        those that had not begun."""
        return self._runner.suspend()

    def cancel(self, task: Task) -> bool:
        """Takes a picture out before its next UNet call. False: it is not here, or not here any more."""
        return self._runner.cancel(task)

    def step(self) -> list[tuple[Task, Event]]:
        """Runs one round of the session; returns its events, each with its picture."""
        events = self._runner.step()
        for task, event in events:
            if isinstance(event, Stepped):
                task.step, task.count = event.step, event.count
        return events

    def start_over(self) -> list[Task]:
        """Begins a new session after the old one broke; returns the pictures that were in the old one."""
        return self._runner.start_over()

    # -- adapters ----------------------------------------------------------------------------------------

    @property
    def files(self) -> dict[str, Path]:
        """Name -> file of every adapter that was asked for."""
        return {name: path for path, name in dict(self._names).items()}  # shelves of other threads add to it

    def _load(self, names: list[str]) -> None:
        """Reads these adapters into memory; the session brings them to the device. Raises AdapterError."""
        files = self.files
        loaded_as = {name.casefold(): name for name in files}
        wanted = [loaded_as[name.casefold()] for name in names if name.casefold() in loaded_as]
        in_use = {use.adapter for task in self.tasks if task.request for use in task.request.uses}
        for name in wanted:
            self._refresh(name, files[name], in_use)
        self.pipe.store.add(files)
        self.pipe.store.ensure(wanted)
        for name in wanted:
            profile = cached(self._home, self.pipe.model, name)
            if profile is not None:
                self.pipe.model.profiled[name] = profile.band

    def _refresh(self, name: str, path: Path, in_use: set[str]) -> None:
        """Forgets an adapter whose file has changed. Raises AdapterFileError while pictures still use it."""
        try:
            now = answered(path, path.stat)
        except OSError as error:
            raise AdapterFileError(
                f"LoRA {name!r}: {path} is gone ({error.strerror}); put it back"
            ) from error
        stamp = (now.st_mtime_ns, now.st_size)
        if self._stamps.get(name, stamp) != stamp:
            if name in in_use:
                raise AdapterFileError(
                    f"LoRA {name!r}: {path} was changed while pictures were made with it; try again once they are done"
                )
            self.pipe.store.unload(name)
        self._stamps[name] = stamp

    # -- what others may know ----------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        return self.pipe.model.facts

    def state(self) -> ModelState:
        model = self.pipe.model
        checkpoint, card, facts = model.checkpoint, model.checkpoint.card, model.facts
        defaults = checkpoint.defaults
        return ModelState(
            source=self.key.source,
            label=checkpoint.label,
            family=checkpoint.family.name,
            defaults=defaults,
            size_unit=facts.size_unit,
            width_of_text=int(model.unet.config.cross_attention_dim),
            block_map=dict(facts.block_map),
            vocabulary=card.vocabulary if card else {},
            examples=card.examples if card else (),
            description=card.description if card else "",
            adapters=facts.adapters,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            rows_at_once=model.rows_at_once(model.latent_shape(defaults.width, defaults.height)),
        )
