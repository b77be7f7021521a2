"""`lora-studio probe-blocks`: finds the blocks that carry content and those that carry style."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.commands import flags
from studio.commands.flags import Command
from studio.terminal.exits import OK

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.blora.probe import Pair, Probe
    from pipelines.home import Home
    from studio.rendering.opening import Opening
    from studio.terminal.progress import Teller


@dataclass(frozen=True)
class ProbeBlocks:
    """What to probe.

    model: name, folder, file or hub id, opened as `opening` says. out: the sheet's file; None names it after the model.
    pairs: of prompts; () takes the model's own. scorer: an open_clip folder. seeds: pictures for each prompt.
    """

    model: str
    opening: Opening
    out: Path | None
    pairs: tuple[Pair, ...]
    scorer: Path | None
    seeds: int
    steps: int | None
    size: int | None
    force: bool = False


def add(command: ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="name, folder, .safetensors file or hub id")
    command.add_argument("--out", "-o", metavar="PNG", help="the sheet (default: MODEL-blocks.png here)")
    for part in ("content", "style"):
        command.add_argument(
            f"--{part}",
            nargs=2,
            action="append",
            default=[],
            metavar=("A", "B"),
            help=f"two prompts that differ only in {part}; several pairs are averaged",
        )
    command.add_argument("--scorer", metavar="DIR", help="an open_clip folder to score with")
    command.add_argument(
        "--seeds", type=int, default=2, metavar="N", help="pictures for each prompt (default: 2)"
    )
    command.add_argument(
        "--steps", type=int, metavar="N", help="steps of each picture (default: half the model's)"
    )
    command.add_argument("--size", type=int, metavar="PIXELS", help="side of the pictures")
    flags.device_flags(command)
    command.add_argument("--force", action="store_true", help="overwrite the sheet")
    flags.quiet_flag(command)


def read(args: Namespace) -> ProbeBlocks:
    """Raises RequestError."""
    from pipelines.blora.probe import Pair
    from pipelines.errors import RequestError
    from studio.rendering.opening import Opening

    if args.seeds < 1:
        raise RequestError(f"--seeds {args.seeds} must be at least 1")
    return ProbeBlocks(
        model=args.model,
        opening=Opening(args.model, args.device, args.dtype),
        out=flags.path(args.out or None),
        pairs=(
            *(Pair("content", *two) for two in args.content),
            *(Pair("style", *two) for two in args.style),
        ),
        scorer=flags.path(args.scorer or None),
        seeds=args.seeds,
        steps=args.steps,
        size=args.size,
        force=args.force,
    )


def run(values: ProbeBlocks, home: Home, teller: Teller) -> int:
    """Prints the proposed block map to stdout, and writes the sheet. Raises StudioError for bad input."""
    import json
    from pathlib import Path

    from pipelines.blora.probe import (
        ProbeSettings,
        attention_blocks,
        levels,
        pairs_for,
        picture_count,
        probe,
    )
    from pipelines.blora.scoring import pick_scorer
    from pipelines.blora.sheet import probe_sheet
    from pipelines.errors import RequestError
    from pipelines.home.files import write_whole
    from studio.rendering.opening import is_slow, open_pipeline

    entry = home.find_model(values.model)
    out = values.out or Path(f"{entry.name if entry else Path(values.model).name}-blocks.png")
    if out.exists() and not values.force:
        raise RequestError(f"{out} is already there; choose another with --out, or overwrite it with --force")
    with teller.waiting(f"loading {values.model} …"):
        pipe = open_pipeline(values.opening, home, teller.say)
    checkpoint = pipe.model.checkpoint
    pairs = values.pairs or pairs_for(checkpoint.card.vocabulary if checkpoint.card else {})
    for part in ("content", "style"):
        if not any(pair.part == part for pair in pairs):
            raise RequestError(f"give a pair of each kind: --{part} A B is missing")
    settings = ProbeSettings(
        seeds=tuple(range(1, values.seeds + 1)),
        steps=values.steps or max(checkpoint.defaults.steps // 2, 1),
        width=values.size,
        height=values.size,
    )
    tokenizer = next(iter(checkpoint.tokenizers.values()))
    scorer = pick_scorer(values.scorer, embedded=bool(entry and entry.embedded), tokenizer=tokenizer)
    pictures = picture_count(pipe, pairs, settings)
    blocks = attention_blocks(pipe.model.unet)
    teller.say(
        f"{len(blocks)} blocks and {len(levels(blocks))} levels, {len(pairs)} pairs of prompts, {values.seeds} seeds; "
        f"scored by {scorer.name}"
    )
    with teller.counting(pictures, pictures, slow=is_slow(pipe)) as counter:
        found = probe(pipe, pairs, scorer, settings, progress=counter.steps)
    sheet = probe_sheet(found)
    write_whole(out, lambda path: sheet.save(path, format="PNG", optimize=True), force=True)
    for line in _table(found):
        teller.say(line)
    teller.say(f"sheet: {out}")
    print(json.dumps(_answer(found), indent=2))
    return OK


def _answer(found: Probe) -> dict[str, Any]:
    """The values for studio.json."""
    return {"block_map": {part: list(blocks) for part, blocks in found.block_map.items()}}


def _table(found: Probe) -> list[str]:
    """The effects in words, the largest first."""
    lines = [f"{'injected into':<28}content  style"]
    for effect in sorted(found.effects, key=lambda e: -max(e.content or 0, e.style or 0)):
        numbers = ("   -" if value is None else f"{value:5.2f}" for value in (effect.content, effect.style))
        lines.append(f"{effect.block:<28}" + "    ".join(numbers))
    if not found.block_map:
        lines.append("no block changes content or style clearly enough to propose a map; look at the sheet")
    elif not found.published:
        lines.append("nobody has published a map for this family; it was found by the paper's procedure")
    return lines


COMMANDS = (
    Command(
        "probe-blocks",
        place=130,
        help="find which blocks of a model carry content and which style",
        description=(
            "Give one block at a time another prompt, and measure what changes. Prints the proposed blocks as JSON for "
            "the model's studio.json, and writes a labelled sheet."
        ),
        abbreviations=True,
        add=add,
        read=read,
        run=run,
    ),
)
