"""Every command in this folder, found by its file, and the parser of them all."""

from __future__ import annotations

import importlib
import pkgutil
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import studio.commands
from studio.commands.flags import Command, Group, folder_flags

if TYPE_CHECKING:
    from argparse import _SubParsersAction

SubParsers: TypeAlias = "_SubParsersAction[Any]"
"""Where argparse keeps commands."""


@cache
def commands() -> tuple[Command[Any] | Group, ...]:
    """All of them, as `--help` lists them: by their place, then by their name."""
    found: list[Command[Any] | Group] = []
    for module in pkgutil.iter_modules(studio.commands.__path__, "studio.commands."):
        found += getattr(importlib.import_module(module.name), "COMMANDS", ())
    return tuple(sorted(found, key=lambda each: (each.place, each.name)))


def add_commands(top: ArgumentParser) -> None:
    """Gives the program its commands. The parsed flags hold the chosen one as `chosen`."""
    folders = folder_flags()
    parts = {"": top.add_subparsers(dest="command", metavar="COMMAND")}
    for each in sorted(commands(), key=lambda each: " " in each.name):  # a group before its own
        if isinstance(each, Group):
            parser = parts[""].add_parser(
                each.name, allow_abbrev=False, help=each.help, description=each.description
            )
            parts[each.name] = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
        else:
            _add(parts, each, folders)


def _add(parts: dict[str, SubParsers], command: Command[Any], folders: ArgumentParser) -> None:
    group, _, name = command.name.rpartition(" ")
    parser = parts[group].add_parser(
        name,
        allow_abbrev=command.abbreviations,
        parents=[folders],
        help=command.help,
        description=command.description,
        epilog=command.epilog,
    )
    if command.epilog and "\n" in command.epilog:
        parser.formatter_class = RawDescriptionHelpFormatter
    command.add(parser)
    parser.set_defaults(chosen=command)
