"""Train the two B-LoRAs that ship, from one picture each, with the library's own trainer.

    python assets/build/train_blora.py --work WORK --out assets/loras/tiny-sdxl

The attention layers of the model's content and style blocks (its card's block map) learn one picture
(arXiv 2403.14572); the two halves of the file are then used apart or together. A CPU is enough: about
70 s each on one thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from vocab import Spec
from world import World, sheet, to_row

from pipelines import StudioPipeline
from pipelines.blora.blora_training import train_blora

# The pictures are drawn in one batch; two of them are trained on.
PICTURES = {
    "panda": Spec(character="panda", background="garden"),
    "raccoon": Spec(character="raccoon", background="garden"),
    "sketch": Spec(character="cat", background="city", style="sketch"),
    "thermal": Spec(character="dog", background="forest", style="thermal"),
    "duotone": Spec(character="cat", background="city", style="kelda duotone"),
    "watercolor": Spec(character="lion", background="mountains", style="watercolor"),
}
# name -> (the picture, the prompt that names it, category)
PLANS = {"b-panda": ("panda", "a panda", "character"), "b-sketch": ("sketch", "sketch style", "style")}
BLOCKS = "content in up_blocks.0, style in up_blocks.1"


def pictures(work: Path) -> dict[str, Image.Image]:
    rows = np.array([to_row(s) for s in PICTURES.values()])
    drawn = World(work / "art.npz").render(rows, torch.Generator().manual_seed(5))
    return {name: Image.fromarray(sheet(x[None], 1)) for name, x in zip(PICTURES, drawn, strict=True)}


def describe(file: Path, name: str, prompt: str, category: str) -> None:
    """Add what the shipped adapters' metadata and sidecars say."""
    with safe_open(file, "pt") as stored:
        metadata = dict(stored.metadata() or {})
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    metadata |= {
        "modelspec.title": name,
        "modelspec.author": "LoRA Studio",
        "modelspec.description": f"B-LoRA for tiny-sdxl from one picture; {BLOCKS}",
        "modelspec.trigger_phrase": prompt,
        "modelspec.license": "CC-BY-4.0",
        "ss_output_name": name,
        "ss_network_dim": "16",
        "ss_network_alpha": "16",
        "ss_base_model_version": "sdxl_base_v1-0",
        "studio.category": category,
        "studio.kind": "b-lora",
        "studio.trained_on": "CPU",
        "studio.preferred_weight": "1.0",
    }
    save_file(tensors, file, metadata)
    card = {
        "activation text": prompt,
        "preferred weight": 1.0,
        "negative text": "",
        "description": f"B-LoRA from one picture; {BLOCKS}",
        "notes": "Trained by assets/build/train_blora.py.",
        "sd version": "SDXL",
        "license": "CC-BY-4.0",
        "category": category,
        "kind": "b-lora",
    }
    file.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = StudioPipeline.from_pretrained("tiny-sdxl")
    drawn = pictures(args.work)
    for name, (picture, prompt, category) in PLANS.items():
        file = args.out / f"{name}.safetensors"
        train_blora(pipe, drawn[picture], prompt, file, force=True)
        describe(file, name, prompt, category)
        print(name, file.stat().st_size)
