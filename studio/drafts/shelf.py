"""The adapters that a job asks for. They are found by name before anything is loaded, and then loaded together."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from composers.plan import Use
from pipelines import Request, StudioPipeline
from pipelines.adapters import LoadReport, inspect_file
from pipelines.errors import AdapterFileError
from pipelines.home import Entry, Home
from studio.drafts.draft import Draft, Wanted, placed


class LoadedNames(dict[Path, str]):
    """File -> the name under which it is loaded; no two files share a name. Safe for several threads."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._taken: set[str] = set()

    def claim(self, path: Path, wishes: Iterable[str]) -> str:
        """The file's name: the one that it has already, else the first wish that no other file has."""
        with self._lock:
            if path not in self:
                name = next(name for name in wishes if name.casefold() not in self._taken)
                self._taken.add(name.casefold())
                self[path] = name
            return self[path]


class Shelf:
    """Looks adapters up, remembers which are needed, and loads them.

    model: name of the model that they are for. names: file -> name, shared by all shelves that load into one model.
    paths: whether a path may stand for a name.
    """

    def __init__(
        self,
        home: Home,
        model: str | None,
        *,
        names: LoadedNames | None = None,
        paths: bool = True,
    ) -> None:
        self._home = home
        self._model = model
        self._entries: tuple[Entry, ...] | None = None
        self._found: dict[tuple[str, bool], Entry] = {}
        self._lost: dict[tuple[str, bool], AdapterFileError] = {}
        self._preferred: dict[Path, float | None] = {}
        self._names = LoadedNames() if names is None else names
        self._paths = paths

    @property
    def found(self) -> tuple[Entry, ...]:
        """The adapters that were looked up and found."""
        return tuple(self._found.values())

    @property
    def files(self) -> Mapping[str, Path]:
        """Name -> file of every adapter that is needed."""
        return {name: path for path, name in dict(self._names).items()}  # other threads add to it

    def missing(self, wanted: Iterable[Wanted]) -> list[AdapterFileError]:
        """Why adapters cannot be found; empty where all are here."""
        errors = []
        for one in wanted:
            try:
                self._path(one)
            except AdapterFileError as error:
                errors.append(error)
        return errors

    def use(self, wanted: Wanted) -> Use:
        """The use of an adapter, under the name that it will be loaded by. Where no strength is asked for, it has the
        one that its file prefers.

        Raises AdapterFileError for an unknown or ambiguous name; it gives similar names.
        """
        path = self._path(wanted)
        preferred = self._preferred_weight(path) if wanted.weight is None else None
        return wanted.use(self._names[path], preferred)

    def load(self, pipe: StudioPipeline) -> list[LoadReport]:
        """Loads every adapter that is needed. Raises AdapterError."""
        return [pipe.load_lora_weights(path, adapter_name=name) for name, path in self.files.items()]

    def _preferred_weight(self, path: Path) -> float | None:
        """The strength that the file prefers. It is read once, so that all pictures of a job get the same one."""
        if path not in self._preferred:
            self._preferred[path] = inspect_file(path).metadata.preferred_weight
        return self._preferred[path]

    def _listed(self) -> tuple[Entry, ...]:
        """Listed only once: there may be thousands."""
        if self._entries is None:  # no `cached_property`: in Python 3.11 its one lock would serve all shelves
            self._entries = self._home.loras()
        return self._entries

    def _path(self, wanted: Wanted) -> Path:
        """The file that is wanted. It is noted as needed, under a name that no other needed file has."""
        paths = self._paths and not wanted.named
        key = (wanted.adapter.casefold(), paths)
        if key in self._lost:
            raise self._lost[key]
        if key not in self._found:
            try:
                self._found[key] = self._home.find_lora(
                    wanted.adapter, self._model, paths=paths, entries=self._listed()
                )
            except AdapterFileError as error:
                self._lost[key] = error
                raise
        path = self._found[key].path
        wishes = ("/".join([*path.parts[-1 - up : -1], path.stem]) for up in range(len(path.parts)))
        # by its listed name if that is free, since a method's settings may use it
        self._names.claim(path, chain([self._found[key].name], wishes))
        return path


def requests_of(drafts: Sequence[Draft], shelf: Shelf) -> list[Request]:
    """The requests of all drafts. Raises AdapterFileError that names every adapter that cannot be found, and
    StudioError for a draft that makes no request."""
    missing: dict[str, None] = {}
    for draft in drafts:
        for error in shelf.missing(draft.wanted):
            missing[str(placed(error, draft.where))] = None
    if missing:
        raise AdapterFileError("\n".join(missing))
    return [draft.build(shelf.use) for draft in drafts]
