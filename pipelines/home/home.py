"""The user's folders (models, LoRAs, VAEs, embeddings, pictures) and `config.toml`. Names are looked up here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from pipelines import assets
from pipelines.errors import AdapterFileError, ModelError, SetupError
from pipelines.home import files
from pipelines.home.answers import NoAnswer, answered, is_silent, silent
from pipelines.home.files import whole_text
from pipelines.home.lookup import by_own_name, of_another_ending, one_of_copies
from pipelines.home.names import (
    WEIGHTS,
    WRITERS_NAMES,
    Entry,
    LeftOut,
    find,
    name_entries,
    near,
    same_name,
    stem_of,
)
from pipelines.home.paths import expanded
from pipelines.home.plain import short
from pipelines.home.scanning import scan
from pipelines.home.settings import KINDS, Roots, Settings, read_settings, write_folders

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Home:
    """Where the user's files are, and what is found there. Only `made` and `add_folders` create anything.

    path: the home's own folder. settings: what config.toml says.
    roots: further folders to look into: those that were given, then config.toml's.
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
        """The home at `flag`, else at $LORA_STUDIO_HOME, else in the platform's folder for user data.

        Its config.toml is read. model_dirs, lora_dirs, vae_dirs: further folders to look into.
        Raises SetupError for a faulty config.toml and for a given folder that does not exist.
        """
        chosen = flag or os.environ.get("LORA_STUDIO_HOME") or platformdirs.user_data_dir("lora-studio")
        path = expanded(chosen).absolute()
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
        """The folder, created if need be. Raises SetupError where it cannot be."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"{folder} cannot be created ({error.strerror}); choose another home with --home or "
                "LORA_STUDIO_HOME"
            ) from error
        return folder

    def add_folders(self, roots: Roots) -> Home:
        """Write further folders into config.toml, and return the home as it then is. Raises SetupError, and OSError."""
        self.made(self.path)
        write_folders(self.path, self.settings.folders + roots)
        return Home(self.path, read_settings(self.path), self.roots + roots)

    def _roots(self, kind: str) -> tuple[Path, ...]:
        """The folders of one of `KINDS`: the home's own, then the further ones."""
        further: tuple[Path, ...] = getattr(self.roots, kind)
        return (self.path / kind, *further)

    def models(self) -> tuple[Entry, ...]:
        """All models: the embedded ones, then those in the folders (diffusers folders and .safetensors files)."""
        embedded = [Entry("", model.path, embedded=True) for model in assets.embedded_models()]
        own = scan(self._roots("models"), _is_model)
        return name_entries([*embedded, *(Entry("", path) for path in own)])

    def loras(self) -> tuple[Entry, ...]:
        """All adapters: the embedded ones (each with the model that it is made for), then those in the folders."""
        return self.look_for_loras()[0]

    def look_for_loras(self) -> tuple[tuple[Entry, ...], tuple[LeftOut, ...]]:
        """(what `loras` returns, what is left out of it: links that lead elsewhere, and names that are no UTF-8)."""
        embedded = [Entry("", lora.path, lora.model, embedded=True) for lora in assets.embedded_loras()]
        roots, left_out = self._roots("loras"), list[LeftOut]()
        own = [
            Entry("", path, foldered=_foldered(path, roots)) for path in scan(roots, _is_weights, left_out)
        ]
        return name_entries([*embedded, *own]), tuple(left_out)

    def vaes(self) -> tuple[Entry, ...]:
        """All VAEs in the folders: .safetensors files and diffusers folders."""
        own = scan(self._roots("vae"), _is_vae)
        return name_entries([Entry("", path) for path in own])

    def embeddings(self) -> tuple[Entry, ...]:
        """All embeddings in the folders: .safetensors files. Prompts name them by these names."""
        own = scan(self._roots("embeddings"), _is_weights)
        return name_entries([Entry("", path) for path in own])

    @property
    def silent(self) -> tuple[str, ...]:
        """The paths in the home's folders that do not answer at present. Lists leave them out."""
        own = (self.path / kind for kind in KINDS)
        return silent([*own, *(folder for folders in self.roots.lists for folder in folders)])

    def find_model(
        self, source: str | Path, *, paths: bool = True, entries: Sequence[Entry] | None = None
    ) -> Entry | None:
        """A model by name or, where `paths` allows it, by path. None where the source can only be a hub id.

        Names of embedded models come first, then paths, then names in the folders. entries: what `models` returns, if
        the caller has it. Raises ModelError for an unknown or ambiguous name, and NoAnswer.
        """
        name = str(source)
        for model in assets.embedded_models():
            if isinstance(source, str) and model.name.casefold() == name.casefold():
                return Entry(model.name, model.path, embedded=True)
        if paths and files.exists(path := expanded(source)):
            return _at(path)
        entries = self.models() if entries is None else entries
        found = find(name, entries, roots=() if paths else self._roots("models"))
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
        """An adapter by name or, where `paths` allows it, by path (a file, or a folder that PEFT or diffusers wrote).

        model: the name of the loaded model. Of several adapters of one name, the one that is made for it is taken; of
        identical copies, the first. A name that no file has may be one that a file gives itself (`ss_output_name`).
        entries: what `loras` returns, if the caller has it.
        Raises AdapterFileError for an unknown or ambiguous name, and NoAnswer.
        """
        path = expanded(source)
        if paths and files.is_regular(path):
            return _at(path)
        if paths and files.is_folder(path):
            for name in WRITERS_NAMES:
                if files.is_regular(inside := path.absolute() / f"{name}{WEIGHTS}"):
                    return Entry(inside.parent.name, inside, foldered=True)
            if path.is_absolute() or os.sep in str(source):
                raise AdapterFileError(_no_adapter_in(path))
        entries = self.loras() if entries is None else entries
        found = find(str(source), entries, model, () if paths else self._roots("loras"))
        if not found and len(str(source)) <= _LONGEST_QUOTED:
            own = by_own_name(str(source), entries)
            found = own[0] if len(own) == 1 else own
        if isinstance(found, list):
            found = one_of_copies(found) or found
        if isinstance(found, Entry):
            return found
        usable = [entry for entry in entries if model is None or entry.model in (None, model)]
        away = "" if found else _of_left_out(str(source), self.look_for_loras()[1])
        raise AdapterFileError(away or self._not_found("LoRA", str(source), found, usable, self.roots.loras))

    def find_vae(self, source: str | Path, *, paths: bool = True) -> Entry:
        """A VAE by name or, where `paths` allows it, by path.

        Raises ModelError for an unknown or ambiguous name, and NoAnswer.
        """
        if paths and files.exists(path := expanded(source)):
            return _at(path)
        entries = self.vaes()
        found = find(str(source), entries, roots=() if paths else self._roots("vae"))
        if isinstance(found, Entry):
            return found
        raise ModelError(self._not_found("VAE", str(source), found, entries, self.roots.vae))

    def _not_found(
        self, kind: str, name: str, matches: Sequence[Entry], entries: Sequence[Entry], roots: Sequence[Path]
    ) -> str:
        """The message for a name that means nothing, or that means several things. matches: what it could mean."""
        name = name if len(name) <= _LONGEST_QUOTED else short(name)
        if matches:
            names = ", ".join(repr(match.name) for match in matches[:6])
            places = "; ".join(str(match.path) for match in matches[:6])
            return f"{kind} {name!r} is ambiguous; write one of {names} ({places})"
        folder = {"model": "models", "LoRA": "loras", "VAE": "vae"}[kind]
        if other := of_another_ending(name, self._roots(folder)):
            return f"{kind} {name!r}: {other}"
        if _is_file_name(name):
            return f"{name} does not exist; check the path, or give the {kind}'s name"
        similar = near(name, entries)
        hint = f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""
        own = self.path / folder
        flag = {"model": "--model-dir", "LoRA": "--lora-dir", "VAE": "config.toml"}[kind]
        return (
            f"unknown {kind} {name!r}: {hint}{_left_out((own, *roots))}Put the file into {own}, name further folders "
            f"with {flag}{_away(roots)}, or give its path"
        )


_LONGEST_QUOTED = 255  # characters, which a file's name may have


def _no_adapter_in(folder: Path) -> str:
    """The message for a folder that is no adapter. It names the files in it that might be meant."""
    try:
        inside = sorted(
            answered(folder, lambda: [entry.name for entry in os.scandir(folder) if entry.is_file()])
        )
    except OSError:
        inside = []
    weights = [name for name in inside if name.lower().endswith((WEIGHTS, ".bin", ".pt"))][:6]
    what = f"it holds {', '.join(map(repr, weights))}" if weights else "it holds no weights"
    return (
        f"{folder} is a folder without adapter_model{WEIGHTS} or pytorch_lora_weights{WEIGHTS} ({what}); give the "
        f"{WEIGHTS} file itself"
    )


def _of_left_out(name: str, left_out: Sequence[LeftOut]) -> str:
    """The message for a name that only something has that is not listed, or that is inside of it; "" for others."""
    parts = [part for part in name.replace("\\", "/").split("/") if part] or [name]
    for one in left_out:
        if same_name(one.name, parts[0]) or same_name(one.name, parts[-1]):
            what = (
                f"a link of that name leads {one.why.partition(' leads ')[2]}"
                if " leads " in one.why
                else one.why
            )
            return f"LoRA {short(name)!r}: {what}. It is {whole_text(str(one.path))}"
    return ""


def _foldered(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a file has its folder's name: it is called as its writer calls all, and is in a folder of its own."""
    return stem_of(path.name).lower() in WRITERS_NAMES and path.parent not in roots


def _left_out(roots: Sequence[Path]) -> str:
    """A sentence for each folder that could not be looked into for now."""
    return "".join(f"The folder {at} does not answer; try again once it does. " for at in silent(roots))


def _away(roots: Sequence[Path]) -> str:
    """A remark on the folders that do not exist."""
    away = [str(root) for root in roots if not is_silent(root) and not files.is_folder(root)]
    return f" (not there at present: {', '.join(away)})" if away else ""


def _given(kind: str, folders: Iterable[str | Path]) -> tuple[Path, ...]:
    """The folders as paths. Raises SetupError for one that does not exist; one that does not answer may exist."""
    paths = tuple(expanded(folder).absolute() for folder in folders)
    for path in paths:
        with suppress(NoAnswer):
            if not files.is_folder(path):
                raise SetupError(f"the {kind} folder {path} does not exist; check the path")
    return paths


def _at(path: Path) -> Entry:
    path = path.absolute()
    return Entry(path.name if files.is_folder(path) else path.stem, path)


def _is_file_name(name: str) -> bool:
    return name.lower().endswith((WEIGHTS, ".ckpt", ".pt", ".bin", ".pth")) or name.startswith(
        (".", "/", "~")
    )


def _is_weights(folder: Path, name: str, is_folder: bool) -> bool:
    return not is_folder and name.lower().endswith(WEIGHTS)


def _is_model(folder: Path, name: str, is_folder: bool) -> bool:
    return _holds(folder, name, "model_index.json") if is_folder else _is_weights(folder, name, False)


def _is_vae(folder: Path, name: str, is_folder: bool) -> bool:
    return _holds(folder, name, "config.json") if is_folder else _is_weights(folder, name, False)


def _holds(folder: Path, name: str, file: str) -> bool:
    return os.path.isfile(os.path.join(folder, name, file))
