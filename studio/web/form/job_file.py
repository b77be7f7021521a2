"""Writes pictures as a job file, so that `lora-studio batch` can render the same pictures without the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from studio.batch.variants import literal
from studio.drafts.draft import Draft
from studio.drafts.entries import plain_draft

FILE = "jobs.yaml"


def job_file(
    drafts: Sequence[Draft], models: Sequence[str], vae: str | None = None, *, paths: bool = True
) -> str:
    """The text of a job file: one job for each picture, seeds included. What all jobs share is written once, as
    defaults.

    models: of the pictures, in order. vae: the command must be given it; None or "" is the models' own.
    paths: whether pictures are named by their paths on this computer. Otherwise only their names are written,
    and a comment says that they belong beside the job file.
    """
    jobs = [
        {"model": model, **_said(plain_draft(draft if paths else _by_name(draft)))}
        for draft, model in zip(drafts, models, strict=True)
    ]
    shared = {name: value for name, value in jobs[0].items() if all(job.get(name) == value for job in jobs)}
    shared.pop("seed", None)
    content: dict[str, Any] = {
        "defaults": shared,
        "jobs": [{name: value for name, value in job.items() if name not in shared} for job in jobs],
    }
    head = f"# lora-studio batch {FILE} --out pictures{f' --vae {vae!r}' if vae else ''}\n"
    if not paths and any(draft.images for draft in drafts):
        head += "# the pictures that it names belong beside this file\n"
    return head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes the sign NEL too, which YAML reads as the end of a line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _text)


def _by_name(draft: Draft) -> Draft:
    named = {
        name: Path(source.name) if isinstance(source, Path) else source
        for name, source in draft.images.items()
    }
    return replace(draft, images=named)


def written(text: str, file: Path) -> str:
    """Writes the text to a file that the browser can fetch; returns its path."""
    file.write_text(text, encoding="utf-8")
    return str(file)


def _said(job: dict[str, Any]) -> dict[str, Any]:
    """A job without values that say nothing, and with a prompt that is taken literally."""
    said = {name: value for name, value in job.items() if value is not None}
    if "prompt" in said:
        said["prompt"] = literal(said["prompt"])
    said["adapters"] = [
        {name: value for name, value in use.items() if value is not None and value not in ((), [])}
        for use in job["adapters"]
    ]
    for use in said["adapters"]:
        use.pop("named", None)
        if not use["pinned"]:
            del use["pinned"]
    plain: dict[str, Any] = _plain(said)
    return plain


def _plain(value: Any) -> Any:
    """The value with tuples as lists, since YAML has no tuples."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
