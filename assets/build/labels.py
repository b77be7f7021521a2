"""Does the classifier read generated pictures as a person does? Sheets to label by eye, and the comparison.

    python assets/build/labels.py sheets  --assets assets --model tiny-sdxl --out WORK/labels
    python assets/build/labels.py compare --assets assets --out WORK/figures

`sheets` draws the first prompts of the 1,024 held-out ones, each on the seed of its place, and lays them
out without their prompts. What was seen in them is written by hand into assets/testbed/labels.json:
model -> place (the seed) -> the prompt, and one word a part, "none" where there is nothing, "?" where the eye
cannot tell. `compare` draws the same pictures and lets the classifier read them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from evaluate import draw, held_out_prompts, load
from PIL import Image, ImageDraw
from world import PARTS, WORDS

PROMPTS = 1024
BATCH = 8
LABELLED = 54  # pictures a model
SEEN = tuple(p for p in PARTS if p != "color")
COLUMNS, ROWS, CELL = 4, 3, 288


def sheets(model: Path, out: Path, device: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    places = list(range(LABELLED))
    prompts = held_out_prompts(PROMPTS)[1][:LABELLED]
    drawn = (
        (draw(load(model, device), prompts, places, BATCH) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    )
    each = COLUMNS * ROWS
    for first in range(0, LABELLED, each):
        page = Image.new("RGB", (COLUMNS * CELL, ROWS * (CELL + 14)), "white")
        pen = ImageDraw.Draw(page)
        for k, (place, picture) in enumerate(zip(places[first:], drawn[first : first + each], strict=False)):
            x, y = k % COLUMNS * CELL, k // COLUMNS * (CELL + 14)
            page.paste(
                Image.fromarray(picture).resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS), (x, y + 12)
            )
            pen.text((x + 2, y), str(place), fill="black")
        page.save(out / f"{model.name}-{first // each}.png")


def agreement(
    labels: dict[str, dict[str, dict[str, str]]], read: dict[str, dict[str, dict[str, str]]]
) -> dict[str, Any]:
    """A part's share of equal words, over the pictures whose word the eye could tell."""
    report: dict[str, Any] = {"pictures": sum(len(v) for v in labels.values())}
    for part in SEEN:
        pairs = [
            (seen[part], read[model][place][part])
            for model, of_model in labels.items()
            for place, seen in of_model.items()
        ]
        told = [(a, b) for a, b in pairs if a != "?"]
        report[part] = {
            "told by eye": len(told),
            "agree": sum(a == b for a, b in told),
            "differ": sorted(f"{a} read as {b}" for a, b in told if a != b),
        }
    return report


def compare(assets: Path, device: str) -> dict[str, Any]:
    from scorer import load_classifier, read

    labels = json.loads((assets / "testbed/labels.json").read_text())
    judge = load_classifier(assets / "testbed/classifier", device)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for model, of_model in labels.items():
        pipe = load(assets / "models" / model, device)
        drawn = draw(pipe, [seen["prompt"] for seen in of_model.values()], [int(k) for k in of_model], BATCH)
        rows = read(judge, drawn.to(device)).tolist()
        found[model] = {
            place: {p: WORDS[p][k] if k >= 0 else "none" for p, k in zip(PARTS, row, strict=True)}
            for place, row in zip(of_model, rows, strict=True)
        }
    return agreement(labels, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["sheets", "compare"])
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--model", default="tiny-sdxl")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    if args.what == "sheets":
        sheets(args.assets / "models" / args.model, args.out, args.device)
    else:
        report = compare(args.assets, args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "labels.json").write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps(report, indent=1))
