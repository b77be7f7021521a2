"""The command line: the parser, the home, and how an error becomes an exit code.

    lora-studio render --prompt "a fox in a red hat" --lora fox=0.8

The commands are in `studio/commands`; each imports what it needs when it runs. Results go to stdout, everything else
to stderr. Exit codes: 0 all done, 1 some failed, 2 bad input or set-up, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from studio.commands.flags import Command, Parser
from studio.commands.registry import add_commands
from studio.terminal.exits import BAD_INPUT, INTERRUPTED, OK
from studio.terminal.stdout import abandon_stdout

QUIET_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads take ten times as long on cores that are shared
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Libraries report to nobody, and warn users of nothing that only the libraries' programmers could change."""

TRY = """Three commands to try:

  lora-studio render                 draws the built-in model's first example
  lora-studio loras                  lists the LoRAs you can mix, with their words
  lora-studio render --prompt "a nilo fox wearing a kimono" --lora nilo-fox --lora kimono \\
      --composer merge --composer switch --composer composite
                                     mixes two of them by three methods, in one pass

lora-studio --help shows all commands, lora-studio render --help all flags."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET_ENVIRONMENT.items()})
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # on Windows, consoles lack many characters: "?" is printed
    words = sys.argv[1:] if argv is None else argv
    args = parser(words).parse_args(words)
    if args.command is None:
        print(TRY)
        return OK
    from composers import StudioError  # here, since it imports all methods, which --help does not need

    try:
        return _run(args.chosen, args)
    except StudioError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has gone, as `head` does
        abandon_stdout()
        return OK


def _run(command: Command[Any], args: Namespace) -> int:
    """Opens the home, turns the flags into the command's values, and runs it."""
    from pipelines.home import Home
    from studio.terminal.progress import Teller

    teller = Teller(quiet=getattr(args, "quiet", False))
    home = Home.resolve(args.home, model_dirs=args.model_dir, lora_dirs=args.lora_dir)
    return command.run(command.read(args), home, teller)


def parser(words: Sequence[str] = ()) -> ArgumentParser:
    """The parser, with the commands and flags that these words can mean. No words: with all of them."""
    top = Parser(
        prog="lora-studio",
        allow_abbrev=False,
        description="A composition studio for image-model LoRAs: many mixes, one pass.",
        epilog="Exit codes: 0 all done, 1 some failed, 2 bad input or set-up, 130 interrupted.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    add_commands(top, words)
    return top


class _Version(argparse.Action):
    """Prints the version, which is looked up only when it is asked for."""

    def __call__(self, parser: ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("lora-studio")
        except PackageNotFoundError:
            number = "(not installed)"
        print(f"lora-studio {number}")
        parser.exit(OK)


if __name__ == "__main__":
    sys.exit(main())
