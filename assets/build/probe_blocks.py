"""Find which blocks carry content and which style, and keep the figures for the card and studio.json.

    python assets/build/probe_blocks.py --model assets/models/tiny-sd --out WORK/figures

What `lora-studio probe-blocks` does (B-LoRA's own analysis, arXiv 2403.14572, section 4): one block or level
at a time reads another prompt in its cross-attention. The effects go to OUT/blocks-MODEL.json, the labelled
pictures to OUT/blocks-MODEL.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from pipelines import StudioPipeline
from pipelines.blora.probe import ProbeSettings, pairs_for, picture_count, probe
from pipelines.blora.scoring import pick_scorer
from pipelines.blora.sheet import probe_sheet


def measure(model: Path, out: Path, seeds: int, steps: int) -> None:
    pipe = StudioPipeline.from_pretrained(model)
    checkpoint = pipe.model.checkpoint
    assert checkpoint.card
    pairs = pairs_for(checkpoint.card.vocabulary)
    settings = ProbeSettings(seeds=tuple(range(1, seeds + 1)), steps=steps)
    scorer = pick_scorer(None, embedded=True, tokenizer=next(iter(checkpoint.tokenizers.values())))
    total, done, began = picture_count(pipe, pairs, settings), 0, time.time()

    def tell(pictures: int) -> None:
        nonlocal done
        done += pictures
        print(f"{done} of {total} pictures, {time.time() - began:.0f} s", flush=True)

    found = probe(pipe, pairs, scorer, settings, progress=tell)
    effects = {e.block: {"content": e.content, "style": e.style} for e in found.effects}
    content = {
        "pairs": len(pairs),
        "seeds": seeds,
        "steps": steps,
        "scored by": found.scorer,
        "effects": {
            block: {k: None if v is None else round(v, 3) for k, v in moved.items()}
            for block, moved in effects.items()
        },
        "block_map": {part: list(blocks) for part, blocks in found.block_map.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"blocks-{model.name}.json").write_text(json.dumps(content, indent=2) + "\n")
    probe_sheet(found).save(out / f"blocks-{model.name}.png", optimize=True)
    print(json.dumps(content, indent=1), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(args.model, args.out, args.seeds, args.steps)
