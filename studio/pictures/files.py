"""The pictures' file names, which are decided before anything is rendered."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pipelines.errors import SetupError
from pipelines.home.files import check_name, slug

FIELDS = ("index", "seed", "prompt", "composer", "model", "date")
NUMBERED = "{index:05d}_{seed}.png"
PLACEHOLDERS = f"{{index}}, {{seed}}, {', '.join(f'{{{name}}}' for name in FIELDS[2:])}"


@dataclass(frozen=True)
class Sheet:
    """The values of one picture that its file's name can contain."""

    seed: int
    prompt: str
    composer: str
    model: str


def plan_files(out: str | None, folder: Path, sheets: Sequence[Sheet], *, force: bool) -> list[Path]:
    """One file for each picture, in order.

    out: a .png file (for one picture), a template with fields in braces, or a folder, in which numbers continue
        from the highest one there; None is `folder`.
    Raises SetupError for a file that exists, unless `force`, and for a name that cannot be used.
    """
    if out is None or _is_folder(out):
        target = folder if out is None else Path(out).expanduser()
        if target.exists() and not target.is_dir():
            raise SetupError(f"{target} is a file; give --out a folder, or a name that ends in .png")
        return _filled(
            str(target).replace("{", "{{").replace("}", "}}"), NUMBERED, sheets, _next_number(target)
        )
    if Path(out).suffix.lower() != ".png":
        raise SetupError(f"--out {out}: pictures are written as PNG; end the name with .png")
    if "{" not in out and len(sheets) > 1:
        example = f"{Path(out).stem}-{{index}}.png"
        raise SetupError(
            f"--out {out} names one file for {len(sheets)} pictures; give a folder, or a template such as {example}"
        )
    files = _filled("", os.path.expanduser(out), sheets, 1)
    # "Fox.png" and "fox.png" are one file where names are compared regardless of case.
    if len({str(file).casefold() for file in files}) < len(files):
        raise SetupError(
            f"--out {out} gives several pictures one name; add {{index}} (fields: {PLACEHOLDERS})"
        )
    for file in files:
        try:
            check_name(file)
        except OSError as error:
            raise SetupError(f"--out {out}: {error.strerror}; choose another one") from error
    taken = [file for file in files if file.exists()]
    if taken and not force:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise SetupError(f"{taken[0]}{more} exists already; choose another --out, or overwrite with --force")
    return files


def _is_folder(out: str) -> bool:
    path = Path(out).expanduser()
    return path.is_dir() or out.endswith(("/", os.sep)) or ("{" not in out and not path.suffix)


def _next_number(folder: Path) -> int:
    numbers = [0]
    with suppress(OSError):
        numbers += [int(match[0]) for entry in os.scandir(folder) if (match := re.match(r"\d+", entry.name))]
    return max(numbers) + 1


def _filled(folder: str, template: str, sheets: Sequence[Sheet], first: int) -> list[Path]:
    template = f"{folder}/{template}" if folder else template
    try:
        for _, name, _, _ in string.Formatter().parse(template):
            if name is not None and name not in FIELDS:
                raise SetupError(f"--out {template}: no field {{{name}}}; fields are {PLACEHOLDERS}")
        return [
            Path(
                template.format(
                    index=first + place,
                    seed=sheet.seed,
                    prompt=slug(sheet.prompt),
                    composer=slug(sheet.composer),
                    model=slug(sheet.model),
                    date=date.today().isoformat(),
                )
            )
            for place, sheet in enumerate(sheets)
        ]
    except (ValueError, IndexError, KeyError) as error:
        raise SetupError(f"--out {template}: {error}; write a brace that is no field twice") from error
