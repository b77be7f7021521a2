"""The worker of a Ray actor: it owns a model, an adapter store and a session, and returns finished PNGs.

It knows nothing of Ray. Models and adapters are named by hash: what lies here under another name or path is found,
what does not is asked for and kept in a folder of its own until the actor ends.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pipelines import Record, Request
from pipelines.errors import ModelError
from pipelines.home import Home
from studio.batch.worker import Fill, Rendered, Worker
from studio.library.hashes import find_adapter, is_adapter
from studio.pictures.metadata import Setup, save_picture
from studio.rendering.opening import Opening, open_pipeline

MOST_ENCODING = 32
"""Finished pictures that may wait to become PNGs before rendering waits for them."""


@dataclass(frozen=True)
class FileMark:
    """A file as the driver has it: its path there, its sha256 and its size."""

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class Assignment:
    """What a worker shall have open: a model (its name and the hash of its weights) and adapters by name."""

    model: str
    model_hash: str
    adapters: Mapping[str, FileMark]


@dataclass(frozen=True)
class Opened:
    """What is not here and must be sent: the model, and adapters by name; else the worker is ready.

    wants: how many pictures it can take. pid: its process. place: its computer's name, and which of its GPUs it has.
    """

    lacks_model: bool
    lacks_adapters: tuple[str, ...]
    wants: int
    pid: int
    place: str

    @property
    def ready(self) -> bool:
        return not (self.lacks_model or self.lacks_adapters)


@dataclass(frozen=True)
class Parcel:
    """A finished picture as its file's bytes, or why there is none."""

    key: str
    png: bytes | None = field(default=None, repr=False)
    record: Record | None = field(default=None, repr=False)
    error: str | None = None


@dataclass(frozen=True)
class Reply:
    """What a worker has to say: pictures, how many more it can take, and how full its calls have been."""

    parcels: tuple[Parcel, ...]
    wants: int
    fill: Fill


class RemoteWorker:
    """Renders what the driver sends. threads: of torch, None leaves them alone."""

    def __init__(self, opening: Opening, setup: Setup, home: Home, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._opening = opening
        self._setup = setup
        self._home = home
        self._scratch = Path(tempfile.mkdtemp(prefix="lora-studio-"))
        self._worker: Worker | None = None
        self._files: dict[str, Path] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="pictures")
        self._encoding: deque[Future[Parcel]] = deque()

    def open(self, assignment: Assignment) -> Opened:
        """Makes the model and the adapters' files ready, or says what is missing. Raises StudioError."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._files = {}
        missing = tuple(
            name for name, mark in assignment.adapters.items() if not self._find_adapter(name, mark)
        )
        sent = self._scratch / "models" / assignment.model_hash / Path(assignment.model).name
        opening = replace(self._opening, source=str(sent) if sent.exists() else assignment.model)
        try:
            pipe = open_pipeline(opening, self._home)
            lacking = pipe.model.checkpoint.hash != assignment.model_hash
        except ModelError:
            if sent.exists():
                raise
            lacking = True
        place = socket.gethostname()
        if self._opening.device == "cuda":
            place += f" GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '')}"
        if lacking or missing:
            return Opened(lacking, missing, 0, os.getpid(), place)
        self._worker = Worker(pipe, self._files)
        return Opened(False, (), self._worker.room, os.getpid(), place)

    def receive_adapter(self, digest: str, content: bytes) -> None:
        """A file that was missing here."""
        _write(self._adapter(digest), content)

    def receive_model(self, model_hash: str, name: str, files: Mapping[str, bytes]) -> None:
        """A model that was missing here: one file ("") or a folder's."""
        root = self._scratch / "models" / model_hash / Path(name).name
        for relative, content in files.items():
            _write(root / relative if relative else root, content)

    def advance(self, tasks: Sequence[tuple[str, Request]]) -> Reply:
        """Takes tasks in, and works until a picture is done (or nothing is left). PNGs are made beside the steps."""
        assert self._worker is not None
        worker = self._worker
        refused = (worker.give(key, request) for key, request in tasks)
        parcels = [self._parcel(one) for one in refused if one]
        while not parcels and (worker.busy or self._encoding):
            if worker.busy:
                self._encoding += [self._threads.submit(self._parcel, one) for one in worker.step()]
            parcels = self._encoded(wait=not worker.busy or len(self._encoding) > MOST_ENCODING)
        wants = worker.room if worker.hungry else 0
        return Reply(tuple(parcels), wants, worker.fill)

    def _encoded(self, *, wait: bool) -> list[Parcel]:
        """The pictures that are PNGs by now; `wait`: one at least."""
        done: list[Parcel] = []
        while self._encoding and (self._encoding[0].done() or (wait and not done)):
            done.append(self._encoding.popleft().result())
        return done

    def _find_adapter(self, name: str, mark: FileMark) -> bool:
        candidates = [Path(mark.path), self._adapter(mark.digest)]
        here = next((path for path in candidates if is_adapter(path, mark.digest, mark.size)), None)
        here = here or find_adapter([e.path for e in self._home.loras()], mark.digest, mark.size)
        if here is not None:
            self._files[name] = here
        return here is not None

    def _adapter(self, digest: str) -> Path:
        return self._scratch / "adapters" / f"{digest}.safetensors"

    def _parcel(self, rendered: Rendered) -> Parcel:
        if rendered.image is None or rendered.request is None or rendered.record is None:
            return Parcel(rendered.key, error=rendered.error)
        file = save_picture(
            rendered.image,
            self._scratch / f"{rendered.key}.png",
            request=rendered.request,
            record=rendered.record,
            adapters=self._files,
            setup=self._setup,
            force=True,
        )
        content = file.read_bytes()
        file.unlink()
        return Parcel(rendered.key, content, rendered.record)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
