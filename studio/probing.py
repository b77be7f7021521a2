"""`lora-studio probe-blocks`: which blocks carry content and which style, as JSON and as a sheet."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pipelines.blora.probe import (
    Pair,
    Probe,
    Settings,
    attention_blocks,
    levels,
    pairs_for,
    picture_count,
    probe,
)
from pipelines.blora.scoring import pick_scorer
from pipelines.blora.sheet import probe_sheet
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.home.files import write_whole
from studio.rendering.opening import Opening, is_slow, open_pipeline
from studio.terminal.progress import Teller


def run(args: Namespace, home: Home, teller: Teller) -> int:
    """The proposed map on stdout. Raises StudioError for bad input."""
    if args.seeds < 1:
        raise RequestError(f"--seeds {args.seeds} must be at least 1")
    entry = home.find_model(args.model)
    out = Path(args.out or f"{entry.name if entry else Path(args.model).name}-blocks.png").expanduser()
    if out.exists() and not args.force:
        raise RequestError(f"{out} is already there; choose another with --out, or overwrite it with --force")
    with teller.waiting(f"loading {args.model} …"):
        pipe = open_pipeline(Opening(args.model, args.device, args.dtype), home, teller.say)
    checkpoint = pipe.model.checkpoint
    given = [Pair("content", *two) for two in args.content] + [Pair("style", *two) for two in args.style]
    pairs = given or pairs_for(checkpoint.card.vocabulary if checkpoint.card else {})
    for part in ("content", "style"):
        if not any(pair.part == part for pair in pairs):
            raise RequestError(f"give a pair of each kind: --{part} A B is missing")
    settings = Settings(
        seeds=tuple(range(1, args.seeds + 1)),
        steps=args.steps or max(checkpoint.defaults.steps // 2, 1),
        width=args.size,
        height=args.size,
    )
    tokenizer = next(iter(checkpoint.tokenizers.values()))
    folder = Path(args.scorer).expanduser() if args.scorer else None
    scorer = pick_scorer(folder, embedded=bool(entry and entry.embedded), tokenizer=tokenizer)
    pictures = picture_count(pipe, pairs, settings)
    blocks = attention_blocks(pipe.model.unet)
    teller.say(
        f"{len(blocks)} blocks and {len(levels(blocks))} levels, {len(pairs)} pairs of prompts, {args.seeds} seeds; "
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
    return 0


def _answer(found: Probe) -> dict[str, Any]:
    """What goes into studio.json."""
    return {"block_map": {part: list(blocks) for part, blocks in found.block_map.items()}}


def _table(found: Probe) -> list[str]:
    """The effects in words, the largest first."""
    lines = [f"{'injected into':<28}content  style"]
    for effect in sorted(found.effects, key=lambda e: -max(e.content or 0, e.style or 0)):
        numbers = ("   -" if value is None else f"{value:5.2f}" for value in (effect.content, effect.style))
        lines.append(f"{effect.block:<28}" + "    ".join(numbers))
    if not found.block_map:
        lines.append(
            "no block moves both kinds of pictures clearly enough to propose a map; look at the sheet"
        )
    elif not found.published:
        lines.append("this family has no published map; the procedure is the paper's, the answer is ours")
    return lines
