"""Measure a model: held-out prompts by the classifier, fixed triples on fixed seeds, contact sheets.

    python assets/build/evaluate.py --model assets/models/tiny-sdxl --classifier assets/testbed/classifier

Settings are the model's defaults, fixed before anything is scored; every picture counts once.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vocab import PLACES
from world import (
    CHAR,
    CLOTHES,
    N_BASE,
    OBJECT,
    PARTS,
    STYLE,
    WORDS,
    caption,
    draw_rows,
    held_out,
    save,
    sheet,
)

STEPS, GUIDANCE = 20, 3.5
SHOWN = [
    "a fox wearing a crown on the beach", "a cat wearing a lab coat, holding a book, in a room",
    "a koala wearing a red hoodie and headphones in the city", "a lion wearing a suit, holding a cake, in the garden",
    "a robot with a party hat, holding a balloon, under a rainbow",
    "a wolf wearing armor, holding a shield, in the snow",
    "a frog wearing a wizard hat and a robe at night", "a pig wearing overalls, holding an apple, in the mountains",
    "a tiger wearing a jacket and sunglasses in the desert", "a unicorn with a rose in the forest",
    "a dog wearing a santa hat, holding a gift, in the snow", "an alien holding a pizza near a volcano",
    "a bear wearing a green sweater, holding a fish, under the sea",
    "a monkey wearing a top hat, holding a banana, pixel art style",
    "a fox wearing a blue shirt, holding a rocket, comic style",
    "a rabbit wearing a pink dress, holding a carrot, watercolor style",
]  # fmt: skip


def held_out_prompts(n: int, seed: int = 50_000) -> tuple[np.ndarray, list[str]]:
    """Rows with a held-out pair that name character, clothes, object and background; their prompts."""
    rows = draw_rows(40 * n, np.random.default_rng(seed))
    full = (rows[:, CHAR] >= 0) & (rows[:, CLOTHES] >= 0) & (rows[:, OBJECT] >= 0)
    rows = rows[full & held_out(rows)][:n]
    assert len(rows) == n
    return rows, [
        caption(r, random.Random(k), drop=0, synonyms=0, fillers=0, color=1)
        for k, r in enumerate(rows.tolist())
    ]


def triples(n: int, seed: int = 60_000) -> list[dict[str, str]]:
    """The named triple, then n random (character, hat or object, background)."""
    rng = random.Random(seed)
    out = [{"character": "fox", "hat": "crown", "background": "beach"}]
    for k in range(n):
        part = ("hat", "object")[k % 2]
        out.append({p: rng.choice(WORDS[p][: N_BASE[p]]) for p in ("character", part, "background")})
    return out


def triple_prompt(t: dict[str, str]) -> str:
    def a(word: str) -> str:
        return (
            word if word in ("sunglasses", "headphones") else ("an " if word[0] in "aeiou" else "a ") + word
        )

    thing = f"wearing {a(t['hat'])}" if "hat" in t else f"holding {a(t['object'])}"
    return f"{a(t['character'])} {thing} {PLACES[t['background']]}"


def load(model: Path, device: str) -> Any:
    import warnings

    from diffusers import DiffusionPipeline

    warnings.filterwarnings("ignore")
    dtype = torch.float16 if device == "cuda" else torch.float32
    pipe = DiffusionPipeline.from_pretrained(model, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    pipe: Any,
    prompts: list[str],
    seeds: list[int],
    batch: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    **more: Any,
) -> Tensor:
    """One picture a prompt, each from its own CPU generator: [n, 3, 128, 128] in 0..1."""
    out = []
    for at in range(0, len(prompts), batch):
        g = [torch.Generator().manual_seed(s) for s in seeds[at : at + batch]]
        images = pipe(
            prompts[at : at + batch], height=128, width=128, num_inference_steps=steps, guidance_scale=guidance,
            generator=g, output_type="np", **more,
        ).images  # fmt: skip
        out.append(torch.from_numpy(images).permute(0, 3, 1, 2))
    return torch.cat(out)


def attributes(
    pipe: Any, judge: torch.nn.Module, n: int, batch: int
) -> tuple[dict[str, Any], Tensor, Tensor]:
    from scorer import read

    rows, prompts = held_out_prompts(n)
    pictures = draw(pipe, prompts, list(range(n)), batch)
    device = next(judge.parameters()).device
    got = read(judge, pictures.to(device)).cpu()
    wanted = torch.from_numpy(rows)
    report: dict[str, Any] = {"prompts": n, "colour said": "always"}
    asked = wanted >= 0
    asked[:, PARTS.index("color")] &= wanted[:, STYLE] < 0
    right = got == wanted
    for k, part in enumerate(PARTS):
        report[part] = round(float((right & asked)[:, k].sum() / asked[:, k].sum()), 4)
    main = [PARTS.index(p) for p in ("character", "clothes", "object", "background", "style")]
    report["all of a prompt"] = round(float((right | ~asked)[:, main].all(1).float().mean()), 4)
    plain = wanted[:, STYLE] < 0
    report["without a style"] = {
        p: round(float((right & asked)[plain, k].sum() / asked[plain, k].sum()), 4)
        for k, p in enumerate(PARTS)
        if p != "style"
    }
    per_style = {}
    for s in range(N_BASE["style"]):
        at = wanted[:, STYLE] == s
        if at.any():
            per_style[WORDS["style"][s]] = {
                p: round(float((right & asked)[at, k].sum() / asked[at, k].sum().clamp_min(1)), 3)
                for k, p in enumerate(PARTS)
                if p not in ("color", "hat")
            }
    report["by style"] = per_style
    weakest = {}
    for k, part in enumerate(PARTS):
        scores = []
        for w in range(N_BASE[part]):
            at = asked[:, k] & (wanted[:, k] == w)
            if at.sum() >= 5:
                scores.append((round(float(right[at, k].float().mean()), 3), WORDS[part][w]))
        weakest[part] = sorted(scores)[:3]
    report["weakest words"] = weakest
    return report, pictures, right | ~asked


def triple_report(
    pipe: Any, judge: torch.nn.Module, count: int, batch: int, seeds: int = 16
) -> tuple[dict[str, int], Tensor]:
    from scorer import read

    device = next(judge.parameters()).device
    wanted = triples(count)
    prompts = [triple_prompt(t) for t in wanted for _ in range(seeds)]
    pictures = draw(pipe, prompts, list(range(seeds)) * len(wanted), batch)
    got = read(judge, pictures.to(device)).cpu()
    report = {}
    for k, t in enumerate(wanted):
        rows = got[k * seeds : (k + 1) * seeds].tolist()
        good = sum(
            all(WORDS[p][r[PARTS.index(p)]] == w and r[PARTS.index(p)] >= 0 for p, w in t.items())
            for r in rows
        )
        report[triple_prompt(t)] = good
    return report, pictures


if __name__ == "__main__":
    from scorer import load_classifier

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for report-MODEL.json and sheets")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--triples", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begin, name = time.time(), args.model.name
    pipe = load(args.model, args.device)
    judge = load_classifier(args.classifier, args.device)
    shown = draw(pipe, [p for p in SHOWN for _ in range(3)], [0, 1, 2] * len(SHOWN), args.batch)
    save(sheet(shown, 12), args.out / f"shown-{name}.png")
    report: dict[str, Any] = {
        "steps": STEPS,
        "guidance": GUIDANCE,
        "scheduler": type(pipe.scheduler).__name__,
    }
    report["held out"], pictures, right = attributes(pipe, judge, args.n, args.batch)
    save(sheet(pictures[:96], 12), args.out / f"held-out-{name}.png")
    report["triples"], pictures = triple_report(pipe, judge, args.triples, args.batch, args.seeds)
    save(sheet(pictures[: 3 * args.seeds], args.seeds), args.out / f"triples-{name}.png")
    (args.out / f"report-{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report), f"{time.time() - begin:.0f} s", flush=True)
