"""Finds the commands in this folder by their files, and adds those to the parser that a command line can mean."""

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
"""What argparse calls a set of commands."""


@cache
def commands() -> tuple[Command[Any] | CommandGroup, ...]:
    """All commands and groups, as `--help` lists them: by place, then by name."""
    found: list[Command[Any] | CommandGroup] = []
    for file in _files():
        found += _commands_in(file)
    return tuple(sorted(found, key=lambda command: (command.place, command.name)))


def asked_for(words: Sequence[str]) -> tuple[Command[Any] | CommandGroup, ...]:
    """The commands that a command line can mean. If the first word is the name of a file here and of its command, it
    can mean only that one, and no other file is imported. Otherwise it can mean any command."""
    file = words[0].replace("-", "_") if words else ""
    if file in _files():
        for command in _commands_in(file):
            if isinstance(command, Command) and command.name == words[0]:
                return (command,)
    return commands()


def _files() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(studio.commands.__path__)]


def _commands_in(file: str) -> tuple[Command[Any] | CommandGroup, ...]:
    module = importlib.import_module(f"studio.commands.{file}")
    return getattr(module, "COMMANDS", ())


def add_commands(top: Parser, words: Sequence[str] = ()) -> None:
    """Adds the commands that a command line can mean. In the parsed flags, `chosen` is the chosen command."""
    parts = {"": top.add_subparsers(dest="command", metavar="COMMAND")}
    # a group comes before its commands
    for command in sorted(asked_for(words), key=lambda command: " " in command.name):
        if isinstance(command, CommandGroup):
            parser = parts[""].add_parser(
                command.name, allow_abbrev=False, help=command.help, description=command.description
            )
            parts[command.name] = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
        else:
            _add(parts, command)


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
