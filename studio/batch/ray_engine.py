"""Renders a batch on a Ray cluster: one actor for each GPU, or for each share of the CPUs. Only the driver writes
files.

Each worker gets further jobs when it has room. A dead worker is replaced, and others do its jobs. A job over which two
workers died fails.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.adapters import sha256
from pipelines.errors import RenderError, SetupError, StudioError
from pipelines.home import Home
from pipelines.home.paths import expanded
from studio.batch.checking import ModelGroup
from studio.batch.placement import Node, Share, share_of
from studio.batch.queue import Held, QueuedPicture, TaskQueue
from studio.batch.remote import Assignment, FileMark, OpenedModel, RemoteWorker, Reply
from studio.batch.renderer import Rendered
from studio.pictures.metadata import Setup
from studio.rendering.opening import Opening
from studio.rendering.runner import Fill

TOKEN_REMEDY = (
    "check the address, and where the cluster asks for a token, put it into ~/.ray/auth_token or RAY_AUTH_TOKEN here "
    "and start every node with RAY_AUTH_MODE=token"
)
MOST_DEATHS_IN_A_ROW = 3
"""The batch is given up after so many deaths per worker, if no worker answers in between."""


@dataclass
class _Actor:
    """One actor: its handle, what it holds, the model that it is to open, and the answer that is awaited."""

    handle: Any
    held: Held = field(default_factory=Held)
    awaited: Any = None
    opening: str | None = None
    pid: int = 0
    place: str = ""


class RayEngine:
    """Renders groups of jobs on a cluster. address: None starts one on this computer. workers: how many; None derives
    it from the cluster's GPUs and CPUs.

    made: computer and GPU -> number of pictures that it has made.
    """

    def __init__(
        self,
        groups: Sequence[ModelGroup],
        *,
        opening: Opening,
        home: Home,
        address: str | None,
        workers: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._groups = {group.model: group for group in groups}
        self._jobs = {job.key: (job, group) for group in groups for job in group.jobs}
        self._queue = TaskQueue(
            QueuedPicture(job.key, group.model, frozenset(use.adapter for use in job.draft.wanted))
            for group in groups
            for job in group.jobs
        )
        self._opening, self._home, self._address, self._wanted = opening, home, address, workers
        self._say = say
        self._assignments: dict[str, Assignment] = {}
        self._sent: dict[str, Any] = {}
        self._actors: list[_Actor] = []
        self._fills: dict[int, Fill] = {}
        self.made: Counter[str] = Counter()
        self._deaths = 0

    @cached_property
    def _ray(self) -> Any:
        if self._address is not None:
            _carry_token()  # before the import, which reads it
        try:
            import ray
        except ImportError as error:
            raise SetupError("the engine ray needs Ray; pip install 'lora-studio[ray]'") from error
        return ray

    @property
    def fill(self) -> Fill:
        return sum(self._fills.values(), Fill())

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that have answered so far."""
        return [actor.pid for actor in self._actors if actor.pid]

    def render(self) -> Iterator[Rendered | None]:
        """Yields what the workers make, as it comes; None after every look."""
        mine = self._connect()
        try:
            share = self._share()
            self._actors = [self._start(share) for _ in range(share.workers)]
            while len(self._queue) or any(actor.held.tasks for actor in self._actors):
                for actor in self._actors:
                    if actor.awaited is None:
                        self._employ(actor)
                awaited = [actor.awaited for actor in self._actors if actor.awaited is not None]
                ready, _ = self._ray.wait(awaited, num_returns=1, timeout=1.0)
                for actor in [actor for actor in self._actors if actor.awaited in ready]:
                    yield from self._answered(actor, share)
                yield None
        finally:
            for actor in self._actors:
                with suppress(Exception):
                    self._ray.kill(actor.handle)
            if mine:
                self._ray.shutdown()

    # -- the cluster -------------------------------------------------------------------------------------

    def _connect(self) -> bool:
        """Connects to Ray. True: this call did; False: the process was connected already. Raises SetupError."""
        if self._ray.is_initialized():
            return False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            quiet = {"logging_level": "ERROR", "log_to_driver": False}
            if self._address is None:
                self._ray.init(include_dashboard=False, num_cpus=self._local_cpus(), **quiet)
            else:
                self._ray.init(address=self._address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            where = f"at {self._address}" if self._address else "on this computer"
            remedy = "; " + TOKEN_REMEDY if self._address else ""
            raise SetupError(f"Ray cannot be reached or started {where}: {error}{remedy}") from error
        return True

    def _local_cpus(self) -> int:
        return max(os.cpu_count() or 1, self._wanted or 1)

    def _share(self) -> Share:
        """How many workers, and what each gets."""
        nodes = [
            Node(int(there.get("CPU", 0)), int(there.get("GPU", 0)))
            for there in (node["Resources"] for node in self._ray.nodes() if node["Alive"])
        ]
        device = self._opening.device or self._home.settings.device
        return share_of(nodes, wanted=self._wanted, jobs=len(self._jobs), device=device)

    def _start(self, share: Share) -> _Actor:
        remote = self._ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0)(RemoteWorker)
        setup = Setup(self._opening.vae, self._opening.low_memory)
        # Ray shows each worker only its own GPU, as number 0
        device = "cuda" if share.gpus else "mps" if self._opening.device == "mps" else "cpu"
        opening = replace(self._opening, device=device)
        return _Actor(remote.remote(opening, setup, self._home, share.threads))

    # -- the dialogue ------------------------------------------------------------------------------------

    def _employ(self, actor: _Actor, wants: int = 1) -> None:
        """Has the actor open a model, or gives it up to `wants` tasks, or lets it go on with those it has."""
        model = self._queue.model_for(actor.held)
        if not actor.held.tasks and model is not None and model != actor.held.model:
            actor.held = Held()
            actor.opening = model
            actor.awaited = actor.handle.open.remote(self._assignment(model))
            return
        tasks = self._queue.take(actor.held, wants, len(self._actors)) if wants else []
        if tasks or actor.held.tasks:
            requests = [(task.key, self._request(task.key)) for task in tasks]
            actor.awaited = actor.handle.advance.remote(requests)

    def _answered(self, actor: _Actor, share: Share) -> Iterator[Rendered]:
        """Takes in one answer of an actor, and employs it again."""
        answer, actor.awaited = actor.awaited, None
        try:
            said = self._ray.get(answer)
        except self._ray.exceptions.RayActorError as error:
            yield from self._bury(actor, share, error)
            return
        except self._ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            raise (
                cause if isinstance(cause, StudioError) else RenderError(f"a worker failed: {error}")
            ) from error
        self._deaths = 0
        if isinstance(said, OpenedModel):
            actor.pid, actor.place = said.pid, said.place
            assert actor.opening is not None
            if said.ready:
                actor.held.model = actor.opening
                self._employ(actor, said.wants)
            else:
                self._send(actor, said, self._assignment(actor.opening))
            return
        assert isinstance(said, Reply)
        self._fills[id(actor)] = said.fill
        for parcel in said.parcels:
            actor.held.tasks.pop(parcel.key, None)
            self.made[actor.place] += parcel.error is None
            yield Rendered(parcel.key, parcel.png, parcel.error)
        self._employ(actor, said.wants)

    def _bury(self, actor: _Actor, share: Share, error: Exception) -> Iterator[Rendered]:
        """Replaces a dead actor; its tasks return to the queue, or fail if too many workers have died over them."""
        self._deaths += 1
        if self._deaths > MOST_DEATHS_IN_A_ROW * len(self._actors):
            raise RenderError(f"the workers die one after the other; the last one: {error}") from error
        self._say(f"a worker died; its {len(actor.held.tasks)} pictures are done by others")
        for task in self._queue.died(actor.held):
            yield Rendered(task.key, error="two workers died while they rendered it (out of memory?)")
        self._actors[self._actors.index(actor)] = self._start(share)

    # -- what workers need -------------------------------------------------------------------------------

    def _request(self, key: str) -> Any:
        job, group = self._jobs[key]
        return group.request(job)

    def _assignment(self, model: str) -> Assignment:
        if model not in self._assignments:
            group = self._groups[model]
            marks = {
                name: FileMark(str(path), sha256(path), path.stat().st_size)
                for name, path in group.shelf.files.items()
            }
            self._assignments[model] = Assignment(model, group.model_hash, marks)
        return self._assignments[model]

    def _send(self, actor: _Actor, opened: OpenedModel, assignment: Assignment) -> None:
        """Sends a worker the files that it lacks, through Ray's object store, and asks it again to open the model."""
        for name in opened.lacks_adapters:
            mark = assignment.adapters[name]
            actor.handle.receive_adapter.remote(mark.digest, self._stored(Path(mark.path)))
        if opened.lacks_model:
            entry = self._home.find_model(assignment.model)
            if entry is None:
                raise SetupError(f"a worker cannot load {assignment.model!r}; give it as a folder or file")
            self._say(f"sending {assignment.model} to a worker that lacks it …")
            path = entry.path
            files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
            content = {
                "" if file == path else file.relative_to(path).as_posix(): file.read_bytes() for file in files
            }
            if assignment.model not in self._sent:
                self._sent[assignment.model] = self._ray.put(content)
            stored = self._sent[assignment.model]
            actor.handle.receive_model.remote(assignment.model_hash, assignment.model, stored)
        actor.awaited = actor.handle.open.remote(assignment)

    def _stored(self, path: Path) -> Any:
        if str(path) not in self._sent:
            self._sent[str(path)] = self._ray.put(path.read_bytes())
        return self._sent[str(path)]


def _carry_token() -> None:
    """If this computer has a token of Ray's, makes Ray use it: without a setting, Ray does not look for one when it
    connects."""
    places = (os.environ.get("RAY_AUTH_TOKEN_PATH"), expanded("~/.ray/auth_token"))
    if os.environ.get("RAY_AUTH_TOKEN") or any(place and Path(place).is_file() for place in places):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
