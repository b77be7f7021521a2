"""`models`, `loras`, `inspect` and `import-paths`: what is there, as a table, plain text or JSON."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.commands.flags import Command
from studio.terminal.exits import BAD_INPUT, OK, SOME_FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.adapters import Inspection
    from pipelines.home import Entry, Home
    from studio.library.fit import Fit
    from studio.library.models import ModelEntry
    from studio.terminal.progress import Teller

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Inspect:
    """What `inspect` is to look at. files: LoRAs and models by path or name, pictures by path."""

    files: tuple[str, ...]
    as_json: bool = False


@dataclass(frozen=True)
class Models:
    as_json: bool = False


@dataclass(frozen=True)
class Loras:
    """What `loras` is to list. model: only LoRAs that may fit it."""

    model: str | None = None
    as_json: bool = False


@dataclass(frozen=True)
class ImportPaths:
    """What `import-paths` is to read. path: an extra_model_paths.yaml, or the folder of another program."""

    path: str


# -- flags -----------------------------------------------------------------------------------------------


def _inspect_flags(command: ArgumentParser) -> None:
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="a LoRA or a model (path or name), or a picture"
    )
    _json_flag(command)


def _loras_flags(command: ArgumentParser) -> None:
    command.add_argument("--model", metavar="M", help="only those that may fit this model")
    _json_flag(command)


def _paths_flags(command: ArgumentParser) -> None:
    command.add_argument("path", metavar="PATH", help="an extra_model_paths.yaml, or the program's folder")


def _json_flag(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _read_inspect(args: Namespace) -> Inspect:
    return Inspect(tuple(args.files), args.json)


def _read_models(args: Namespace) -> Models:
    return Models(args.json)


def _read_loras(args: Namespace) -> Loras:
    return Loras(args.model, args.json)


def _read_paths(args: Namespace) -> ImportPaths:
    return ImportPaths(args.path)


# -- runs ------------------------------------------------------------------------------------------------


def inspect(values: Inspect, home: Home, teller: Teller) -> int:
    """Prints what each file is. Exit code: 1 if some cannot be read, 2 if none can."""
    from composers import StudioError

    seen: list[dict[str, Any]] = []
    for file in values.files:
        try:
            result = _inspected(file, home)
        except StudioError as error:
            teller.error(str(error))
            continue
        seen.append(result if isinstance(result, dict) else result.to_dict())
        if not values.as_json:
            print(_shown(result) if isinstance(result, dict) else result)
    if values.as_json:
        _print_json(seen)
    failed = len(values.files) - len(seen)
    return OK if not failed else SOME_FAILED if seen else BAD_INPUT


def _inspected(file: str, home: Home) -> Inspection | dict[str, Any]:
    from composers import StudioError
    from pipelines.adapters import inspect_file
    from pipelines.home.files import exists
    from pipelines.home.paths import expanded

    path = expanded(file)
    if path.suffix.lower() in PICTURES:
        return _picture(path, home)
    if _is_model(path):
        return _model_at(path)
    if exists(path):
        return inspect_file(path)
    try:
        return inspect_file(home.find_lora(file).path)
    except StudioError:
        if named := [entry.path for entry in home.models() if entry.name == file]:
            return _model_at(named[0])
        raise


def _is_model(path: Path) -> bool:
    """Whether a path is a diffusers folder, or a file that holds a model's UNet."""
    from composers import StudioError
    from pipelines.checkpoints.single_file import holds_unet
    from pipelines.home.files import is_regular

    if is_regular(path / "model_index.json"):
        return True
    try:
        return path.suffix.lower() == ".safetensors" and is_regular(path) and holds_unet(path)
    except StudioError:  # whoever reads it as a LoRA says what is wrong
        return False


def _model_at(path: Path) -> dict[str, Any]:
    """What a model is, in the line that lists of models show. Raises ModelError for one that cannot be used."""
    from pipelines.errors import ModelError
    from studio.library.models import line_of

    line, usable = line_of(path)
    if not usable:
        raise ModelError(line)
    return {"path": str(path), "base": line}


def _picture(path: Path, home: Home) -> dict[str, Any]:
    """What a picture says and what that means here, or why it cannot be understood."""
    from composers import StudioError
    from pipelines.home.plain import read_json
    from studio.drafts.entries import plain_draft
    from studio.library.scan import Library
    from studio.pictures.restore import restore
    from studio.pictures.texts import CHUNK, PARAMETERS, read_texts

    texts = read_texts(path)
    ours = read_json(texts[CHUNK], f"{path}: its {CHUNK!r} text") if CHUNK in texts else None
    said = {"path": str(path), PARAMETERS: texts.get(PARAMETERS), CHUNK: ours}
    try:
        found = restore(path, home, Library(lambda: home))
    except StudioError as error:
        return {**said, "program": None, "notes": [str(error)]}
    return {
        **said,
        "program": found.program,
        "settings": plain_draft(found.draft),
        "model": found.model,
        "missing": [str(one) for one in found.missing],
        "notes": list(found.notes),
    }


def _shown(result: dict[str, Any]) -> str:
    """What a model is, or what a picture says, in lines."""
    from pathlib import Path

    from studio.drafts.fields import FIELDS
    from studio.pictures.texts import PARAMETERS, is_object

    lines = [Path(result["path"]).name]
    if "base" in result:
        return "\n  ".join([*lines, result["base"]])
    said = result[PARAMETERS] and not is_object(result[PARAMETERS])
    if result["program"] is None and not said:
        return "\n  ".join([*lines, "says nothing about how it was made", *result["notes"]])
    if said:
        lines += result[PARAMETERS].splitlines()
    else:
        settings = result["settings"]
        lines += [f"model: {result['model']}"] if result["model"] else []
        lines += [f"{field.name}: {settings[field.name]}" for field in FIELDS if settings.get(field.name)]
    lines += [f"missing: {one}" for one in result.get("missing", ())]
    return "\n  ".join([*lines, *result["notes"]])


def models(values: Models, home: Home, teller: Teller) -> int:
    """Lists every model: its name, what it is, and where it is."""
    from studio.library.models import list_models
    from studio.terminal.table import print_table

    rows = [_model(entry) for entry in list_models(home)]
    _tell_silent(home)
    if values.as_json:
        _print_json(rows)
        return OK
    columns = {"Name": "name", "Base": "base", "MB": "megabytes", "": "note", "Path": "path"}
    print_table(columns, rows)
    if not rows:
        print(f"no models yet: put them into {home.path / 'models'}, or use --model-dir", file=sys.stderr)
    return OK


def _model(entry: ModelEntry) -> dict[str, Any]:
    notes = [word for word, true in (("built in", entry.embedded), ("default", entry.default)) if true]
    return {
        "name": entry.name,
        "base": entry.base if entry.usable else f"cannot be used: {entry.base}",
        "megabytes": round(entry.size / 2**20),
        "note": ", ".join(notes),
        "path": str(entry.path),
    }


def loras(values: Loras, home: Home, teller: Teller) -> int:
    """Lists every LoRA, or those that may fit a model."""
    from pipelines.home.answers import each
    from pipelines.home.files import whole_text
    from studio.library.fit import fit_of
    from studio.terminal.table import print_table

    fit = None if values.model is None else fit_of(values.model, home)
    listed, left_out = home.look_for_loras()
    entries = {entry.path: entry for entry in listed}
    seen = each(entries, lambda path: _lora(entries[path], fit))
    rows = [row for path in entries if (row := seen.get(path)) is not None]
    if fit is None:
        rows += [_unusable(one.name, whole_text(str(one.path)), one.why) for one in left_out]
    _tell_silent(home)
    if values.as_json:
        _print_json(rows)
        return OK
    columns = {"Name": "name", "Weight": "weight", "Words": "triggers", "For": "made_for", "Type": "type"}
    print_table(columns, rows)
    if not rows:
        print(f"no LoRAs found: put them into {home.path / 'loras'}, or use --lora-dir", file=sys.stderr)
    return OK


def _unusable(name: str, path: str, why: str) -> dict[str, Any]:
    """The row of something that cannot be used."""
    return {"name": name, "weight": None, "triggers": [], "made_for": "", "type": why, "path": path}


def _lora(entry: Entry, fit: Fit | None) -> dict[str, Any] | None:
    """One row of the list; None for a file that does not fit."""
    from composers import StudioError
    from pipelines.adapters import inspect_file

    try:
        seen = inspect_file(entry.path)
        if fit is not None and not fit.takes(entry, seen):
            return None
    except StudioError as error:
        return None if fit else _unusable(entry.name, str(entry.path), f"cannot be read: {error}")
    kind = " + ".join(seen.kinds) or "unknown"
    return {
        "name": entry.name,
        "weight": 1.0 if seen.metadata.preferred_weight is None else seen.metadata.preferred_weight,
        "triggers": list(seen.metadata.triggers),
        "made_for": entry.model or seen.origin.label,
        "type": f"{kind}, not applicable: {seen.refused}" if seen.refused else kind,
        "path": str(entry.path),
    }


def _tell_silent(home: Home) -> None:
    for folder in home.silent:
        print(f"the folder {folder} does not answer; what lies in it is left out for now", file=sys.stderr)


def import_paths(values: ImportPaths, home: Home, teller: Teller) -> int:
    """Writes another program's folders into config.toml."""
    from pipelines.home.foreign_folders import import_paths as read_foreign

    roots = read_foreign(values.path)
    home = home.add_folders(roots)
    for kind, folders in zip(("models", "LoRAs", "VAEs", "embeddings"), roots.lists, strict=True):
        for folder in folders:
            print(f"{kind:<10} {folder}")
    print(f"written to {home.path / 'config.toml'}", file=sys.stderr)
    return OK


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


COMMANDS = (
    Command(
        "inspect",
        place=70,
        help="say what LoRA files, models, or pictures, are",
        abbreviations=True,
        add=_inspect_flags,
        read=_read_inspect,
        run=inspect,
    ),
    Command(
        "models",
        place=80,
        help="list the models",
        abbreviations=True,
        add=_json_flag,
        read=_read_models,
        run=models,
    ),
    Command(
        "loras",
        place=90,
        help="list the LoRAs",
        abbreviations=True,
        add=_loras_flags,
        read=_read_loras,
        run=loras,
    ),
    Command(
        "import-paths",
        place=110,
        help="use the folders of ComfyUI, Forge, A1111 or Fooocus too",
        abbreviations=True,
        add=_paths_flags,
        read=_read_paths,
        run=import_paths,
    ),
)
