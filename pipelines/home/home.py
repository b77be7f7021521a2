"""The user's folders (models, LoRAs, VAEs, pictures) and `config.toml`; names become files here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from pipelines import assets
from pipelines.errors import AdapterFileError, ModelError, SetupError
from pipelines.home.names import Entry, find, name_entries, near, scan
from pipelines.home.settings import Roots, Settings, read_settings, write_folders

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Home:
    """Where the user's things lie, and what is found there. Only `made` and `add_folders` create anything.

    settings: what config.toml says.
    roots: further folders to look into: those given first, then config.toml's.
    """

    path: Path
    settings: Settings = field(default_factory=Settings)
    roots: Roots = field(default_factory=Roots)

    @classmethod
    def resolve(
        cls,
        flag: str | Path | None = None,
        *,
        model_dirs: Iterable[str | Path] = (),
        lora_dirs: Iterable[str | Path] = (),
        vae_dirs: Iterable[str | Path] = (),
    ) -> Home:
        """flag > LORA_STUDIO_HOME > the platform's folder for user data; its config.toml is read.

        Raises SetupError for a faulty config.toml and for a given folder that does not exist.
        """
        chosen = flag or os.environ.get("LORA_STUDIO_HOME") or platformdirs.user_data_dir("lora-studio")
        path = Path(chosen).expanduser().absolute()
        settings = read_settings(path)
        given = Roots(_given("model", model_dirs), _given("LoRA", lora_dirs), _given("VAE", vae_dirs))
        return cls(path, settings, given + settings.folders)

    @property
    def outputs(self) -> Path:
        return self.path / "outputs"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def hashes(self) -> Path:
        """Where the hashes of large model files are remembered."""
        return self.cache / "hashes"

    @property
    def database(self) -> Path:
        return self.path / "studio.sqlite"

    def made(self, folder: Path) -> Path:
        """The folder, created if need be, for whoever is about to write. Raises SetupError where it cannot."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"{folder} cannot be created ({error.strerror}); choose another home with --home or "
                "LORA_STUDIO_HOME"
            ) from error
        return folder

    def add_folders(self, roots: Roots) -> Home:
        """Writes further folders into config.toml; returns the home as it then is."""
        self.made(self.path)
        write_folders(self.path, self.settings.folders + roots)
        return Home(self.path, read_settings(self.path), self.roots + roots)

    def models(self) -> tuple[Entry, ...]:
        """All models: the embedded ones, then the folders' (diffusers folders and .safetensors files)."""
        embedded = [Entry("", model.path, embedded=True) for model in assets.embedded_models()]
        own = scan((self.path / "models", *self.roots.models), _is_model)
        return name_entries([*embedded, *(Entry("", path) for path in own)])

    def loras(self) -> tuple[Entry, ...]:
        """All adapters: the embedded ones (each with the model it is made for), then those in the folders."""
        embedded = [Entry("", lora.path, lora.model, embedded=True) for lora in assets.embedded_loras()]
        own = scan((self.path / "loras", *self.roots.loras), _is_weights)
        return name_entries([*embedded, *(Entry("", path) for path in own)])

    def vaes(self) -> tuple[Entry, ...]:
        """All VAEs in the folders: .safetensors files and diffusers folders."""
        own = scan((self.path / "vae", *self.roots.vae), _is_vae)
        return name_entries([Entry("", path) for path in own])

    def find_model(self, source: str | Path, *, paths: bool = True) -> Entry | None:
        """A model by name or, where `paths` allows it, by path; None where it can only be a hub id.

        Embedded names win, then paths, then names in the folders.
        Raises ModelError for an unknown or ambiguous name.
        """
        name = str(source)
        for model in assets.embedded_models():
            if isinstance(source, str) and model.name.casefold() == name.casefold():
                return Entry(model.name, model.path, embedded=True)
        if paths and (path := Path(source).expanduser()).exists():
            return _at(path)
        entries = self.models()
        found = find(name, entries)
        if isinstance(found, Entry):
            return found
        if not found and isinstance(source, str) and HUB_ID.fullmatch(source) and not _is_file_name(source):
            return None
        raise ModelError(self._not_found("model", name, found, entries, self.roots.models))

    def find_lora(
        self,
        source: str | Path,
        model: str | None = None,
        *,
        paths: bool = True,
        entries: Sequence[Entry] | None = None,
    ) -> Entry:
        """An adapter by name or, where `paths` allows it, by path (a file, or a PEFT folder).

        model: name of the loaded model; of two adapters of one name, the one made for it is meant.
        entries: what `loras` gave, for many look-ups in a row.
        Raises AdapterFileError for an unknown or ambiguous name.
        """
        path = Path(source).expanduser()
        if paths and (path.is_file() or (path / "adapter_config.json").is_file()):
            return _at(path)
        entries = self.loras() if entries is None else entries
        found = find(str(source), entries, model)
        if isinstance(found, Entry):
            return found
        usable = [entry for entry in entries if model is None or entry.model in (None, model)]
        raise AdapterFileError(self._not_found("LoRA", str(source), found, usable, self.roots.loras))

    def find_vae(self, source: str | Path, *, paths: bool = True) -> Entry:
        """A VAE by name or, where `paths` allows it, by path.

        Raises ModelError for an unknown or ambiguous name.
        """
        if paths and (path := Path(source).expanduser()).exists():
            return _at(path)
        entries = self.vaes()
        found = find(str(source), entries)
        if isinstance(found, Entry):
            return found
        raise ModelError(self._not_found("VAE", str(source), found, entries, self.roots.vae))

    def _not_found(
        self, kind: str, name: str, matches: Sequence[Entry], entries: Sequence[Entry], roots: Sequence[Path]
    ) -> str:
        """The message for a name that means nothing, or several things."""
        if matches:
            return (
                f"{kind} {name!r} is ambiguous; write one of {', '.join(repr(m.name) for m in matches[:6])}"
            )
        if _is_file_name(name):
            return f"{name} does not exist; check the path, or give the {kind}'s name"
        similar = near(name, entries)
        hint = f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""
        own = self.path / {"model": "models", "LoRA": "loras", "VAE": "vae"}[kind]
        away = [str(root) for root in roots if not root.is_dir()]
        missing = f" (not there at present: {', '.join(away)})" if away else ""
        flag = {"model": "--model-dir", "LoRA": "--lora-dir", "VAE": "config.toml"}[kind]
        return (
            f"unknown {kind} {name!r}: {hint}Put the file into {own}, name further folders with "
            f"{flag}{missing}, or give its path"
        )


def _given(kind: str, folders: Iterable[str | Path]) -> tuple[Path, ...]:
    paths = tuple(Path(folder).expanduser().absolute() for folder in folders)
    for path in paths:
        if not path.is_dir():
            raise SetupError(f"the {kind} folder {path} does not exist; check the path")
    return paths


def _at(path: Path) -> Entry:
    path = path.absolute()
    return Entry(path.name if path.is_dir() else path.stem, path)


def _is_file_name(name: str) -> bool:
    return name.endswith((".safetensors", ".ckpt", ".pt", ".bin", ".pth")) or name.startswith((".", "/", "~"))


def _is_weights(folder: Path, name: str, is_folder: bool) -> bool:
    return not is_folder and name.endswith(".safetensors")


def _is_model(folder: Path, name: str, is_folder: bool) -> bool:
    return (folder / name / "model_index.json").is_file() if is_folder else _is_weights(folder, name, False)


def _is_vae(folder: Path, name: str, is_folder: bool) -> bool:
    return (folder / name / "config.json").is_file() if is_folder else _is_weights(folder, name, False)
