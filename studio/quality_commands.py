"""`bench quality` and `advise`: their flags, and which module runs them. Nothing heavy is imported."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pipelines.home import Home
    from studio.terminal.progress import Teller

Commands: TypeAlias = "_SubParsersAction[Any]"
"""Where argparse keeps subcommands."""

COMMANDS = ("advise",)

QUALITY_HELP = """methods:  METHOD[:SETTINGS][@STRENGTH][^CATEGORY], as in merge@0.8 or switch:interval=3^style
          @ scales every LoRA's strength, ^ puts that category's LoRA first; "none" is the prompt without LoRAs
sets:     the LoRAs of the library that fit the model and have a category (character, clothing, style, background,
          object), or a YAML file; composlora-anime and composlora-reality ship (lists without weights)
Run it again and it does what is missing. Several processes share the work with --part 1/4 … 4/4; a last run without
--part scores. --judge sends pictures to the endpoint that you name."""

ADVISE_HELP = """Example: lora-studio advise --lora nilo-fox --lora kimono --prompt "a nilo fox wearing a kimono"
Needs no classifier: with your own checkpoints it goes by CLIPScore and by likeness to each LoRA's own picture."""


def add_quality(kinds: Commands, folders: ArgumentParser, machine: Callable[[ArgumentParser], None]) -> None:
    """The subcommand of `bench`. machine: adds the flags that it shares with `render`."""
    quality = kinds.add_parser(
        "quality",
        allow_abbrev=False,
        parents=[folders],
        help="which method composes better: the ComposLoRA protocol, scored",
        description="Draw every composition of a test set by every method, score the pictures, report.",
        epilog=QUALITY_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    quality.add_argument("--set", metavar="SET", help="a YAML file, or the name of a set that ships")
    quality.add_argument(
        "--lora", action="append", default=[], metavar="NAME", help="only these LoRAs; may be repeated"
    )
    quality.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[2, 3, 4, 5],
        metavar="K",
        help="LoRAs in a mix (default: 2 3 4 5)",
    )
    quality.add_argument(
        "--only-kind",
        dest="only_kinds",
        action="append",
        default=[],
        metavar="KIND",
        help="only compositions of this kind",
    )
    quality.add_argument(
        "--limit", type=int, metavar="N", help="at most N compositions of each size and kind"
    )
    quality.add_argument("--seeds", default="1-3", metavar="SEEDS", help="as in 1-3 or 4,5,6 (default: 1-3)")
    quality.add_argument(
        "--method", action="append", metavar="METHOD", help="instead of the standard rows; may be repeated"
    )
    quality.add_argument("--part", metavar="I/N", help="draw the I-th of N parts only, score nothing")
    quality.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint that compares pairs")
    quality.add_argument("--judge-model", metavar="NAME", help="the model's name there")
    quality.add_argument(
        "--judge-pairs", type=int, default=24, metavar="N", help="compositions a method (default: 24)"
    )
    quality.add_argument("--out", "-o", metavar="DIR", help="where pictures, tables and the page go")
    _shared(quality)
    machine(quality)


def add(commands: Commands, folders: ArgumentParser, machine: Callable[[ArgumentParser], None]) -> None:
    """`advise`."""
    advise = commands.add_parser(
        "advise",
        allow_abbrev=False,
        parents=[folders],
        help="which method and strength suit your own mix",
        description="Draw your mix by several methods and strengths, score the pictures, and rank them.",
        epilog=ADVISE_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    advise.add_argument(
        "--lora",
        action="append",
        required=True,
        metavar="NAME[=W]",
        help="a LoRA by name or path, and its strength; at least two",
    )
    advise.add_argument("--prompt", "-p", metavar="TEXT", help="what to draw (default: the trigger words)")
    advise.add_argument("--seeds", default="1-4", metavar="SEEDS", help="default: 1-4")
    advise.add_argument("--method", action="append", metavar="METHOD", help="instead of the standard ones")
    advise.add_argument("--out", "-o", metavar="DIR", help="where the pictures and advice.png go")
    advise.add_argument("--json", action="store_true", help="print the ranking as JSON")
    _shared(advise)
    machine(advise)


def run_quality(args: Namespace, home: Home, teller: Teller) -> int:
    """Returns the exit code."""
    from studio.bench.quality import command

    return command.run(args, home, teller)


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """`advise`; returns the exit code."""
    from studio.bench.quality import advice

    return advice.run(args, home, teller)


def _shared(command: ArgumentParser) -> None:
    command.add_argument("--steps", type=int, metavar="N")
    command.add_argument("--guidance", "--cfg-scale", type=float, metavar="X")
    command.add_argument("--scheduler", "--sampler", metavar="NAME")
    command.add_argument("--width", type=int, metavar="W")
    command.add_argument("--height", type=int, metavar="H")
    command.add_argument("--negative", "--negative-prompt", metavar="TEXT")
    command.add_argument(
        "--clip",
        metavar="MODEL:WEIGHTS",
        help="an open_clip model, weights as a tag or a file; none goes without (default: the built-in one for "
        "built-in models, else ViT-B-16:openai, which is downloaded once)",
    )
    command.add_argument("--quiet", "-q", action="store_true", help="no progress, errors only")
