"""Measure a model: held-out prompts by the classifier, fixed triples on fixed seeds, contact sheets.

    python assets/build/evaluate.py --model assets/models/tiny-sdxl --classifier assets/testbed/classifier

Settings are the model's defaults, fixed before anything is scored; every picture counts once. Pictures are
kept in OUT/pictures, each with what it was drawn from, so that a run that was interrupted goes on where it
stopped and a later classifier reads the same pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
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
    rows = draw_rows(40 * max(n, 1024), np.random.default_rng(seed))
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


def fingerprint(path: Path) -> str:
    """Of the weights in a safetensors file or in a model's folder."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def drawn(
    pipe: Any,
    origin: str,
    prompts: list[str],
    seeds: list[int],
    batch: int,
    folder: Path,
    places: list[int] | None = None,
) -> Tensor:
    """`draw` that keeps its pictures (8 bits a colour) in `folder` and draws only those that are not there yet.

    origin: what drew them (`fingerprint`); a kept picture of another origin, prompt or seed is drawn again.
    places: the numbers in the files' names (default: counted from 0).
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{k:04d}.png" for k in places or range(len(prompts))]
    notes = [f"{origin} {seed} {prompt}" for seed, prompt in zip(seeds, prompts, strict=True)]
    missing = [
        k for k, f in enumerate(files) if not f.exists() or Image.open(f).info.get("drawn from") != notes[k]
    ]
    for at in range(0, len(missing), batch):
        some = missing[at : at + batch]
        pictures = draw(pipe, [prompts[k] for k in some], [seeds[k] for k in some], batch)
        for k, picture in zip(some, (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy(), strict=True):
            note = PngInfo()
            note.add_text("drawn from", notes[k])
            Image.fromarray(picture).save(files[k], pnginfo=note)
    return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) / 255 for f in files])


def asked_for(rows: np.ndarray) -> Tensor:
    """[n, 7]: True where a prompt asks for the part and the picture can show it (no colour under a style)."""
    asked = torch.from_numpy(rows) >= 0
    asked[:, PARTS.index("color")] &= torch.from_numpy(rows[:, STYLE]) < 0
    return asked


def attributes(pictures: Tensor, rows: np.ndarray, judge: torch.nn.Module) -> dict[str, Any]:
    """What the classifier finds in [n, 3, 128, 128] pictures of [n, 7] rows; shares of the prompts that ask."""
    from scorer import read

    n = len(rows)
    device = next(judge.parameters()).device
    got = torch.cat([read(judge, x.to(device)).cpu() for x in pictures.split(64)])
    wanted = torch.from_numpy(rows)
    report: dict[str, Any] = {"prompts": n}
    asked = asked_for(rows)
    right = got == wanted
    for k, part in enumerate(PARTS):
        report[part] = round(float((right & asked)[:, k].sum() / asked[:, k].sum()), 4)
    main = [PARTS.index(p) for p in ("character", "clothes", "object", "background", "style")]
    report["asked"] = {part: int(asked[:, k].sum()) for k, part in enumerate(PARTS)}
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
    return report


def again(
    report: dict[str, Any],
    part: str,
    n: int,
    pipe: Any,
    origin: str,
    judge: torch.nn.Module,
    batch: int,
    folder: Path,
) -> None:
    """Measure one part of an earlier report anew, on those of the first n prompts that ask for it."""
    rows, prompts = held_out_prompts(n)
    asked = asked_for(rows)
    places = asked[:, PARTS.index(part)].nonzero().flatten().tolist()
    pictures = drawn(pipe, origin, [prompts[k] for k in places], places, batch, folder, places)
    found = attributes(pictures, rows[places], judge)
    held = report["held out"]
    held[part] = found[part]
    if part in held["without a style"]:
        held["without a style"][part] = found["without a style"][part]
    held["asked"][part] = len(places)
    if part == "color":
        held.pop("colour left out", None)  # an earlier form of the prompts did not always say it
    held["weakest words"][part] = found["weakest words"][part]
    held["drawn anew"] = {**held.get("drawn anew", {}), part: len(places)}


def triple_report(
    pipe: Any, origin: str, judge: torch.nn.Module, count: int, batch: int, folder: Path, seeds: int = 16
) -> tuple[dict[str, int], Tensor]:
    from scorer import read

    device = next(judge.parameters()).device
    wanted = triples(count)
    prompts = [triple_prompt(t) for t in wanted for _ in range(seeds)]
    pictures = drawn(pipe, origin, prompts, list(range(seeds)) * len(wanted), batch, folder)
    got = torch.cat([read(judge, x.to(device)).cpu() for x in pictures.split(64)])
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
    parser.add_argument(
        "--again",
        choices=PARTS,
        help="measure one part of the report in OUT anew, on those of the first n prompts that ask for it",
    )
    parser.add_argument(
        "--attributes-only", action="store_true", help="leave the triples as the report in OUT has them"
    )
    parser.add_argument("--triples", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.device == "cpu":
        torch.set_num_threads(1)
    begin, name, origin = time.time(), args.model.name, fingerprint(args.model)
    pipe = load(args.model, args.device)
    judge = load_classifier(args.classifier, args.device)
    kept = args.out / "pictures" / name
    file = args.out / f"report-{name}.json"
    if args.again:
        report = json.loads(file.read_text())
        again(report, args.again, args.n, pipe, origin, judge, args.batch, kept / "held-out")
        file.write_text(json.dumps(report, indent=2) + "\n")
        print(args.again, report["held out"][args.again], report["held out"]["drawn anew"], flush=True)
        sys.exit()
    report = {
        "steps": STEPS,
        "guidance": GUIDANCE,
        "scheduler": type(pipe.scheduler).__name__,
        "drawn on": "fp16 on a GPU" if args.device == "cuda" else "fp32 on a CPU",
    }
    rows, prompts = held_out_prompts(args.n)
    pictures = drawn(pipe, origin, prompts, list(range(args.n)), args.batch, kept / "held-out")
    report["held out"] = attributes(pictures, rows, judge)
    print(json.dumps(report["held out"]), f"{time.time() - begin:.0f} s", flush=True)
    save(sheet(pictures[:96], 12), args.out / f"held-out-{name}.png")
    if args.attributes_only:
        earlier = json.loads(file.read_text())
        report |= {
            key: earlier[key]
            for key in ("triples", "triples read by", "triples read again", "earlier")
            if key in earlier
        }
        file.write_text(json.dumps(report, indent=2) + "\n")
        sys.exit()
    report["triples"], pictures = triple_report(
        pipe, origin, judge, args.triples, args.batch, kept / "triples", args.seeds
    )
    save(sheet(pictures[: 3 * args.seeds], args.seeds), args.out / f"triples-{name}.png")
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["triples"]), f"{time.time() - begin:.0f} s", flush=True)
    shown = draw(pipe, [p for p in SHOWN for _ in range(3)], [0, 1, 2] * len(SHOWN), args.batch)
    save(sheet(shown, 12), args.out / f"shown-{name}.png")
