"""`batch` and `grid`: their flags, and which module runs them. Nothing heavy is imported."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pipelines.home import Home
    from studio.terminal.progress import Teller

COMMANDS = ("batch", "grid")

BATCH_HELP = """job files:
  jobs.jsonl   {"prompt": "a fox", "adapters": {"fox": 0.8}, "seed": "1-4"}   one a line; {"defaults": {…}} too
  jobs.yaml    defaults: {steps: 20}   jobs: [{prompt: a fox, composer: [merge, switch]}]   (.json the same)
  jobs.csv     prompt,seed,adapters   one row a job, adapters as fox=0.8; owl=0.5
  prompts.txt  a fox --steps 20 --seed 3   one prompt a line, options as in A1111's prompts from file

Lists and ranges (1-4, 10-30 (+10), 0-1 [5]) draw every combination. {red|blue} and __animal__ (a line of
wildcards/animal.txt) are drawn by the seed, or all with variants: all. Run it again and it does what is missing.
--schema prints the JSON schema of a job for your editor."""

GRID_HELP = """axes, as NAME=VALUES:
  seed=1-4   steps=10,20,30   guidance=1-7 [4]   sampler=Euler,DDIM   method=merge,switch:interval=3
  model=tiny-sdxl,other       lora=none,fox,owl=0.5               weight:fox=0-1 [5]
  prompt=fox,owl,cat          replaces the first word, which stands in the prompt, by each
Values are separated by commas, or by | where they hold commas themselves."""


def add(
    commands: _SubParsersAction[Any],
    folders: ArgumentParser,
    machine: Callable[[ArgumentParser], None],
    picture: Callable[[ArgumentParser], None],
) -> None:
    """The two subcommands. machine, picture: add the flags that they share with `render`."""
    batch = commands.add_parser(
        "batch",
        allow_abbrev=False,
        parents=[folders],
        help="render a job file: thousands of mixes, resumable",
        description="Render every job of a file, in shared passes, into a folder with a manifest.",
        epilog=BATCH_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    batch.add_argument("jobs", nargs="?", metavar="JOBS", help="a .jsonl, .yaml, .json, .csv or .txt file")
    batch.add_argument("--out", "-o", metavar="DIR", help="where pictures and manifest.jsonl go")
    batch.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field for every job, over what the file says, as in --set steps=8",
    )
    batch.add_argument(
        "--name", metavar="TEMPLATE", help="the files' names (default: {index:05d}_{name}_{seed})"
    )
    batch.add_argument("--wildcards", metavar="DIR", help="wildcard files (default: wildcards/ beside JOBS)")
    batch.add_argument("--retry-failed", action="store_true", help="render again what has failed before")
    batch.add_argument("--force", action="store_true", help="overwrite files that are not this batch's")
    batch.add_argument("--check", action="store_true", help="find every mistake, render nothing")
    batch.add_argument("--schema", action="store_true", help="print the JSON schema of a job")
    _telling_flags(batch)
    _cluster_flags(batch)
    machine(batch)

    grid = commands.add_parser(
        "grid",
        allow_abbrev=False,
        parents=[folders],
        help="compare settings in a labelled grid",
        description="Render every combination of two or three axes as one labelled picture and one page.",
        epilog=GRID_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    for name, what in (("x", "columns"), ("y", "rows"), ("z", "one grid below the other")):
        grid.add_argument(f"--{name}", metavar="AXIS", help=f"{what}: NAME=VALUES")
    grid.add_argument("--out", "-o", metavar="DIR", help="where grid.png, grid.html and the cells go")
    grid.add_argument("--title", metavar="TEXT", help="above the grid (default: the prompt)")
    grid.add_argument("--cell", type=int, metavar="N", help="the cells' width in grid.png, in pixels")
    _telling_flags(grid)
    picture(grid)
    machine(grid)


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """Runs one of them; returns its exit code."""
    if args.command == "batch":
        from studio.batch import command

        return command.run(args, home, teller)
    from studio.grid import command as grid_command

    return grid_command.run(args, home, teller)


def _cluster_flags(command: ArgumentParser) -> None:
    group = command.add_argument_group("beyond one process (pip install 'lora-studio[ray]')")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="default: local")
    group.add_argument(
        "--address", metavar="HOST:PORT", help="a running Ray cluster (default: start one here)"
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="default: one for each GPU, else one for four CPU cores"
    )


def _telling_flags(command: ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print each outcome as a line of JSON")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress, errors only")
