"""A job file -> entries: what each says, and where it says it.

.jsonl   one object a line; a line {"defaults": {…}} holds for all
.yaml    a list of jobs, or defaults: and jobs:  (.json the same)
.csv     one row a job, the header names the fields; an empty cell says nothing
.txt     one prompt a line, with --steps 20 --seed 3 … behind it (see `studio.batch.prompts`)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import RequestError, SetupError
from studio.asking import parse_lora
from studio.batch.problems import Problems, nearest
from studio.batch.prompts import plain_wanted, read_line
from studio.batch.values import PAIRS
from studio.recipe import FIELDS

OWN_FIELDS = ("name", "model", "count", "variants")
"""What a job may say beyond Request's fields."""
JOB_FIELDS = (*FIELDS, *OWN_FIELDS)
SECTIONS = ("defaults", "jobs")
KINDS = (".jsonl", ".yaml", ".yml", ".json", ".csv", ".txt")


@dataclass(frozen=True)
class Entry:
    """One job as it was written. where: "jobs.yaml, line 7". lines: field -> its line, where it has one of its own."""

    fields: Mapping[str, Any]
    where: str
    lines: Mapping[str, str] = field(default_factory=dict)

    def at(self, name: str) -> str:
        """Where a field is written."""
        return self.lines.get(name, self.where)


@dataclass(frozen=True)
class JobFile:
    """defaults hold for every job that does not say otherwise. folder: where its paths count from."""

    name: str
    folder: Path
    defaults: Entry
    entries: tuple[Entry, ...]


def read_jobs(path: Path, problems: Problems) -> JobFile:
    """The jobs of a file; mistakes go to `problems`. Raises SetupError where it cannot be read at all."""
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise SetupError(f"{path}: jobs are read from {', '.join(KINDS)} files; give it one of these endings")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SetupError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise SetupError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _prompts}.get(kind, _yaml)
    defaults = Entry({}, path.name)
    entries: list[Entry] = []
    for entry, is_default in reader(text, path.name, problems):
        if is_default:
            defaults = entry
        else:
            entries.append(entry)
    if not entries and not problems.messages:
        problems.add(path.name, "it holds no job; write at least one")
    return JobFile(path.name, path.parent.absolute(), defaults, tuple(entries))


def from_objects(jobs: Sequence[Mapping[str, Any]]) -> JobFile:
    """Jobs given as objects."""
    entries = tuple(Entry(dict(job), f"job {number}") for number, job in enumerate(jobs, 1))
    return JobFile("jobs", Path().absolute(), Entry({}, "jobs"), entries)


def check_names(entry: Entry, problems: Problems) -> None:
    """Fields that do not exist."""
    for name in entry.fields:
        if name not in JOB_FIELDS:
            problems.add(entry.at(name), f"unknown field {name!r}; {nearest(name, JOB_FIELDS)}")


Read = Iterator[tuple[Entry, bool]]
Place = tuple[str, Mapping[str, str]]


def _jsonl(text: str, name: str, problems: Problems) -> Read:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            content = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            problems.add(where, f"it is not valid JSON: {_json_error(error)}; one object a line")
            continue
        if isinstance(content, dict) and list(content) == ["defaults"]:
            yield from _entry(content["defaults"], (where, {}), problems, is_default=True)
        else:
            yield from _entry(content, (where, {}), problems)


def _json(text: str, name: str, problems: Problems) -> Read:
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        problems.add(name, f"it is not valid JSON: {error}")
        return
    defaults, jobs = _sections(content, name, problems)
    yield from _entry(defaults, (f"{name}, defaults", {}), problems, is_default=True)
    for number, job in enumerate(jobs, 1):
        yield from _entry(job, (f"{name}, job {number}", {}), problems)


def _yaml(text: str, name: str, problems: Problems) -> Read:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        content = None if root is None else _plain(loader, root)
    except (yaml.YAMLError, RequestError, ValueError, RecursionError) as error:
        problems.add(name, _yaml_error(error))
        return
    finally:
        loader.dispose()
    if content is None:
        return
    defaults, jobs = _sections(content, name, problems)
    assert root is not None
    nodes = _yaml_nodes(root)
    yield from _entry(defaults, _yaml_place(nodes.get("defaults"), name), problems, is_default=True)
    job_nodes = root.value if isinstance(root, yaml.SequenceNode) else getattr(nodes.get("jobs"), "value", [])
    for job, node in zip(jobs, job_nodes, strict=True):
        yield from _entry(job, _yaml_place(node, name), problems)


def _plain(loader: yaml.SafeLoader, root: yaml.Node) -> Any:
    """The node's value; a key that stands twice is refused (YAML would keep the last one silently)."""
    pending = [root]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in keys and name != "<<":
                raise RequestError(f"line {key.start_mark.line + 1}: {name!r} stands twice; keep one")
            keys.add(name)
            pending.append(value)
    return loader.construct_document(root)


def _yaml_nodes(node: yaml.Node) -> dict[str, yaml.Node]:
    return {str(key.value): value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _yaml_place(node: yaml.Node | None, name: str) -> Place:
    if node is None:
        return name, {}
    lines: dict[str, str] = {}
    if isinstance(node, yaml.MappingNode):
        lines = {str(key.value): f"{name}, line {key.start_mark.line + 1}" for key, _ in node.value}
    return f"{name}, line {node.start_mark.line + 1}", lines


def _yaml_error(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    what = getattr(error, "problem", "it cannot be read")
    return f"line {mark.line + 1}: it is not valid YAML ({what}); check indentation, colons and quotes"


def _csv(text: str, name: str, problems: Problems) -> Read:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    try:
        for row in reader:
            where = f"{name}, line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
                check_names(Entry(dict.fromkeys(header), where), problems)
                continue
            if len(row) > len(header):
                problems.add(
                    where, f"{len(row)} cells under {len(header)} headings; put cells with commas in quotes"
                )
                continue
            cells = {key: cell.strip() for key, cell in zip(header, row, strict=False) if cell.strip()}
            fields: dict[str, Any] = {}
            for key in filter(JOB_FIELDS.__contains__, cells):
                with problems.gathered(where):
                    fields[key] = _cell(key, cells[key])
            yield Entry(fields, where), False
    except csv.Error as error:
        problems.add(f"{name}, line {reader.line_num}", f"it is not valid CSV ({error}); check the quotes")


def _cell(key: str, text: str) -> Any:
    """A cell's text as the field wants it; numbers stay text, which may be a range. `|` separates alternatives."""
    if key in PAIRS:
        return _pair(key, text)
    if key == "adapters":
        mixes = [_mix(part) for part in text.split("|")]
        return mixes[0] if len(mixes) == 1 else {"any": mixes}
    if key in ("scheduler", "composer", "text_mode", "model") and "|" in text:
        return [part.strip() for part in text.split("|")]
    return text


def _pair(key: str, text: str) -> list[int]:
    sides = text.lower().replace("x", " ").replace(",", " ").split()
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise RequestError(f"{key}: {text!r} must be two whole numbers of pixels, as in 1024x1024")
    return [int(side) for side in sides]


def _mix(text: str) -> list[dict[str, Any]]:
    """'fox=0.8; owl=0.5:0.2' -> adapters, as the flag --lora writes each."""
    return [plain_wanted(parse_lora(part.strip())) for part in text.split(";") if part.strip()]


def _prompts(text: str, name: str, problems: Problems) -> Read:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            where = f"{name}, line {number}"
            with problems.gathered(where):
                yield Entry(read_line(line.strip()), where), False


def _sections(content: Any, name: str, problems: Problems) -> tuple[Any, list[Any]]:
    """(defaults, jobs) of a document."""
    if isinstance(content, list):
        return {}, content
    if isinstance(content, dict) and isinstance(content.get("jobs"), list):
        for key in content:
            if key not in SECTIONS:
                problems.add(name, f"unknown section {key!r}; {nearest(key, SECTIONS)}")
        return content.get("defaults") or {}, content["jobs"]
    problems.add(
        name, "it must be a list of jobs, or hold the sections defaults: and jobs:, jobs being a list"
    )
    return {}, []


def _entry(content: Any, place: Place, problems: Problems, *, is_default: bool = False) -> Read:
    """The entry, or a problem where it is no object."""
    where, lines = place
    if not isinstance(content, dict):
        what = "the defaults" if is_default else "a job"
        problems.add(where, f'{what} must be an object, as in {{"prompt": "a fox"}}, not {content!r:.60}')
        return
    yield Entry({str(key): value for key, value in content.items()}, where, lines), is_default


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"{twice!r} stands twice")
    return found


def _json_error(error: Exception) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
