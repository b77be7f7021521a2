"""The worker in a Ray actor. It opens a model, drives it with a Renderer, and returns finished PNGs.

It knows nothing of Ray. Models and adapters are identified by hash, so that files under other names or paths are found.
Files that this computer lacks are asked for, and kept in a folder of their own until the actor ends.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pipelines import Request
from pipelines.errors import ModelError, RenderError
from pipelines.home import Home
from studio.batch.renderer import Rendered, Renderer
from studio.library.hashes import find_adapter, is_adapter
from studio.pictures.metadata import Setup
from studio.rendering.machine import machine_fault
from studio.rendering.opening import Opening, open_pipeline
from studio.rendering.runner import Fill
from studio.rendering.saver import Png, Saved, Saver

ENCODERS = 2
"""Threads that make PNGs beside the steps; the pictures' order does not matter."""


@dataclass(frozen=True)
class FileMark:
    """A file of the driver: its path there, its sha256, and its size in bytes."""

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class Assignment:
    """What a worker should open: a model (its name and the hash of its weights) and adapters by name."""

    model: str
    model_hash: str
    adapters: Mapping[str, FileMark]


@dataclass(frozen=True)
class OpenedModel:
    """A worker's answer to an assignment. lacks_model, lacks_adapters: what must be sent first; without these, the
    worker is ready.

    wants: how many pictures it can take. pid: of its process. place: the name of its computer, and its GPU.
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
    png: Png | None = field(default=None, repr=False)
    error: str | None = None


@dataclass(frozen=True)
class Reply:
    """A worker's answer: finished pictures, how many more it can take, and how full its UNet calls have been."""

    parcels: tuple[Parcel, ...]
    wants: int
    fill: Fill


class RemoteWorker:
    """Renders what the driver sends. threads: of torch; None leaves torch's default."""

    def __init__(self, opening: Opening, setup: Setup, home: Home, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._opening = opening
        self._setup = setup
        self._home = home
        self._scratch = Path(tempfile.mkdtemp(prefix="lora-studio-"))
        self._worker: Renderer | None = None
        self._files: dict[str, Path] = {}
        self._saver = Saver(_parcel, threads=ENCODERS)

    def open(self, assignment: Assignment) -> OpenedModel:
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
            return OpenedModel(lacking, missing, 0, os.getpid(), place)
        self._worker = Renderer(pipe, self._files, self._setup)
        return OpenedModel(False, (), self._worker.room, os.getpid(), place)

    def receive_adapter(self, digest: str, content: bytes) -> None:
        """Keeps an adapter's file that this computer lacked."""
        _write(self._adapter(digest), content)

    def receive_model(self, model_hash: str, name: str, files: Mapping[str, bytes]) -> None:
        """Keeps a model that this computer lacked. files: path in the model's folder -> content; "" for a single
        file."""
        root = self._scratch / "models" / model_hash / Path(name).name
        for relative, content in files.items():
            _write(root / relative if relative else root, content)

    def advance(self, tasks: Sequence[tuple[str, Request]]) -> Reply:
        """Takes in tasks, and works until a picture is done or nothing is left. PNGs are made beside the steps."""
        assert self._worker is not None
        worker = self._worker
        refused = (worker.give(key, request) for key, request in tasks)
        parcels = [Parcel(one.key, error=one.error) for one in refused if one]
        while not parcels and (worker.busy or self._saver.pending):
            if worker.busy:
                for one in worker.step():
                    self._encode(one)
            parcels = list(self._saver.told(least=0 if worker.busy else 1))
        return Reply(tuple(parcels), worker.room, worker.fill)

    def _encode(self, rendered: Rendered) -> None:
        if rendered.made is None:
            self._saver.fail(rendered.key, RenderError(rendered.error))
        else:
            self._saver.take(rendered.key, rendered.made, self._scratch / f"{rendered.key}.png", force=True)

    def _find_adapter(self, name: str, mark: FileMark) -> bool:
        candidates = [Path(mark.path), self._adapter(mark.digest)]
        here = next((path for path in candidates if is_adapter(path, mark.digest, mark.size)), None)
        here = here or find_adapter([e.path for e in self._home.loras()], mark.digest, mark.size)
        if here is not None:
            self._files[name] = here
        return here is not None

    def _adapter(self, digest: str) -> Path:
        return self._scratch / "adapters" / f"{digest}.safetensors"


def _parcel(saved: Saved[str]) -> Parcel:
    """What is sent of a picture; its file is deleted here. Raises MachineFault where this computer's disk is in the
    way, since the picture has not failed."""
    fault = None if saved.error is None else machine_fault(saved.error, writing=False)
    if fault is not None:
        raise fault from saved.error
    if saved.file is None or saved.record is None:
        return Parcel(saved.picture, error=str(saved.error))
    content = saved.file.read_bytes()
    saved.file.unlink()
    return Parcel(saved.picture, Png(content, saved.record))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
