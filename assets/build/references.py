"""Draw true renders of the compositions that the shipped adapters make: what their mixes should look like.

    python assets/build/references.py --work WORK --assets assets

One sheet a kind of adapter: a line a composition, a column a render. Where the prompt names no background, the render
has one of those that the base knows; what else it does not name is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from world import INDEX, N_BASE, PARTS, World, sheet

from pipelines.home import Home
from studio.bench.quality.elements import NARROW, NEW, Composition
from studio.bench.quality.eyes import PARTS as PART_OF
from studio.bench.quality.sets import library_suite

RENDERS = 2
SEED = 70_000
SIZES = (2, 3, 4, 5)


def rows_of(composition: Composition, rng: np.random.Generator) -> np.ndarray:
    """[renders, 7] rows that show the composition and nothing else but a background."""
    rows = np.full((RENDERS, len(PARTS)), -1)
    rows[:, PARTS.index("background")] = rng.integers(0, N_BASE["background"], RENDERS)
    for element in composition.elements:
        part = PART_OF.get(element.category, element.category)
        rows[:, PARTS.index(part)] = INDEX[part][element.words]
    return rows


def write(work: Path, assets: Path) -> None:
    world, rng = World(work / "art.npz"), np.random.default_rng(SEED)
    suite = library_suite(Home(assets / "nowhere"), "tiny-sdxl")
    folder = assets / "testbed" / "references"
    folder.mkdir(exist_ok=True)
    index = {}
    for kind in (NEW, NARROW):
        chosen = [one for one in suite.compositions(SIZES) if one.kind == kind]
        rows = np.concatenate([rows_of(composition, rng) for composition in chosen])
        pictures = world.render(rows, torch.Generator().manual_seed(SEED), chunk=32)
        file = kind.replace(" ", "-") + ".webp"
        Image.fromarray(sheet(pictures, RENDERS, gap=0)).save(folder / file, quality=40, method=6)
        index[file] = [[element.adapter for element in one.elements] for one in chosen]
        print(file, len(chosen), (folder / file).stat().st_size)
    content = {"side": 128, "renders": RENDERS, "sheets": index}
    (folder / "references.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    write(args.work, args.assets)
