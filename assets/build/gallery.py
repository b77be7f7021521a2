"""Draw the README's pictures: prompts by seeds, and single adapters beside mixes of them.

    python assets/build/gallery.py --assets assets

Settings are the model's defaults; seeds are 0, 1, 2, ... in order, none chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from evaluate import SHOWN
from PIL import Image
from world import sheet

from composers import Composite, Merge, Switch
from pipelines import Request, StudioPipeline

PROMPTS, SEEDS = SHOWN[:6] + SHOWN[13:15], 4
# (adapters, prompt)
MIXES: list[tuple[tuple[str, ...], str]] = [
    (("panda", "kimono"), "a panda wearing a kimono in the garden"),
    (("raccoon", "spacesuit", "space"), "a raccoon wearing a spacesuit in space"),
    (("nilo-fox", "lantern"), "a nilo fox holding a lantern at night"),
    (("panda", "viking-helmet", "castle"), "a panda wearing a viking helmet at the castle"),
]


def tensors(images: list[Image.Image]) -> torch.Tensor:
    """PIL pictures -> [n, 3, h, w] in 0..1."""
    return torch.stack([torch.from_numpy(np.asarray(i)).permute(2, 0, 1) / 255 for i in images])


def draw(assets: Path) -> None:
    torch.set_num_threads(1)
    out = assets / "gallery"
    out.mkdir(exist_ok=True)
    pipe = StudioPipeline.from_pretrained(assets / "models/tiny-sdxl")
    grid = pipe([Request(p, seed=s) for p in PROMPTS for s in range(SEEDS)]).images
    Image.fromarray(sheet(tensors(grid), 2 * SEEDS)).save(out / "prompts.png", optimize=True)
    for name in sorted({n for names, _ in MIXES for n in names}):
        pipe.load_lora_weights(assets / f"loras/tiny-sdxl/{name}.safetensors", adapter_name=name)
    requests = []
    for names, prompt in MIXES:
        requests.append(Request(prompt, seed=0))
        requests += [
            Request(prompt, adapters=dict.fromkeys(names, 1.0), composer=composer, seed=0)
            for composer in (Merge(), Switch(interval=2), Composite())
        ]
    mixes = pipe(requests).images
    Image.fromarray(sheet(tensors(mixes), 8)).save(out / "mixes.png", optimize=True)
    previews = [Image.open(p).convert("RGB") for p in sorted((assets / "loras/tiny-sdxl").glob("*.png"))]
    Image.fromarray(sheet(tensors(previews), 7)).save(out / "adapters.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    draw(parser.parse_args().assets)
