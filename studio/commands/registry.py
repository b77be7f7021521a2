"""Every command in this folder, found by its file, and the parser of those that a command line can mean."""

from __future__ import annotations

import importlib
import pkgutil
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import studio.commands
from studio.commands.flags import Command, CommandGroup, Parser, folder_flags

if TYPE_CHECKING:
    from argparse import _SubParsersAction

SubParsers: TypeAlias = "_SubParsersAction[Parser]"
"""Where argparse keeps commands."""


@cache
def commands() -> tuple[Command[Any] | CommandGroup, ...]:
    """All of them, as `--help` lists them: by their place, then by their name."""
    found: list[Command[Any] | CommandGroup] = []
    for file in _files():
        found += _commands_in(file)
    return tuple(sorted(found, key=lambda each: (each.place, each.name)))


def asked_for(words: Sequence[str]) -> tuple[Command[Any] | CommandGroup, ...]:
    """Those that a command line can mean. A first word that names a file and its command means that one alone, and no
    other file is imported; whatever else stands there can mean any."""
    file = words[0].replace("-", "_") if words else ""
    if file in _files():
        for each in _commands_in(file):
            if isinstance(each, Command) and each.name == words[0]:
                return (each,)
    return commands()


def _files() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(studio.commands.__path__)]


def _commands_in(file: str) -> tuple[Command[Any] | CommandGroup, ...]:
    module = importlib.import_module(f"studio.commands.{file}")
    return getattr(module, "COMMANDS", ())


def add_commands(top: Parser, words: Sequence[str] = ()) -> None:
    """Gives the program the commands that a command line can mean. The parsed flags hold the chosen one as `chosen`."""
    parts = {"": top.add_subparsers(dest="command", metavar="COMMAND")}
    for each in sorted(asked_for(words), key=lambda each: " " in each.name):  # a group before its own
        if isinstance(each, CommandGroup):
            parser = parts[""].add_parser(
                each.name, allow_abbrev=False, help=each.help, description=each.description
            )
            parts[each.name] = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
        else:
            _add(parts, each)


def _add(parts: dict[str, SubParsers], command: Command[Any]) -> None:
    group, _, name = command.name.rpartition(" ")
    parser = parts[group].add_parser(
        name,
        allow_abbrev=command.abbreviations,
        help=command.help,
        description=command.description,
    )
    if callable(command.epilog):
        parser.late_epilog = command.epilog
    else:
        parser.epilog = command.epilog
    if callable(command.epilog) or "\n" in (command.epilog or ""):
        parser.formatter_class = RawDescriptionHelpFormatter
    parser.late_flags = (folder_flags, command.add)
    parser.set_defaults(chosen=command)
