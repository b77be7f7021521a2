"""`lora-studio batch`: flags in, a folder of pictures and its manifest out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import OK

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.home import Home
    from studio.batch.run import BatchOrder
    from studio.terminal.progress import Teller

HELP = """job files:
  jobs.jsonl   {"prompt": "a fox", "adapters": {"fox": 0.8}, "seed": "1-4"}   one per line; {"defaults": {…}} too
  jobs.yaml    defaults: {steps: 20}   jobs: [{prompt: a fox, composer: [merge, switch]}]   (.json the same)
  jobs.csv     prompt,seed,adapters   one job per row, adapters as fox=0.8; owl=0.5; as Excel writes it, too (.tsv)
  prompts.txt  a fox --steps 20 --seed 3   one prompt per line, options as in A1111's prompts from file

Lists and ranges (1-4, 10-30 (+10), 0-1 [5]) render every combination. {red|blue} and __animal__ (a line of
wildcards/animal.txt) are chosen by the seed; "variants: all" renders all of them. Without a seed, or with -1, each job
gets its own, the same in every run. Run the command again to do what is missing. --schema prints the JSON schema of a
job for your editor."""


@dataclass(frozen=True)
class BatchValues:
    """What `batch` is to do. order: None asks for the JSON schema of a job. as_json: print each outcome as a line of
    JSON."""

    order: BatchOrder | None
    as_json: bool = False


def add(command: ArgumentParser) -> None:
    """What to render, where it goes, and on which machines."""
    command.add_argument(
        "jobs", nargs="?", metavar="JOBS", help="a .jsonl, .yaml, .json, .csv, .tsv or .txt file"
    )
    command.add_argument("--out", "-o", metavar="DIR", help="where pictures and manifest.jsonl go")
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="set a field of every job, whatever the file says, as in --set steps=8",
    )
    command.add_argument(
        "--name", metavar="TEMPLATE", help="the files' names (default: {index:05d}_{name}_{seed})"
    )
    command.add_argument(
        "--wildcards", metavar="DIR", help="wildcard files (default: wildcards/ beside JOBS)"
    )
    command.add_argument("--retry-failed", action="store_true", help="render again what has failed before")
    command.add_argument("--force", action="store_true", help="overwrite files that are not this batch's")
    command.add_argument("--check", action="store_true", help="find every mistake, render nothing")
    command.add_argument("--schema", action="store_true", help="print the JSON schema of a job")
    flags.telling_flags(command)
    _cluster_flags(command)
    flags.machine_flags(command)


def _cluster_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("beyond one process (pip install 'lora-studio[ray]')")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="default: local")
    group.add_argument(
        "--address", metavar="HOST:PORT", help="a running Ray cluster (default: start one here)"
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="default: one for each GPU, else one for four CPU cores"
    )


def read(args: Namespace) -> BatchValues:
    """The command's values. Raises RequestError and SetupError for flags that do not go together."""
    from pathlib import Path

    from pipelines.errors import RequestError
    from studio.batch.plan import TEMPLATE
    from studio.batch.run import BatchOrder
    from studio.batch.values import read_override

    if args.schema:
        return BatchValues(None)
    if args.jobs is None:
        raise RequestError("say which job file to render, as in lora-studio batch jobs.yaml --out pictures")
    if args.out is None and not args.check:
        raise RequestError("say where the pictures go, as in --out pictures")
    if args.engine == "local" and (args.address or args.workers):
        raise RequestError("--address and --workers are for --engine ray; give that too")
    if args.workers is not None and args.workers < 1:
        raise RequestError(f"--workers {args.workers} must be at least 1")
    order = BatchOrder(
        jobs=Path(args.jobs),
        out=Path(args.out or "."),
        opening=flags.read_opening(args),
        overrides=dict(read_override(text) for text in args.overrides),
        wildcards=None if args.wildcards is None else _folder(args.wildcards),
        template=args.name or TEMPLATE,
        retry_failed=args.retry_failed,
        force=args.force,
        engine=args.engine,
        address=args.address,
        workers=args.workers,
        check_only=args.check,
    )
    return BatchValues(order, args.json)


def run(values: BatchValues, home: Home, teller: Teller) -> int:
    """Renders the batch. Exit code: 0 all done, 1 some failed, 130 interrupted. Raises StudioError for bad input, and
    for a disk that is full (2)."""
    import json

    from studio.batch import run as batches
    from studio.batch.progress import render
    from studio.batch.schema import schema

    order = values.order
    if order is None:
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return OK
    with batches.Batch(order, home, teller.say) as batch:
        if order.check_only:
            teller.say(f"{len(batch.jobs)} pictures, no mistakes")
            return OK
        return render(batch, teller, as_json=values.as_json)


def _folder(text: str) -> Path:
    from pipelines.errors import SetupError
    from pipelines.home.files import is_folder
    from pipelines.home.paths import expanded

    path = expanded(text)
    if not is_folder(path):
        raise SetupError(f"the wildcard folder {path} does not exist; check the path")
    return path


COMMANDS = (
    Command(
        "batch",
        place=30,
        help="render a job file: thousands of mixes, resumable",
        description="Render every job of a file, in shared passes, into a folder with a manifest.",
        epilog=HELP,
        add=add,
        read=read,
        run=run,
    ),
)
