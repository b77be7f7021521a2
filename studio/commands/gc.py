"""`lora-studio gc`: deletes what no job needs any more."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import OK

if TYPE_CHECKING:
    from pipelines.home import Home
    from studio.terminal.progress import Teller


@dataclass(frozen=True)
class Gc:
    """What to delete. older_than: forget jobs that ended so many days ago. pictures: delete their pictures too."""

    older_than: int | None = None
    pictures: bool = False
    dry_run: bool = False


def add(command: ArgumentParser) -> None:
    """What to delete besides cached files."""
    command.add_argument(
        "--older-than", type=int, metavar="DAYS", help="forget jobs that ended so many days ago"
    )
    command.add_argument(
        "--pictures", action="store_true", help="with --older-than: delete their pictures too"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    flags.quiet_flag(command, "errors only")


def read(args: Namespace) -> Gc:
    """Raises SetupError."""
    from pipelines.errors import SetupError

    if args.pictures and args.older_than is None:
        raise SetupError("--pictures needs --older-than DAYS, so that not all of them go by mistake")
    if args.older_than is not None and args.older_than < 0:
        raise SetupError(f"--older-than {args.older_than} must be 0 or more days")
    return Gc(args.older_than, args.pictures, args.dry_run)


def run(values: Gc, home: Home, teller: Teller) -> int:
    """Deletes, and lists on stdout what was deleted. Raises SetupError while a server runs in the home."""
    from studio.jobs.gc import collect

    if not home.database.exists():
        teller.say(f"no jobs in {home.path}, so there is nothing to delete")
        return OK
    freed = collect(
        home, print, older_than=values.older_than, pictures=values.pictures, dry_run=values.dry_run
    )
    teller.say(f"{freed / 2**20:.1f} MB {'would be' if values.dry_run else 'were'} freed")
    return OK


COMMANDS = (
    Command(
        "gc",
        place=60,
        help="delete what no job needs any more",
        description="Delete cached files that nothing needs, and old jobs where asked. Pictures are kept.",
        add=add,
        read=read,
        run=run,
    ),
)
