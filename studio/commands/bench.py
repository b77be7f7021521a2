"""`lora-studio bench speed`, and the group `bench`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from studio.commands import flags
from studio.commands.flags import Command, CommandGroup

if TYPE_CHECKING:
    from pipelines.home import Home
    from studio.bench.speed.order import SpeedOrder
    from studio.terminal.progress import Teller

FORMS = ("auto", "lane-packed", "pool", "dense")
MODES = ("eager", "graph", "compiled", "kernels")
TARGET_PARTS = ("large", "small", "composite", "changes", "switch", "linear", "float32", "other")
RIVALS = ("set_adapters", "adapter_names", "fused")

HELP = """models:  sdxl and sd15 are built here at full size, with random weights, which take as long as real ones
ways:    base              no adapters: no way can take less
         studio FORM       all pictures in one call, in one of the engine's forms
         set_adapters      diffusers + peft as documented, picture after picture
         adapter_names     peft's mixed batch; each mix was made into one adapter beforehand
         fused             merged weights, picture after picture; the cost of fusing is spread over 30 steps
modes:   graph replays a CUDA graph; compiled adds torch.compile of the repeated blocks; kernels adds our own kernels
Needs peft: pip install 'lora-studio[train]'."""


def add(command: ArgumentParser) -> None:
    """The work, the ways, what can be measured instead, and the machine."""
    work = command.add_argument_group("the work")
    work.add_argument(
        "--model", "-m", nargs="+", default=["tiny-sdxl"], metavar="M", help="sdxl, sd15, or a model of yours"
    )
    work.add_argument(
        "--size", type=flags.whole_number, nargs="+", metavar="N", help="pixels a side (default: the model's)"
    )
    work.add_argument(
        "--images", type=flags.whole_number, nargs="+", default=[8], metavar="N", help="pictures at once"
    )
    work.add_argument(
        "--members", "-k", type=flags.whole_number, nargs="+", default=[3], metavar="K", help="LoRAs in a mix"
    )
    work.add_argument("--rank", type=flags.whole_number, nargs="+", default=[16], metavar="R")
    work.add_argument("--layers", nargs="+", default=["attention"], choices=("attention", "linear", "conv"))
    work.add_argument(
        "--spread", nargs="+", default=["distinct"], choices=("identical", "distinct", "uniform", "skewed")
    )
    work.add_argument(
        "--method", nargs="+", default=["merge"], choices=("merge", "switch", "composite", "cmlora")
    )
    work.add_argument("--full", action="store_true", help="starting from that work, vary every axis in turn")
    ways = command.add_argument_group("the ways")
    ways.add_argument(
        "--forms", nargs="+", default=["auto"], choices=FORMS, help="forms of the studio's engine"
    )
    ways.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    ways.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS)
    what = command.add_argument_group("instead of all that (for developers of the studio)")
    what.add_argument(
        "--targets",
        nargs="*",
        choices=TARGET_PARTS,
        metavar="PART",
        help=f"the engine's targets, on sdxl and sd15 (on a CPU: on tiny-sdxl), or parts: {', '.join(TARGET_PARTS)}",
    )
    what.add_argument(
        "--changes",
        type=flags.whole_number,
        metavar="N",
        help="make N random changes of mix, method and adapter, and count what is compiled or recorded again",
    )
    what.add_argument(
        "--ratios", action="store_true", help="the ratios that CI checks; exit code 1 if broken"
    )
    machine = command.add_argument_group("device and output")
    machine.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1")
    machine.add_argument("--dtype", metavar="T", help="default: float32 on a CPU, bfloat16 on a GPU")
    machine.add_argument("--profile", action="store_true", help="also show where the time of each way goes")
    machine.add_argument(
        "--repeats", type=flags.whole_number, default=7, metavar="N", help="measurements of each way"
    )
    machine.add_argument(
        "--budget",
        type=float,
        default=240,
        metavar="S",
        help="seconds in all; ways that come later are left out",
    )
    machine.add_argument("--json", metavar="FILE", help="write the figures here as well")
    machine.add_argument("--plot", metavar="FILE", help="draw them here, as .png, .svg or .pdf")
    flags.quiet_flag(machine)


def read(args: Namespace) -> SpeedOrder:
    """What is to be measured."""
    from studio.bench.speed.order import SpeedOrder

    return SpeedOrder(
        models=tuple(args.model),
        sizes=tuple(args.size or ()),
        images=tuple(args.images),
        members=tuple(args.members),
        ranks=tuple(args.rank),
        layers=tuple(args.layers),
        spreads=tuple(args.spread),
        methods=tuple(args.method),
        full=args.full,
        forms=tuple(args.forms),
        modes=tuple(args.modes),
        rivals=tuple(args.rivals),
        targets=None if args.targets is None else tuple(args.targets),
        changes=args.changes,
        ratios=args.ratios,
        device=args.device,
        dtype=args.dtype,
        profile=args.profile,
        repeats=args.repeats,
        budget=args.budget,
        json=flags.path(args.json or None),
        plot=flags.path(args.plot or None),
    )


def run(order: SpeedOrder, home: Home, teller: Teller) -> int:
    """Measures. Exit code: 0; 1 if --ratios finds a broken one. Raises StudioError for bad input."""
    from studio.bench.speed import order as speed

    return speed.run(order, home, teller)


COMMANDS = (
    CommandGroup(
        "bench",
        place=160,
        help="measure speed, or which method composes better",
        description="Measure speed or quality. All rivals are measured in the same run.",
    ),
    Command(
        "bench speed",
        place=161,
        help="time denoising steps for many mixes at once, against every rival",
        description="Time denoising steps for several pictures, each with its own mix, in every way. Lists of values "
        "are combined. Each workload is measured in all ways, in turns; predictions are compared with merged weights.",
        epilog=HELP,
        add=add,
        read=read,
        run=run,
    ),
)
