"""The form as a job file, which `lora-studio batch` renders: the same pictures, without the page."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from studio.batch.variants import literal
from studio.recipe import plain_draft
from studio.web.form import Asked, Form

FILE = "jobs.yaml"


def job_file(form: Form, asked: Asked, model: str) -> str:
    """The job file's text: one job a picture, seeds included. What all of them share stands once, as defaults."""
    jobs = [plain_draft(draft) for draft in asked.drafts]
    for job in jobs:
        job["prompt"] = literal(job["prompt"])
        job["adapters"] = [
            {name: _plain(value) for name, value in use.items() if value not in (None, [], (), False)}
            for use in job["adapters"]
        ]
    shared = {name: value for name, value in jobs[0].items() if all(job.get(name) == value for job in jobs)}
    shared.pop("seed", None)
    content: dict[str, Any] = {
        "defaults": {"model": model, **{name: _plain(value) for name, value in shared.items()}},
        "jobs": [{name: _plain(value) for name, value in job.items() if name not in shared} for job in jobs],
    }
    vae = f" --vae {form.vae!r}" if form.vae else ""
    head = f"# lora-studio batch {FILE} --out pictures{vae}\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def written(text: str) -> str:
    """The text as a file for the browser to fetch; its path."""
    file = Path(tempfile.mkdtemp(prefix="lora-studio-")) / FILE
    file.write_text(text, encoding="utf-8")
    return str(file)


def _plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML knows."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
