"""Make the README's pictures: prompts by seeds, single adapters, and mixes of them.

    python assets/build/gallery.py --assets assets --report WORK/figures
    python assets/build/gallery.py ... --only prompts adapters     some of them

`prompts.png` is evaluate.py's sheet (WORK/figures/shown-tiny-sdxl.png: 16 prompts, seeds 0, 1, 2), and
`tiny-sd.png` holds tiny-sd's pictures of the same prompts, seed 0; `adapters.png` puts the adapters' previews
side by side; `mixes.png` shows, a row a mix, the base alone and the mix under Merge, Switch and Composite on
seed 0. The settings are the models' defaults and no seed is chosen. Pictures are kept in at most 256 colours.
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

# (adapters, prompt)
MIXES: list[tuple[tuple[str, ...], str]] = [
    (("panda", "kimono"), "a panda wearing a kimono in the garden"),
    (("raccoon", "spacesuit", "space"), "a raccoon wearing a spacesuit in space"),
    (("nilo-fox", "castle"), "a nilo fox wearing a suit at the castle"),
    (("momo-cat", "vela-dress"), "a momo cat wearing a vela dress on the beach"),
]


def tensors(images: list[Image.Image]) -> torch.Tensor:
    """PIL pictures -> [n, 3, h, w] in 0..1."""
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) / 255 for i in images])


def save(picture: np.ndarray, path: Path, colours: int = 256) -> None:
    """[h, w, 3] uint8 as a PNG with a palette: two fifths of its size in full colour, and hardly told from it."""
    few = Image.fromarray(picture).quantize(colours, method=Image.Quantize.MEDIANCUT)
    few.save(path, optimize=True)


def prompts(assets: Path, report: Path) -> np.ndarray:
    return np.array(Image.open(report / "shown-tiny-sdxl.png").convert("RGB"))


def adapters(assets: Path, report: Path) -> np.ndarray:
    previews = [Image.open(p).convert("RGB") for p in sorted((assets / "loras/tiny-sdxl").glob("*.png"))]
    return sheet(tensors(previews), 7)


def mixes(assets: Path, report: Path) -> np.ndarray:
    pipe = StudioPipeline.from_pretrained(assets / "models/tiny-sdxl")
    for name in sorted({n for names, _ in MIXES for n in names}):
        pipe.load_lora_weights(assets / f"loras/tiny-sdxl/{name}.safetensors", adapter_name=name)
    requests = []
    for names, prompt in MIXES:
        requests.append(Request(prompt, seed=0))
        requests += [
            Request(prompt, adapters=dict.fromkeys(names, 1.0), composer=composer, seed=0)
            for composer in (Merge(), Switch(interval=2), Composite())
        ]
    return sheet(tensors(pipe(requests).images), 4)


def tiny_sd(assets: Path, report: Path) -> np.ndarray:
    pipe = StudioPipeline.from_pretrained(assets / "models/tiny-sd")
    return sheet(tensors(pipe([Request(prompt, seed=0) for prompt in SHOWN]).images), 8)


PICTURES = {"prompts": prompts, "adapters": adapters, "mixes": mixes, "tiny-sd": tiny_sd}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(PICTURES), default=list(PICTURES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.assets / "gallery").mkdir(exist_ok=True)
    for name in args.only:
        save(PICTURES[name](args.assets, args.report), args.assets / "gallery" / f"{name}.png")
