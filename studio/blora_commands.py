"""`split`, `probe-blocks`, `train-blora` and `train-flora`: their flags, and which module runs them.

Nothing heavy is imported.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from pipelines.home import Home
    from studio.terminal.progress import Teller

Commands: TypeAlias = "_SubParsersAction[Any]"
"""Where argparse keeps subcommands."""

COMMANDS = ("split", "probe-blocks", "train-blora", "train-flora")


def add(commands: Commands, folders: ArgumentParser) -> None:
    """The four subcommands."""
    _split_flags(commands, folders)
    _probe_flags(commands, folders)
    _train_flags(commands, folders)
    _train_flora_flags(commands, folders)


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """Runs one of them; returns its exit code."""
    if args.command == "split":
        from studio import splitting

        return splitting.run(args, home, teller)
    if args.command == "probe-blocks":
        from studio import probing

        return probing.run(args, home, teller)
    from studio import training

    return (training.run_flora if args.command == "train-flora" else training.run)(args, home, teller)


def _split_flags(commands: Commands, folders: ArgumentParser) -> None:
    command = commands.add_parser(
        "split",
        parents=[folders],
        help="cut a LoRA into its content and its style",
        description="Write a LoRA's content blocks and style blocks as files of their own (B-LoRA).",
    )
    command.add_argument("file", metavar="FILE", help="a LoRA: path or name, any naming scheme")
    command.add_argument("--content", metavar="OUT", help="write the content part here (.safetensors)")
    command.add_argument("--style", metavar="OUT", help="write the style part here (.safetensors)")
    command.add_argument(
        "--model", "-m", metavar="M", help="the model it is for (default: SDXL as published)"
    )
    _naming_flag(command)
    command.add_argument("--force", action="store_true", help="overwrite files")
    command.add_argument("--quiet", "-q", action="store_true", help="no remarks, errors only")


def _probe_flags(commands: Commands, folders: ArgumentParser) -> None:
    command = commands.add_parser(
        "probe-blocks",
        parents=[folders],
        help="find which blocks of a model carry content and which style",
        description=(
            "Give one block at a time another prompt, and see what changes: prints the blocks it proposes as JSON, "
            "for the model's studio.json, and writes a labelled sheet."
        ),
    )
    command.add_argument("model", metavar="MODEL", help="name, folder, .safetensors file or hub id")
    command.add_argument("--out", "-o", metavar="PNG", help="the sheet (default: MODEL-blocks.png here)")
    for part in ("content", "style"):
        command.add_argument(
            f"--{part}",
            nargs=2,
            action="append",
            default=[],
            metavar=("A", "B"),
            help=f"two prompts that differ in {part} alone; several pairs are averaged",
        )
    command.add_argument("--scorer", metavar="DIR", help="an open_clip folder to score with")
    command.add_argument("--seeds", type=int, default=2, metavar="N", help="pictures a prompt (default 2)")
    command.add_argument("--steps", type=int, metavar="N", help="steps a picture (default: half the model's)")
    command.add_argument("--size", type=int, metavar="PIXELS", help="side of the pictures")
    _machine_flags(command)
    command.add_argument("--force", action="store_true", help="overwrite the sheet")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress, errors only")


def _train_flags(commands: Commands, folders: ArgumentParser) -> None:
    command = commands.add_parser(
        "train-blora",
        parents=[folders],
        help="train a B-LoRA on one picture",
        description=(
            "Train the content and style blocks on one picture. What is not said is the paper's for full-size "
            "models (rank 64, 1000 steps) and small for small ones."
        ),
        epilog="An interrupted run goes on with --resume. Needs: pip install 'lora-studio[train]'.",
    )
    command.add_argument("image", metavar="IMAGE", help="the picture")
    command.add_argument("--prompt", "-p", required=True, metavar="TEXT", help='names it, as in "A [v]"')
    _recipe_flags(command, rank="rank of the factors, which is also alpha")
    command.add_argument("--sample-prompt", metavar="TEXT", help="what samples show (default: the prompt)")
    _naming_flag(command)


def _train_flora_flags(commands: Commands, folders: ArgumentParser) -> None:
    command = commands.add_parser(
        "train-flora",
        parents=[folders],
        help="train a FLoRA on a few pictures",
        description=(
            "Train factors that multiply the UNet's weights (FLoRA, arXiv 2312.05677). A text file beside a picture, "
            "of the same name, is its caption; otherwise the prompt is."
        ),
        epilog="An interrupted run goes on with --resume.",
    )
    command.add_argument("images", nargs="+", metavar="IMAGE", help="the pictures")
    command.add_argument("--prompt", "-p", required=True, metavar="TEXT", help='names it, as in "a nilo fox"')
    command.add_argument(
        "--reach",
        choices=("attention", "transformer"),
        default="attention",
        help="layers: attention projections (default), or feed-forward too",
    )
    _recipe_flags(command, rank="rank of the factors; the first is the base itself")


def _recipe_flags(command: ArgumentParser, *, rank: str) -> None:
    """How to train, whatever is trained."""
    command.add_argument("--out", "-o", required=True, metavar="FILE", help="the .safetensors file to write")
    command.add_argument("--rank", type=int, metavar="N", help=rank)
    command.add_argument("--learning-rate", "--lr", type=float, metavar="X")
    command.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    command.add_argument("--batch", type=int, metavar="N", help="noisy copies of the pictures a step")
    command.add_argument("--size", type=int, metavar="PIXELS", help="side of the training square")
    command.add_argument("--seed", type=int, metavar="N")
    command.add_argument("--stretch", action="store_true", help="stretch the picture instead of cropping it")
    command.add_argument("--checkpoint-every", type=int, metavar="N", help="steps between resumable states")
    command.add_argument(
        "--sample-every", type=int, metavar="N", help="steps between sample pictures; 0: none"
    )
    command.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    _machine_flags(command)
    command.add_argument("--model", "-m", metavar="M", help="name, folder, .safetensors file or hub id")
    command.add_argument("--force", action="store_true", help="overwrite the file")
    command.add_argument("--quiet", "-q", action="store_true", help="no progress, errors only")


def _naming_flag(command: ArgumentParser) -> None:
    command.add_argument(
        "--naming",
        choices=("peft", "kohya"),
        default="peft",
        help="key names: peft (diffusers, the default) or kohya (web UIs)",
    )


def _machine_flags(command: ArgumentParser) -> None:
    command.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1, mps")
    command.add_argument("--dtype", metavar="T", help="float32, float16, bfloat16")
