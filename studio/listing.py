"""`models`, `loras`, `inspect` and `import-paths`: what is there, as a table, as plain text or as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.adapters import Inspection, inspect_file
from pipelines.errors import StudioError
from pipelines.home import Entry, Home
from pipelines.home.answers import each
from pipelines.home.files import exists
from pipelines.home.foreign_folders import import_paths as read_foreign
from studio.drafts.plain import read_json
from studio.jobs.job import ModelEntry
from studio.library.fit import Fit, fit_of
from studio.library.models import list_models
from studio.pictures.metadata import CHUNK, PARAMETERS, read_texts
from studio.terminal.progress import Teller

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def models(home: Home, *, as_json: bool) -> int:
    """Every model: its name, what it is, where it is."""
    rows = [_model(entry) for entry in list_models(home)]
    _tell_silent(home)
    if as_json:
        _print_json(rows)
        return 0
    columns = {"Name": "name", "Base": "base", "MB": "megabytes", "": "note", "Path": "path"}
    _print_table(columns, rows)
    if not rows:
        print(f"no models yet: put them into {home.path / 'models'}, or use --model-dir", file=sys.stderr)
    return 0


def _model(entry: ModelEntry) -> dict[str, Any]:
    notes = [word for word, true in (("built in", entry.embedded), ("default", entry.default)) if true]
    return {
        "name": entry.name,
        "base": entry.base if entry.usable else f"cannot be used: {entry.base}",
        "megabytes": round(entry.size / 2**20),
        "note": ", ".join(notes),
        "path": str(entry.path),
    }


def _tell_silent(home: Home) -> None:
    for folder in home.silent:
        print(f"the folder {folder} does not answer; what lies in it is left out for now", file=sys.stderr)


def loras(home: Home, model: str | None, *, as_json: bool) -> int:
    """Every LoRA, or those that a model may take."""
    fit = None if model is None else fit_of(model, home)
    entries = {entry.path: entry for entry in home.loras()}
    seen = each(entries, lambda path: _lora(entries[path], fit))
    rows = [row for path in entries if (row := seen.get(path)) is not None]
    _tell_silent(home)
    if as_json:
        _print_json(rows)
        return 0
    columns = {"Name": "name", "Weight": "weight", "Words": "triggers", "For": "made_for", "Type": "type"}
    _print_table(columns, rows)
    if not rows:
        print(f"no LoRAs found: put them into {home.path / 'loras'}, or use --lora-dir", file=sys.stderr)
    return 0


def _lora(entry: Entry, fit: Fit | None) -> dict[str, Any] | None:
    """One row; None for a file that does not fit."""
    try:
        seen = inspect_file(entry.path)
        if fit is not None and not fit.takes(entry, seen):
            return None
    except StudioError as error:
        nothing: dict[str, Any] = {"weight": None, "triggers": [], "made_for": ""}
        why = f"cannot be read: {error}"
        return None if fit else {"name": entry.name, **nothing, "type": why, "path": str(entry.path)}
    kind = " + ".join(seen.kinds) or "unknown"
    return {
        "name": entry.name,
        "weight": 1.0 if seen.metadata.preferred_weight is None else seen.metadata.preferred_weight,
        "triggers": list(seen.metadata.triggers),
        "made_for": entry.model or seen.origin.label,
        "type": f"{kind}, not applicable: {seen.refused}" if seen.refused else kind,
        "path": str(entry.path),
    }


def inspect(files: Sequence[str], home: Home, teller: Teller, *, as_json: bool) -> int:
    """What each file is; LoRAs by path or name, pictures by path. 1 where some cannot be read, 2 where none can."""
    seen: list[dict[str, Any]] = []
    for file in files:
        try:
            result = _inspected(file, home)
        except StudioError as error:
            teller.error(str(error))
            continue
        seen.append(result if isinstance(result, dict) else result.to_dict())
        if not as_json:
            print(_shown(result))
    if as_json:
        _print_json(seen)
    failed = len(files) - len(seen)
    return 0 if not failed else 1 if seen else 2


def _inspected(file: str, home: Home) -> Inspection | dict[str, Any]:
    path = Path(os.path.expanduser(file))
    if path.suffix.lower() in PICTURES:
        texts = read_texts(path)
        ours = read_json(texts[CHUNK], f"{file}: its {CHUNK!r} text") if CHUNK in texts else None
        return {"path": str(path), PARAMETERS: texts.get(PARAMETERS), CHUNK: ours}
    return inspect_file(path if exists(path) else home.find_lora(file).path)


def _shown(result: Inspection | dict[str, Any]) -> str:
    if isinstance(result, Inspection):
        return str(result)
    said = result[PARAMETERS] or "says nothing about how it was made"
    return f"{Path(result['path']).name}\n" + "\n".join(f"  {line}" for line in said.splitlines())


def import_paths(path: str, home: Home) -> int:
    """Another program's folders, written into config.toml."""
    roots = read_foreign(path)
    home = home.add_folders(roots)
    for kind, folders in zip(("models", "LoRAs", "VAEs"), roots.lists, strict=True):
        for folder in folders:
            print(f"{kind:<7} {folder}")
    print(f"written to {home.path / 'config.toml'}", file=sys.stderr)
    return 0


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    """A table on a terminal; lines of tab-separated values when piped."""
    cells = [[_cell(row[key]) for key in columns.values()] for row in rows]
    console = Console()
    if not console.is_terminal:
        for line in [list(columns), *cells] if rows else []:
            print("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in line))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for line in cells:
        table.add_row(*(Text(cell) for cell in line))
    if rows:
        console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
