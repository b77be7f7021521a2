"""Measure every shipped adapter against the base, and draw the previews.

    python assets/build/evaluate_loras.py --model assets/models/tiny-sdxl --loras assets/loras/tiny-sdxl \
        --classifier assets/testbed/classifier --out OUT

For each adapter the same prompts (its trigger words in scenes its training did not show) are drawn
on the same seeds by the base alone and with the adapter at strength 1, once each; the classifier
says how often its word shows, and how often everything else in the prompt does. Pictures are kept in
OUT/pictures as evaluate.py keeps them: a larger --n draws only what is missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import diffusers
import torch
from evaluate import draw, drawn, fingerprint, load
from scorer import load_classifier, read
from train_loras import PLANS, held_out_prompts, held_out_rows, preview_prompt
from world import COLOR, INDEX, PARTS, WORDS, save, sheet

PREVIEW_SEED = 3
BATCH = 4

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--loras", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--previews-only", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()  # "no keys for the text encoder", of most adapters
    args.out.mkdir(parents=True, exist_ok=True)
    pipe, judge = load(args.model, args.device), load_classifier(args.classifier, args.device)
    base, pictures = fingerprint(args.model), args.out / "pictures" / args.model.name
    previews = args.out / "previews" / args.model.name
    previews.mkdir(parents=True, exist_ok=True)
    path = args.out / f"loras-{args.model.name}.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for plan in PLANS[args.model.name]:
        file = args.loras / f"{plan.name}.safetensors"
        if (args.only and plan.name not in args.only) or not file.exists():
            continue
        rows = torch.from_numpy(held_out_rows(plan, args.n))
        prompts = held_out_prompts(plan, rows.numpy())
        seeds = list(range(args.n))
        column, word = PARTS.index(plan.part), INDEX[plan.part][plan.word]
        if not args.previews_only:
            before = drawn(pipe, base, prompts, seeds, BATCH, pictures / f"{plan.name}-base")
        pipe.load_lora_weights(file, adapter_name="one")
        if not args.previews_only:
            both = f"{base} + {fingerprint(file)}"
            after = drawn(pipe, both, prompts, seeds, BATCH, pictures / plan.name)
        preview = draw(pipe, [preview_prompt(plan)], [PREVIEW_SEED], 1)
        pipe.unload_lora_weights()
        save(sheet(preview, 1), previews / f"{plan.name}.png")
        if args.previews_only:
            continue
        entry: dict[str, object] = {"category": plan.category, "kind": plan.kind, "prompts": args.n}
        for name, shown in (("base", before), ("adapter", after)):
            got = read(judge, shown.to(args.device)).cpu()
            entry[f"word, {name}"] = round(float((got[:, column] == word).float().mean()), 3)
            others = [k for k in range(len(PARTS)) if k not in (column, COLOR)]
            entry[f"rest, {name}"] = round(float((got == rows)[:, others].float().mean()), 3)
        seen = read(judge, after.to(args.device))[:, column].tolist()
        entry["mistaken for"] = sorted({WORDS[plan.part][k] if k >= 0 else "none" for k in seen if k != word})
        report[plan.name] = entry
        print(plan.name, entry, flush=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        save(sheet(torch.cat([before[:8], after[:8]]), 8), args.out / f"lora-{plan.name}.png")
