"""`bench`: its subcommands' flags, and which module runs them. Nothing heavy is imported."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pipelines.home import Home
    from studio.progress import Teller

Commands: TypeAlias = "_SubParsersAction[Any]"
"""Where argparse keeps subcommands."""

COMMANDS = ("bench",)


def add(commands: Commands, folders: ArgumentParser) -> None:
    """The subcommand, and its own: one for each thing that can be measured."""
    bench = commands.add_parser(
        "bench",
        allow_abbrev=False,
        help="measure speed on this machine",
        description="Measure. Every rival is measured in the same run.",
    )
    kinds = bench.add_subparsers(dest="kind", metavar="KIND", required=True)
    _speed_flags(kinds, folders)


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """Runs one of them; returns its exit code."""
    from studio.bench import batching

    return batching.run(args)


def _speed_flags(kinds: Commands, folders: ArgumentParser) -> None:
    speed = kinds.add_parser(
        "speed",
        allow_abbrev=False,
        parents=[folders],
        help="one denoising step for many mixes, against every rival",
        description="Time one denoising step for many pictures, each with its own mix, in every way.",
    )
    speed.add_argument("--model", default="tiny-sdxl", help="an embedded model")
    speed.add_argument("--config", default="", help="sdxl or sd1: the published size with random weights")
    speed.add_argument("--device", default="cpu")
    speed.add_argument("--dtype", default="", help="default: float32 on the CPU, bfloat16 on a GPU")
    speed.add_argument("--pictures", type=int, default=8)
    speed.add_argument("--cells", type=int, nargs="+", default=[16], help="sides of the latents")
    speed.add_argument("--rank", type=int, default=4)
    speed.add_argument("--repeats", type=int, default=7)
    speed.add_argument("--check", action="store_true", help="fail where a gate is broken (three tries)")
    speed.add_argument("--json", metavar="FILE", help="write the figures here as well")
