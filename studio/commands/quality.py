"""`lora-studio bench quality` and `advise`: which method composes better, in general and for one mix."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from studio.commands import flags
from studio.commands.flags import Command

if TYPE_CHECKING:
    from pipelines.home import Home
    from studio.bench.quality.advice import Question
    from studio.bench.quality.order import QualityOrder
    from studio.terminal.progress import Teller

QUALITY_HELP = """methods:  METHOD[:SETTINGS][@STRENGTH][^CATEGORY], as in merge@0.8 or switch:interval=3^style
          @ scales every LoRA's strength; ^ puts that category's LoRA first; "none" is the prompt without LoRAs
sets:     the LoRAs of the library that fit the model and have a category (character, clothing, style, background,
          object), or a YAML file; composlora-anime and composlora-reality are included (lists, without the LoRAs)
Run the command again to do what is missing. Several processes can share the work with --part 1/4 … 4/4; a last run
without --part scores the pictures. --judge sends pictures to the endpoint that you name."""

ADVISE_HELP = """Example: lora-studio advise --lora nilo-fox --lora kimono --prompt "a nilo fox wearing a kimono"
With your own checkpoints, pictures are scored by CLIPScore and by likeness to pictures of each LoRA alone."""


# -- flags -----------------------------------------------------------------------------------------------


def _quality_flags(command: ArgumentParser) -> None:
    command.add_argument("--set", metavar="SET", help="a YAML file, or the name of an included set")
    command.add_argument(
        "--lora", action="append", default=[], metavar="NAME", help="only these LoRAs; may be repeated"
    )
    command.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[2, 3, 4, 5],
        metavar="K",
        help="LoRAs in a mix (default: 2 3 4 5)",
    )
    command.add_argument(
        "--only-kind",
        dest="only_kinds",
        action="append",
        default=[],
        metavar="KIND",
        help="only compositions of this kind",
    )
    command.add_argument(
        "--limit", type=int, metavar="N", help="at most N compositions of each size and kind"
    )
    command.add_argument("--seeds", default="1-3", metavar="SEEDS", help="as in 1-3 or 4,5,6 (default: 1-3)")
    command.add_argument(
        "--method", action="append", metavar="METHOD", help="instead of the standard methods; may be repeated"
    )
    command.add_argument("--part", metavar="I/N", help="draw only the I-th of N parts, and score nothing")
    command.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint that compares pairs")
    command.add_argument("--judge-model", metavar="NAME", help="the model's name there")
    command.add_argument(
        "--judge-pairs",
        type=int,
        default=24,
        metavar="N",
        help="compositions judged for each method (default: 24)",
    )
    command.add_argument("--out", "-o", metavar="DIR", help="where pictures, tables and the page go")
    _picture_flags(command)
    flags.machine_flags(command)


def _advise_flags(command: ArgumentParser) -> None:
    command.add_argument(
        "--lora",
        action="append",
        required=True,
        metavar="NAME[=W]",
        help="a LoRA by name or path, and its strength; at least two",
    )
    command.add_argument("--prompt", "-p", metavar="TEXT", help="what to draw (default: the trigger words)")
    command.add_argument("--seeds", default="1-4", metavar="SEEDS", help="default: 1-4")
    command.add_argument("--method", action="append", metavar="METHOD", help="instead of the standard ones")
    command.add_argument("--out", "-o", metavar="DIR", help="where the pictures and advice.png go")
    command.add_argument("--json", action="store_true", help="print the ranking as JSON")
    _picture_flags(command)
    flags.machine_flags(command)


def _picture_flags(command: ArgumentParser) -> None:
    """The settings of all pictures, and what scores them."""
    command.add_argument("--steps", type=int, metavar="N")
    command.add_argument("--guidance", "--cfg-scale", type=float, metavar="X")
    command.add_argument("--scheduler", "--sampler", metavar="NAME")
    command.add_argument("--width", type=int, metavar="W")
    command.add_argument("--height", type=int, metavar="H")
    command.add_argument("--negative", "--negative-prompt", metavar="TEXT")
    command.add_argument(
        "--clip",
        metavar="MODEL:WEIGHTS",
        help="an open_clip model, its weights as a tag or a file; none: do not use one (default: the built-in one for "
        "built-in models, else ViT-B-16:openai, which is downloaded once)",
    )
    flags.quiet_flag(command)


def _read_quality(args: Namespace) -> QualityOrder:
    from studio.bench.quality.order import QualityOrder

    return QualityOrder(
        opening=flags.read_opening(args),
        set=args.set,
        loras=tuple(args.lora),
        sizes=tuple(args.k),
        only_kinds=tuple(args.only_kinds),
        limit=args.limit,
        seeds=args.seeds,
        methods=tuple(args.method or ()),
        overrides=_read_overrides(args),
        part=args.part,
        judge=args.judge,
        judge_model=args.judge_model,
        judge_pairs=args.judge_pairs,
        clip=args.clip,
        out=flags.path(args.out or None),
    )


def _read_advise(args: Namespace) -> Question:
    from studio.bench.quality.advice import Question
    from studio.drafts.flags import wanted_of

    return Question(
        opening=flags.read_opening(args),
        mix=wanted_of(args.lora, ()),
        prompt=args.prompt,
        seeds=args.seeds,
        methods=tuple(args.method or ()),
        overrides=_read_overrides(args),
        clip=args.clip,
        out=flags.path(args.out or None),
        as_json=args.json,
    )


def _read_overrides(args: Namespace) -> dict[str, Any]:
    """The job fields that the flags set for every picture."""
    given = {
        "steps": args.steps,
        "guidance_scale": args.guidance,
        "scheduler": args.scheduler,
        "width": args.width,
        "height": args.height,
        "negative_prompt": args.negative,
    }
    return {name: value for name, value in given.items() if value is not None}


# -- runs ------------------------------------------------------------------------------------------------


def run_quality(order: QualityOrder, home: Home, teller: Teller) -> int:
    """The exit code: 0 all done, 1 some pictures failed, 130 interrupted. Raises StudioError for bad input."""
    from studio.bench.quality import order as quality

    return quality.run(order, home, teller)


def run_advise(question: Question, home: Home, teller: Teller) -> int:
    """The exit code: 0 all done, 1 some pictures failed, 130 interrupted. Raises StudioError for bad input."""
    from studio.bench.quality import advice

    return advice.run(question, home, teller)


COMMANDS = (
    Command(
        "bench quality",
        place=162,
        help="compare how well methods compose, by the ComposLoRA protocol",
        description="Draw every composition of a test set by every method, score the pictures, and report.",
        epilog=QUALITY_HELP,
        add=_quality_flags,
        read=_read_quality,
        run=run_quality,
    ),
    Command(
        "advise",
        place=170,
        help="find which method and strength suit your own mix",
        description="Draw your mix by several methods and strengths, score the pictures, and rank them.",
        epilog=ADVISE_HELP,
        add=_advise_flags,
        read=_read_advise,
        run=run_advise,
    ),
)
