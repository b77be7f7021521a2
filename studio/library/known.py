"""Looks up the files that a picture names: by their names, then by their hashes.

A picture cannot name a path: whatever looks like one is taken for a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.checkpoints.folders import folder_files
from pipelines.checkpoints.hashes import short_hash
from pipelines.errors import AdapterFileError, ModelError, StudioError
from pipelines.home import Entry, Home
from pipelines.home.answers import answered
from pipelines.home.names import find, near
from studio.library.hashes import find_adapter, is_adapter
from studio.library.scan import Library

MOST_READ = 2 * 2**30
"""Most bytes of files that are read for a stranger's picture, to compare their hashes."""


@dataclass(frozen=True)
class Known:
    """What a picture says of an adapter that it was made with: its hash, and its size in bytes where it gives that."""

    digest: str
    size: int | None = None


@dataclass(frozen=True)
class Missing:
    """A file that the picture was made with and that is not here. kind: "LoRA", "model" or "VAE".

    near: similar names that are here. hash: as the picture gives it, "" where it gives none. several: the names of
    different files that it could mean.
    """

    kind: str
    name: str
    near: tuple[str, ...] = ()
    hash: str = ""
    several: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.several:
            return f"{self.kind} {self.name!r} could be any of {', '.join(self.several)}; choose one"
        said = f" (hash {self.hash[:12]})" if self.hash else ""
        hint = f"; similar: {', '.join(self.near)}" if self.near else ""
        return f"{self.kind} {self.name!r}{said} is not here{hint}"


class Finder:
    """Finds a picture's files here. Each look-up adds to `missing` and `notes`.

    library: finds LoRAs by the hashes in their headers, which is quick; then it reads at most `MOST_READ` bytes.
    Without it, every file that a hash may mean is read, which takes long.
    """

    def __init__(self, home: Home, library: Library | None = None) -> None:
        self.missing: list[Missing] = []
        self.notes: list[str] = []
        self._home = home
        self._library = library
        self._listed: tuple[Entry, ...] | None = None
        self._left, self._read_up = MOST_READ, False
        self._looked_at: set[Path] = set()

    @property
    def _loras(self) -> tuple[Entry, ...]:
        """Listed only once: there may be thousands."""
        if self._listed is None:
            self._listed = self._home.loras()
        return self._listed

    def model(self, name: str, digest: str, source: str = "") -> str:
        """The model's name here; "" where it is missing or the picture names none. source: a second name, such as a hub
        id, that is tried after the first."""
        for called in (*_names(name), *_names(source)):
            try:
                entry = self._home.find_model(called, paths=False)
            except ModelError:
                continue
            if entry is not None:
                return entry.name
        if names := _names(name):
            called = names[-1]
            self.missing.append(Missing("model", called, tuple(near(called, self._home.models())), digest))
        return ""

    def vae(self, name: str | None) -> str | None:
        """The VAE's name here; None where it is missing or the picture names none."""
        names = _names(name or "")
        for called in names:
            try:
                return self._home.find_vae(called, paths=False).name
            except ModelError:
                continue
        if names:
            self.missing.append(Missing("VAE", names[-1], tuple(near(names[-1], self._home.vaes()))))
        return None

    def lora(self, name: str, said: Known | None, model: str) -> str | None:
        """The LoRA's name here; None where it is missing. Where the file of that name has another hash, a file with the
        right hash is preferred to it.

        model: decides between two embedded LoRAs of one name: the one made for this model is taken.
        """
        entry = None
        for called in (name, *_names(name)):
            try:
                entry = self._home.find_lora(called, model or None, paths=False, entries=self._loras)
                break
            except AdapterFileError:
                continue
        if entry is None:
            return self._lora_without_name(name, said, model)
        if said is None or is_adapter(entry.path, said.digest):
            if said is not None and entry.note:
                self.notes.append(f"LoRA {name!r} was found by its hash: it is called {entry.name!r} here")
            elif entry.note:
                self.notes.append(f"LoRA {name!r}: {entry.note}")
            return entry.name
        same = self._with_hash(said)
        if same is not None:
            self.notes.append(f"LoRA {name!r} of this picture is called {same!r} here (found by its hash)")
            return same
        self.notes.append(
            f"LoRA {name!r} is another file than the one this picture was made with (hash {said.digest[:12]}), so "
            "the picture will differ"
        )
        return entry.name

    def _lora_without_name(self, name: str, said: Known | None, model: str) -> str | None:
        """The LoRA that a name means which no file has, or several have."""
        found = find(name, self._loras, model or None)
        twins = found if isinstance(found, list) else []
        if said is not None:
            same = next((twin.name for twin in twins if is_adapter(twin.path, said.digest, said.size)), None)
            same = same or self._with_hash(said)
            if same is not None:
                self.notes.append(f"LoRA {name!r} was found by its hash: it is called {same!r} here")
                return same
        digest, several = said.digest if said else "", tuple(twin.name for twin in twins[:8])
        self.missing.append(Missing("LoRA", name, tuple(near(name, self._loras)), digest, several))
        return None

    def _with_hash(self, said: Known) -> str | None:
        names = {entry.path: entry.name for entry in self._loras}
        if self._library is None:
            path = find_adapter(names, said.digest, said.size)
            return None if path is None else names[path]
        card = self._library.with_hash(said.digest, said.size)
        if card is not None:
            return card.name
        if said.size is None and not self._read_up:
            return self._read(names, said)
        return None

    def _read(self, names: Mapping[Path, str], said: Known) -> str | None:
        """The file with a hash that no header states, among the first ones, as many as may be read for one picture."""
        for path, name in names.items():
            if path not in self._looked_at:
                try:
                    self._left -= answered(path, path.stat).st_size
                except (OSError, StudioError):
                    continue
                if self._left < 0:
                    self._read_up = True
                    self.notes.append(
                        f"not all LoRAs here were compared with hash {said.digest[:12]}: they take too long to be read"
                    )
                    return None
                self._looked_at.add(path)
            if is_adapter(path, said.digest):
                return name
        return None


def _names(said: str) -> tuple[str, ...]:
    """A file's name as a picture gives it, with and without the folders in front; () for an empty one."""
    name = re.sub(
        r"\.(safetensors|sft|ckpt|pt|bin)$", "", said.replace("\\", "/").strip(), flags=re.IGNORECASE
    )
    return tuple(dict.fromkeys(filter(None, (name, name.rsplit("/", 1)[-1]))))


def model_with_hash(home: Home, digest: str, say: Callable[[str], None] = lambda text: None) -> Entry | None:
    """The model that a picture's hash means, whatever it is called; None where it is not here. This may read all
    models, which takes long. say: called before that."""
    wanted = digest.lower()[:10]
    if not wanted:
        return None
    say("comparing the hashes of the models that are here …")
    return next((entry for entry in home.models() if _hash(entry.path, home) == wanted), None)


def _hash(path: Path, home: Home) -> str:
    """A model's hash as pictures give it; "" for a model that cannot be read."""
    try:
        return short_hash(folder_files(path, torch.float32) if path.is_dir() else [path], home.hashes)
    except (StudioError, OSError):
        return ""
