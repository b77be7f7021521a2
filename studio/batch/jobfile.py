"""Reads job files: what each job says, and where it says it.

.jsonl   one object per line; a line {"defaults": {…}} applies to all
.yaml    a list of jobs, or defaults: and jobs:  (.json the same)
.csv     one job per row; the header names the fields, also by their names in a .txt; an empty cell says nothing (.tsv
         the same; see `studio.batch.tables`)
.txt     one prompt per line, followed by options such as --steps 20 --seed 3 (see `studio.batch.prompts`); or a
         table, as spreadsheet programs save it under this ending
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from composers.shown import shown
from pipelines.errors import RequestError, SetupError
from pipelines.home.plain import DEEPEST, LONGEST_FILE, check_plain, read_json, read_text, reading, short
from studio.batch.cells import value_of
from studio.batch.problems import Problems, nearest
from studio.batch.prompts import HEADINGS, read_line, size_of
from studio.batch.tables import AS_CSV, SPREADSHEETS, decoded, is_spreadsheet, is_table, read_table
from studio.batch.values import MOST_VALUES
from studio.drafts.fields import NAMES

OWN_FIELDS = ("name", "model", "count", "variants")
"""Fields of a job that Request does not have."""
JOB_FIELDS = (*NAMES, *OWN_FIELDS)
SECTIONS = ("defaults", "jobs")
KINDS = (".jsonl", ".yaml", ".yml", ".json", ".csv", ".tsv", ".tab", ".txt")
LONGEST_YAML = 16 * 2**20
"""Most bytes of a YAML file: it takes a hundred times as long to read as the other formats."""
MOST_NODES = 500_000
"""Most values that are written in a YAML file, before aliases are expanded."""
LONGEST_SCALAR = 100
"""Most characters of a number or a date in YAML."""
_BRACKETS = re.compile(r"(?:[\[{]\s*+){200}")
MOST_FIELDS = 100
"""Most fields of one job: far more than exist."""


@dataclass(frozen=True)
class JobEntry:
    """One job as it was written. where: "jobs.yaml, line 7". lines: field -> its place, for fields with a line of their
    own."""

    fields: Mapping[str, Any]
    where: str
    lines: Mapping[str, str] = field(default_factory=dict)

    def at(self, name: str) -> str:
        """Where a field is written, for messages."""
        return self.lines.get(name, self.where)


@dataclass(frozen=True)
class JobFile:
    """A job file that was read. defaults: apply where a job says nothing else. folder: paths are relative to it.
    notes: what a user should know of how it was read."""

    name: str
    folder: Path
    defaults: JobEntry
    entries: tuple[JobEntry, ...]
    notes: tuple[str, ...] = ()


def read_jobs(path: Path, problems: Problems) -> JobFile:
    """The jobs of a file; mistakes go to `problems`. Raises SetupError for a file that cannot be read at all, and
    RequestError for one that is too large."""
    kind = path.suffix.lower()
    if kind in SPREADSHEETS:
        raise SetupError(f"{path}: {AS_CSV}")
    if kind not in KINDS:
        raise SetupError(f"{path}: jobs are read from {', '.join(KINDS)} files; give it one of these endings")
    text, note = _read(path, kind)
    tables = {".csv": _csv, ".tsv": _tsv, ".tab": _tsv}
    reader = {".jsonl": _jsonl, ".json": _json, ".txt": _prompts, **tables}.get(kind, _yaml)
    defaults = JobEntry({}, path.name)
    entries: list[JobEntry] = []
    for entry, is_default in reader(text, path.name, problems):
        if is_default:
            defaults = entry
        else:
            entries.append(entry)
        if len(entries) > MOST_VALUES:
            problems.add(entry.where, f"the file holds more than {MOST_VALUES} jobs; split it")
            entries.clear()
            break
        if problems.full:
            break
    if not entries and not problems.messages:
        problems.add(path.name, "it holds no job; write at least one")
    notes = (f"{path.name}: {note}",) if note else ()
    return JobFile(path.name, path.parent.absolute(), defaults, tuple(entries), notes)


def _read(path: Path, kind: str) -> tuple[str, str]:
    """The text of a job file, and a note on how it was read, "" if there is none."""
    notes: list[str] = []

    def decode(data: bytes) -> str:
        if is_spreadsheet(data):
            raise SetupError(f"{path}: {AS_CSV}")
        text, note = decoded(data)
        notes.append(note)
        return text

    with reading(str(path), SetupError, "save it as UTF-8 text"):
        if kind in (".csv", ".tsv", ".tab", ".txt"):
            return read_text(path, decode=decode), notes[0]
        return read_text(path, LONGEST_YAML if kind in (".yaml", ".yml") else LONGEST_FILE), ""


def from_objects(jobs: Sequence[Mapping[str, Any]]) -> JobFile:
    """A job file made of jobs that are given as objects."""
    entries = tuple(JobEntry(dict(job), f"job {number}") for number, job in enumerate(jobs, 1))
    return JobFile("jobs", Path().absolute(), JobEntry({}, "jobs"), entries)


def check_names(entry: JobEntry, problems: Problems) -> None:
    """Adds a problem for every field that does not exist."""
    if len(entry.fields) > MOST_FIELDS:
        problems.add(entry.where, f"{len(entry.fields)} fields are more than a job has; split it")
        return
    for name in entry.fields:
        if name not in JOB_FIELDS:
            problems.add(entry.at(name), f"unknown field {shown(name)}; {nearest(name, JOB_FIELDS)}")


Read = Iterator[tuple[JobEntry, bool]]
Place = tuple[str, Mapping[str, str]]


def _jsonl(text: str, name: str, problems: Problems) -> Read:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            content = read_json(line, "it", pairs=_once)
        except RequestError as error:
            problems.add(where, f"{_json_error(error)}; one object a line")
            continue
        if isinstance(content, dict) and list(content) == ["defaults"]:
            yield from _entry(content["defaults"], (where, {}), problems, is_default=True)
        else:
            yield from _entry(content, (where, {}), problems)


def _json(text: str, name: str, problems: Problems) -> Read:
    try:
        content = read_json(text, "it", pairs=_once)
    except RequestError as error:
        problems.add(name, error)
        return
    defaults, jobs = _sections(content, name, problems)
    yield from _entry(defaults, (f"{name}, defaults", {}), problems, is_default=True)
    for number, job in enumerate(jobs, 1):
        yield from _entry(job, (f"{name}, job {number}", {}), problems)


def _yaml(text: str, name: str, problems: Problems) -> Read:
    try:
        root, content = _loaded(text)
    except RequestError as error:
        problems.add(name, error)
        return
    if root is None or content is None:
        return
    defaults, jobs = _sections(content, name, problems)
    nodes = _yaml_nodes(root)
    yield from _entry(defaults, _yaml_place(nodes.get("defaults"), name), problems, is_default=True)
    job_nodes = root.value if isinstance(root, yaml.SequenceNode) else getattr(nodes.get("jobs"), "value", [])
    for place, job in enumerate(jobs):  # a merged section has no node of its own
        node = job_nodes[place] if place < len(job_nodes) else None
        yield from _entry(job, _yaml_place(node, name), problems)


def _loaded(text: str) -> tuple[yaml.Node | None, Any]:
    """The root of a YAML text, and its value. Raises RequestError for whatever is wrong with the text."""
    if _BRACKETS.search(text):  # PyYAML takes quadratic time for so many open brackets
        raise RequestError(f"it is nested more than {DEEPEST} deep; make it flat")
    with reading("it", RequestError, "check its numbers, dates and signs"):
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            content = None if root is None else _plain(loader, root)
        except yaml.MarkedYAMLError as error:
            raise RequestError(_yaml_error(error)) from error
    check_plain(content, "it", longest=max(len(text), 1))
    return root, content


class _Loader(yaml.SafeLoader):
    """Counts values and nesting while it reads. Raises RequestError for too many, or for nesting that is too deep."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise RequestError(f"it holds more than {MOST_NODES} values; split it, or write .jsonl")
        if self._depth > DEEPEST:
            raise RequestError(f"it is nested more than {DEEPEST} deep; make it flat")
        self._depth += 1
        found: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return found


def _plain(loader: yaml.SafeLoader, root: yaml.Node) -> Any:
    """The root's value. Raises RequestError for a key that appears twice (YAML would silently keep the last one), and
    for aliases that stand for too many values."""
    _check_aliases(root)
    pending = [root]
    seen: set[int] = set()
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > LONGEST_SCALAR and not node.tag.endswith(":str"):
                line = node.start_mark.line + 1
                raise RequestError(
                    f"line {line}: {shown(node.value)} is too long for what it is; write it in quotes"
                )
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else f"node {id(key)}"
            if name in keys and name != "<<":
                raise RequestError(f"line {key.start_mark.line + 1}: {shown(name)} stands twice; keep one")
            keys.add(name)
            pending.append(value)
    return loader.construct_document(root)


def _check_aliases(root: yaml.Node) -> None:
    """Raises RequestError where aliases stand for more than MOST_NODES values, or contain themselves."""
    sizes: dict[int, int] = {}
    within: set[int] = set()
    pending = [(root, False)]
    while pending:
        node, done = pending.pop()
        if isinstance(node, yaml.ScalarNode) or id(node) in sizes:
            continue
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        if done:
            within.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes.get(id(part), 1) for part in parts)
            if sizes[id(node)] > MOST_NODES:
                raise RequestError(
                    f"line {node.start_mark.line + 1}: its aliases make it {shown(sizes[id(node)])} values, more than "
                    f"{MOST_NODES}"
                )
        elif id(node) in within:
            raise RequestError(f"line {node.start_mark.line + 1}: an alias stands inside what it stands for")
        else:
            within.add(id(node))
            pending.append((node, True))
            pending += [(part, False) for part in parts]


def _yaml_nodes(node: yaml.Node) -> dict[str, yaml.Node]:
    return {str(key.value): value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _yaml_place(node: yaml.Node | None, name: str) -> Place:
    if node is None:
        return name, {}
    lines: dict[str, str] = {}
    if isinstance(node, yaml.MappingNode):
        lines = {str(key.value): f"{name}, line {key.start_mark.line + 1}" for key, _ in node.value}
    return f"{name}, line {node.start_mark.line + 1}", lines


def _yaml_error(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}: "
    return f"{where}it is not valid YAML ({short(error.problem)}); check indentation, colons and quotes"


_SPLIT = {"size": ("width", "height")}
"""A heading that stands for several fields."""


def _tsv(text: str, name: str, problems: Problems) -> Read:
    return _csv(text, name, problems, separator="\t")


def _csv(text: str, name: str, problems: Problems, separator: str = ",") -> Read:
    try:
        table = read_table(text, HEADINGS, separator)
        if table is None:
            return
        line, headings = table.header
        named = [field for heading in headings if heading for field in _SPLIT.get(heading, (heading,))]
        if twice := [field for field, count in Counter(named).items() if count > 1]:
            raise RequestError(f"line {line}: size holds {twice[0]} too; keep one of the columns")
        check_names(JobEntry(dict.fromkeys(named), f"{name}, line {line}"), problems)
        if len(named) > MOST_FIELDS:
            return
        for row in table.rows():
            where = f"{name}, line {row.line}"
            if row.trouble:
                problems.add(where, row.trouble)
                continue
            fields: dict[str, Any] = {}
            for key in row.cells:
                with problems.gathered(where):
                    if key in _SPLIT:
                        fields |= zip(_SPLIT[key], size_of(row.cells[key]), strict=True)
                    elif key in JOB_FIELDS:
                        fields[key] = value_of(key, row.cells[key], decimal_comma=table.decimal_comma)
            yield JobEntry(fields, where), False
    except RequestError as error:
        line_of = re.match(r"line (\d+): ", str(error))
        problems.add(
            f"{name}, line {line_of[1]}" if line_of else name, str(error)[line_of.end() if line_of else 0 :]
        )


def _prompts(text: str, name: str, problems: Problems) -> Read:
    if is_table(text, HEADINGS):
        yield from _tsv(text, name, problems)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            where = f"{name}, line {number}"
            with problems.gathered(where):
                yield JobEntry(read_line(line.strip()), where), False


def _sections(content: Any, name: str, problems: Problems) -> tuple[Any, list[Any]]:
    """(defaults, jobs) of a document."""
    if isinstance(content, list):
        return {}, _not_too_many(content, name, problems)
    if isinstance(content, dict) and isinstance(content.get("jobs"), list):
        for key in content:
            if key not in SECTIONS:
                problems.add(name, f"unknown section {shown(key)}; {nearest(key, SECTIONS)}")
        return content.get("defaults") or {}, _not_too_many(content["jobs"], name, problems)
    problems.add(
        name, "it must be a list of jobs, or hold the sections defaults: and jobs:, jobs being a list"
    )
    return {}, []


def _not_too_many(jobs: list[Any], name: str, problems: Problems) -> list[Any]:
    """The jobs; none, and a problem, where there are too many."""
    if len(jobs) <= MOST_VALUES:
        return jobs
    problems.add(name, f"the file holds {len(jobs)} jobs, more than {MOST_VALUES}; split it")
    return []


def _entry(content: Any, place: Place, problems: Problems, *, is_default: bool = False) -> Read:
    """Yields the entry; adds a problem where it is no object."""
    where, lines = place
    if not isinstance(content, dict):
        what = "the defaults" if is_default else "a job"
        problems.add(where, f'{what} must be an object, as in {{"prompt": "a fox"}}, not {shown(content)}')
        return
    yield JobEntry({str(key): value for key, value in content.items()}, where, lines), is_default


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} stands twice")
    return found


def _json_error(error: RequestError) -> str:
    """The message without json's line number, which does not count from the start of the file."""
    cause = error.__cause__
    if isinstance(cause, json.JSONDecodeError):
        return f"it is not valid JSON: {cause.msg} at column {cause.colno}"
    return str(error)
