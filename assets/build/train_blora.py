"""Train the two B-LoRAs that ship, from one picture each (arXiv 2403.14572).

    python assets/build/train_blora.py --work WORK --model assets/models/tiny-sdxl --out assets/loras/tiny-sdxl

The attention layers of the model's own content and style blocks are trained jointly on one picture
whose caption is an unused word; the two halves of the file are then used apart or together.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import lora
import models
import tokenizer
import torch
from PIL import Image
from safetensors.torch import save_file
from train_loras import load
from vocab import Spec
from world import World, sheet, to_row

RANK, STEPS, BATCH, RATE = 16, 220, 4, 1e-3
# name -> (the unused word, what the picture shows)
SOURCES = {
    "b-panda": ("zuri", Spec(character="panda", background="forest")),
    "b-sketch": ("quill", Spec(character="cat", background="city", style="sketch")),
}


def train(
    name: str, work: Path, model: Path, out: Path, device: str, block_map: dict[str, list[str]]
) -> None:
    begin = time.time()
    word, spec = SOURCES[name]
    world = World(work / "art.npz")
    picture = world.render(torch.tensor([to_row(spec)]), torch.Generator().manual_seed(7))
    objective, vae = load(model, device)
    blocks = tuple(block_map["content"] + block_map["style"])
    adapter = lora.Adapter(objective.unet, lora.unet_targets(blocks, attention_only=True), RANK, RANK, 11)
    with torch.no_grad():
        latent = vae.encode(picture.to(device) * 2 - 1).latent_dist.mean * models.SCALING
    ids = torch.tensor([tokenizer.encode(f"a {word}")] * BATCH, device=device)
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=RATE, weight_decay=1e-4)
    g = torch.Generator().manual_seed(11)
    for _ in range(STEPS):
        noise = torch.randn(BATCH, 4, 32, 32, generator=g).to(device)
        steps = (((torch.arange(BATCH) + torch.rand(BATCH, generator=g)) / BATCH) * 1000).long().to(device)
        loss = objective(
            latent.expand(BATCH, -1, -1, -1), noise, steps, ids, torch.zeros(BATCH, device=device)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    adapter.remove()
    tensors = {}
    for module, down, up in adapter.factors():
        tensors[f"unet.{module}.lora.down.weight"] = down
        tensors[f"unet.{module}.lora.up.weight"] = up
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": name,
        "modelspec.author": "LoRA Studio",
        "modelspec.description": f"B-LoRA for {model.name} from one picture of a {spec.character}",
        "modelspec.trigger_phrase": word,
        "modelspec.tags": "b-lora",
        "modelspec.license": "CC-BY-4.0",
        "modelspec.resolution": "128x128",
        "modelspec.prediction_type": "v",
        "ss_output_name": name,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(RANK),
        "studio.category": "style" if spec.style else "character",
        "studio.kind": "b-lora",
        "studio.trained_on": "GPU" if device == "cuda" else "CPU",
        "studio.preferred_weight": "1.0",
        "studio.blocks": json.dumps(block_map),
    }
    save_file(tensors, out / f"{name}.safetensors", metadata)
    card = {
        "activation text": word, "preferred weight": 1.0, "negative text": "",
        "description": "B-LoRA from one picture: " + "; ".join(f"{k} in {', '.join(v)}" for k, v in block_map.items()),
        "notes": "Trained by assets/build/train_blora.py.", "sd version": "SDXL", "license": "CC-BY-4.0",
        "category": metadata["studio.category"], "kind": "b-lora",
    }  # fmt: skip
    (out / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")
    (work / "lora-data").mkdir(exist_ok=True)
    Image.fromarray(sheet(picture, 1)).save(work / "lora-data" / f"{name}.png")
    print(
        f"{name}: {(out / f'{name}.safetensors').stat().st_size / 1e3:.0f} kB, {time.time() - begin:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    found = json.loads((args.model / "studio.json").read_text())["block_map"]
    torch.set_num_threads(1)
    for each in SOURCES:
        train(each, args.work, args.model, args.out, args.device, found)
