"""`bench`: its subcommands' flags, and which module runs them. Nothing heavy is imported."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from studio import quality_commands

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pipelines.home import Home
    from studio.terminal.progress import Teller

Commands: TypeAlias = "_SubParsersAction[Any]"
"""Where argparse keeps subcommands."""

COMMANDS = ("bench",)
FORMS = ("auto", "lane-packed", "pool", "dense")
MODES = ("eager", "graph", "compiled", "kernels")
TARGET_PARTS = ("large", "small", "composite", "changes", "switch", "linear", "float32", "other")
RIVALS = ("set_adapters", "adapter_names", "fused")

SPEED_HELP = """models:  sdxl and sd15 are built here at full size with random weights, which take as long as real ones
ways:    base              no adapters: the least that any way can take
         studio FORM       all pictures in one call, in a form of the engine's
         set_adapters      diffusers + peft as documented, picture after picture
         adapter_names     peft's mixed batch over mixes made one adapter beforehand
         fused             merged weights, picture after picture; fusing shared out over 30 steps
modes:   graph replays a CUDA graph; compiled adds torch.compile of the repeated blocks, kernels our own
Needs peft: pip install 'lora-studio[train]'."""


def add(commands: Commands, folders: ArgumentParser, machine: Callable[[ArgumentParser], None]) -> None:
    """The subcommand, and its own: one for each thing that can be measured.

    machine: adds the flags of model and device.
    """
    bench = commands.add_parser(
        "bench",
        allow_abbrev=False,
        help="measure speed, or which method composes better",
        description="Measure. Every rival is measured in the same run.",
    )
    kinds = bench.add_subparsers(dest="kind", metavar="KIND", required=True)
    _speed_flags(kinds, folders)
    quality_commands.add_quality(kinds, folders, machine)


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """Runs one of them; returns its exit code."""
    if args.kind == "quality":
        return quality_commands.run_quality(args, home, teller)
    from studio.bench.speed import command as speed

    return speed.run(args, home, teller)


def _speed_flags(kinds: Commands, folders: ArgumentParser) -> None:
    speed = kinds.add_parser(
        "speed",
        allow_abbrev=False,
        parents=[folders],
        help="denoising steps for many mixes at once, against every rival",
        description="Time denoising steps for several pictures, each with its own mix, in every way. Lists of values "
        "are combined: every workload is measured in all ways, in turns, and compared with merged weights.",
        epilog=SPEED_HELP,
        formatter_class=RawDescriptionHelpFormatter,
    )
    work = speed.add_argument_group("the work")
    work.add_argument(
        "--model", "-m", nargs="+", default=["tiny-sdxl"], metavar="M", help="sdxl, sd15, or a model of yours"
    )
    work.add_argument(
        "--size", type=_positive, nargs="+", metavar="N", help="pixels a side (default: the model's)"
    )
    work.add_argument(
        "--images", type=_positive, nargs="+", default=[8], metavar="N", help="pictures at once"
    )
    work.add_argument(
        "--members", "-k", type=_positive, nargs="+", default=[3], metavar="K", help="LoRAs in a mix"
    )
    work.add_argument("--rank", type=_positive, nargs="+", default=[16], metavar="R")
    work.add_argument("--layers", nargs="+", default=["attention"], choices=("attention", "linear", "conv"))
    work.add_argument(
        "--spread", nargs="+", default=["distinct"], choices=("identical", "distinct", "uniform", "skewed")
    )
    work.add_argument(
        "--method", nargs="+", default=["merge"], choices=("merge", "switch", "composite", "cmlora")
    )
    work.add_argument(
        "--full", action="store_true", help="from that work, every axis in turn with all its values"
    )
    ways = speed.add_argument_group("the ways")
    ways.add_argument("--forms", nargs="+", default=["auto"], choices=FORMS, help="the studio's")
    ways.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    ways.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS)
    what = speed.add_argument_group("instead of all that")
    what.add_argument(
        "--targets",
        nargs="*",
        choices=TARGET_PARTS,
        metavar="PART",
        help=f"the engine's targets, on sdxl and sd15 (on a CPU: on tiny-sdxl), or parts: {', '.join(TARGET_PARTS)}",
    )
    what.add_argument(
        "--changes",
        type=_positive,
        metavar="N",
        help="N random changes of mix, method and adapter: what is made anew?",
    )
    what.add_argument("--gates", action="store_true", help="the ratios that CI holds; exit code 1 if broken")
    machine = speed.add_argument_group("device and output")
    machine.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1")
    machine.add_argument("--dtype", metavar="T", help="default: float32 on a CPU, bfloat16 on a GPU")
    machine.add_argument("--profile", action="store_true", help="also where the time of every way goes")
    machine.add_argument("--repeats", type=_positive, default=7, metavar="N", help="turns of each way")
    machine.add_argument(
        "--budget", type=float, default=240, metavar="S", help="seconds; late ways are left out"
    )
    machine.add_argument("--json", metavar="FILE", help="write the figures here as well")
    machine.add_argument("--plot", metavar="FILE", help="draw them here, as .png, .svg or .pdf")
    machine.add_argument("--quiet", "-q", action="store_true", help="no progress, errors only")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)
