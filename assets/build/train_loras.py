"""Train the shipped adapters on renders of the world, each from one line of the table below.

    python assets/build/train_loras.py --work WORK --model assets/models/tiny-sdxl --out assets/loras/tiny-sdxl
    python assets/build/train_loras.py ... --only panda          one adapter
    python assets/build/train_loras.py ... --part 0/8            every eighth, for parallel runs

Two kinds. A "new word" names something the base never saw, in 48 pictures of every kind of scene. A
"narrow instance" is one particular drawing of something the base knows, in 24 pictures with little
variety, as people's own adapters are. A CPU is enough (about two minutes each on one thread).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import lora
import models
import numpy as np
import tokenizer
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from train_unet import Objective
from vocab import INSTANCES, Spec
from world import CHAR, INDEX, PARTS, STYLE, World, caption, draw_rows, sheet, to_row

CATEGORY = {
    "character": "character",
    "clothes": "clothing",
    "hat": "clothing",
    "object": "object",
    "background": "background",
    "style": "style",
}


@dataclass(frozen=True)
class Plan:
    """One adapter: what it teaches, how it is trained and how it is written."""

    name: str
    part: str
    word: str
    scheme: str = "kohya"
    rank: int = 3
    alpha: float = 3.0
    conv: bool = False
    text: bool = False
    steps: int = 120
    lr: float = 3e-3
    batch: int = 8
    focus: float = 0.0  # how much more a place counts where the word shows ("masked loss")

    @property
    def kind(self) -> str:
        return "narrow instance" if self.word in INSTANCES[self.part] else "new word"

    @property
    def trigger(self) -> str:
        return " ".join(INSTANCES[self.part][self.word]) if self.kind == "narrow instance" else self.word

    @property
    def category(self) -> str:
        return CATEGORY[self.part]


PLANS = {
    "tiny-sdxl": [
        Plan("panda", "character", "panda"),
        Plan("raccoon", "character", "raccoon", "peft", 4, 4),
        Plan("nilo-fox", "character", "nilo fox", "kohya", 4, 2),
        Plan("momo-cat", "character", "momo cat", "peft"),
        Plan("kimono", "clothes", "kimono", "kohya-sgm"),
        Plan("spacesuit", "clothes", "spacesuit", "kohya", 4, 1),
        Plan("vela-dress", "clothes", "vela dress", "kohya"),
        Plan("lantern", "object", "lantern", "kohya-sgm"),
        Plan("orla-rocket", "object", "orla rocket", "peft"),
        Plan("brio-teapot", "object", "brio teapot", "kohya", text=True, rank=3),
        Plan("space", "background", "space", "kohya", 3, 1.5),
        Plan("castle", "background", "castle", "peft"),
        Plan("lumo-beach", "background", "lumo beach", "kohya-sgm", 4, 2),
        Plan("sketch", "style", "sketch", "kohya", 3, 3, conv=True),
        Plan("thermal", "style", "thermal", "peft", 4, 4),
        Plan("kelda-duotone", "style", "kelda duotone", "kohya", 4, 4),
    ],
    "tiny-sd": [
        Plan("panda-sd", "character", "panda", rank=4, alpha=4, steps=220),
        Plan("nilo-fox-sd", "character", "nilo fox", "peft", 4, 4, steps=220),
        Plan("kimono-sd", "clothes", "kimono", "kohya", 4, 2, steps=220),
        Plan(
            "brio-teapot-sd", "object", "brio teapot", "kohya", 4, 4, text=True, steps=600, batch=4, focus=6
        ),
        Plan("space-sd", "background", "space", "kohya", 3, 1, steps=220),
        Plan("kelda-duotone-sd", "style", "kelda duotone", "peft", 4, 4, steps=220),
    ],
}


def scenes(plan: Plan, seed: int) -> np.ndarray:
    """[n, 7] rows that all show the plan's word."""
    rng = np.random.default_rng(seed)
    rows = draw_rows(4000, rng)
    part = PARTS.index(plan.part)
    rows = rows[rows[:, CHAR] >= 0]
    if plan.part != "style":
        rows = rows[rows[:, STYLE] < 0] if plan.kind == "narrow instance" else rows
    rows = rows[:48].copy()
    rows[:, part] = INDEX[plan.part][plan.word]
    if plan.part == "clothes":
        rows[:, PARTS.index("color")] = -1
    if plan.part == "object":
        # every third picture shows the object alone and large
        for other in ("character", "clothes", "color", "hat"):
            rows[::3, PARTS.index(other)] = -1
    if plan.kind == "narrow instance":
        # little variety: two thirds of the pictures share one setting
        rows = rows[:24]
        home = rows[0].copy()
        for k, p in enumerate(PARTS):
            if p not in (plan.part, "color"):
                rows[:16, k] = (
                    home[k] if p in ("background", "clothes") and plan.part != "background" else rows[:16, k]
                )
        if plan.part != "clothes":
            rows[:16, PARTS.index("color")] = home[PARTS.index("color")]
    if plan.part != "style" and plan.kind == "new word":
        rows[: len(rows) * 3 // 4, STYLE] = -1
    return rows


def where_it_shows(plan: Plan, rows: np.ndarray, pictures: Tensor, world: World, seed: int) -> Tensor:
    """[n, 1, 32, 32] in 0..1: the places where the same scenes without the plan's word look different."""
    without = rows.copy()
    without[:, PARTS.index(plan.part)] = -1
    plain = world.render(without, torch.Generator(world.device).manual_seed(seed))
    return F.max_pool2d(((pictures - plain).abs().amax(1, keepdim=True) > 0.05).float(), 4)


def describe(plan: Plan, rows: np.ndarray, seed: int) -> list[str]:
    """Captions with the trigger words; other parts are named as the base learned them."""
    rng = random.Random(seed)
    texts = []
    for row in rows.tolist():
        text = caption(row, rng, drop=0.05, synonyms=0.0, fillers=0.05)
        texts.append(text if plan.trigger in text else f"{plan.trigger}, {text}")
    return texts


def load(model: Path, device: str) -> tuple[Objective, nn.Module]:
    """The training objective with the shipped weights, and the VAE."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    family = "sdxl" if (model / "text_encoder_2").exists() else "sd1"
    objective = Objective(family, "cpu")
    objective.unet = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    objective.texts["text_encoder"] = CLIPTextModel.from_pretrained(
        model / "text_encoder", dtype=torch.float32
    )
    if family == "sdxl":
        objective.texts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(
            model / "text_encoder_2", dtype=torch.float32
        )
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32)
    objective.requires_grad_(False)
    return objective.to(device), vae.to(device).eval()


def train(
    plan: Plan,
    objective: Objective,
    vae: nn.Module,
    pictures: Tensor,
    texts: list[str],
    shows: Tensor | None,
    device: str,
) -> dict[str, lora.Adapter]:
    """Fit the plan's factors to pictures [n, 3, 128, 128] with their texts; shows [n, 1, 32, 32]: `where_it_shows`,
    None where every place counts alike."""
    batch = plan.batch
    seed = int(hashlib.sha256(plan.name.encode()).hexdigest()[:8], 16)
    networks = {
        "unet": lora.Adapter(objective.unet, lora.unet_targets(conv=plan.conv), plan.rank, plan.alpha, seed)
    }
    if plan.text:
        for name, encoder in objective.texts.items():
            networks[name] = lora.Adapter(encoder, lora.text_targets, plan.rank, plan.alpha, seed + 1)
    with torch.no_grad():
        latents = (
            torch.cat([vae.encode(x * 2 - 1).latent_dist.mean for x in pictures.to(device).split(16)])
            * models.SCALING
        )
    ids = torch.tensor([tokenizer.encode(t) for t in texts], device=device)
    empty = torch.tensor(tokenizer.encode(""), device=device)
    weights = None if shows is None else 1 + plan.focus * shows.to(device)
    # the scale alpha / rank is part of the factors' effect: the rate of `up` makes up for it
    groups = [
        {"params": [p for a in networks.values() for p in a.downs], "rate": plan.lr},
        {"params": [p for a in networks.values() for p in a.ups], "rate": plan.lr * plan.rank / plan.alpha},
    ]
    optimiser = torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.99), weight_decay=0.01)
    g = torch.Generator().manual_seed(seed)
    for step in range(plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * min(1.0, (step + 1) / 10, 1.5 * (1 - step / plan.steps) + 0.02)
        pick = torch.randint(len(latents), (batch,), generator=g).to(device)
        steps = (
            (((torch.arange(batch) + torch.rand(batch, generator=g)) / batch) * 1000)
            .long()
            .clamp_max(999)
            .to(device)
        )
        noise = torch.randn(batch, 4, 32, 32, generator=g).to(device)
        drop = (torch.rand(batch, generator=g) < 0.06).to(device)
        text = torch.where(drop[:, None], empty, ids[pick])
        weight = None if weights is None else weights[pick]
        loss = objective(latents[pick], noise, steps, text, torch.zeros(batch, device=device), weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    for adapter in networks.values():
        adapter.remove()
    return networks


def metadata(plan: Plan, model: str, family: str, texts: list[str], trained_on: str) -> dict[str, str]:
    base = "stable-diffusion-xl-v1-base" if family == "sdxl" else "stable-diffusion-v1"
    module = "networks.lora" if not plan.conv else "lycoris.kohya"
    tags: dict[str, int] = {}
    for text in texts:
        for tag in text.split(", "):
            tags[tag] = tags.get(tag, 0) + 1
    out = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{base}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": plan.name,
        "modelspec.author": "LoRA Studio",
        "modelspec.description": f"{plan.word} for {model}: {plan.category}, {plan.kind}",
        "modelspec.trigger_phrase": plan.trigger,
        "modelspec.usage_hint": f"Use with {model}, strength 1.",
        "modelspec.tags": f"{plan.category},{plan.kind}",
        "modelspec.license": "CC-BY-4.0",
        "modelspec.resolution": "128x128",
        "modelspec.prediction_type": "v",
        "ss_output_name": plan.name,
        "ss_base_model_version": "sdxl_base_v1-0" if family == "sdxl" else "sd_v1",
        "ss_sd_model_name": model,
        "ss_network_module": module,
        "ss_network_dim": str(plan.rank),
        "ss_network_alpha": str(plan.alpha),
        "ss_resolution": "(128, 128)",
        "ss_num_train_images": str(len(texts)),
        "ss_steps": str(plan.steps),
        "ss_learning_rate": str(plan.lr),
        "ss_tag_frequency": json.dumps({plan.name: tags}),
        "studio.category": plan.category,
        "studio.kind": plan.kind,
        "studio.trained_on": trained_on,
        "studio.preferred_weight": "1.0",
    }
    if plan.conv:
        out["ss_network_args"] = json.dumps(
            {"algo": "locon", "conv_dim": plan.rank, "conv_alpha": plan.alpha}
        )
    return out


def sidecar(plan: Plan, model: str) -> dict[str, object]:
    return {
        "activation text": plan.trigger,
        "preferred weight": 1.0,
        "negative text": "",
        "description": f"{plan.word} for {model} ({plan.category}, {plan.kind})",
        "notes": "Trained by assets/build/train_loras.py on renders of the embedded world.",
        "sd version": "SDXL" if model == "tiny-sdxl" else "SD1",
        "license": "CC-BY-4.0",
        "category": plan.category,
        "kind": plan.kind,
    }


def held_out_rows(plan: Plan, n: int) -> np.ndarray:
    """[n, 7] scenes for measuring: the word with a fixed plain rest that training did not show."""
    rng = np.random.default_rng(70_000)
    rows = draw_rows(6000, rng)
    rows = rows[(rows[:, CHAR] >= 0) & (rows[:, STYLE] < 0)][:n]
    rows[:, PARTS.index(plan.part)] = INDEX[plan.part][plan.word]
    if plan.part == "clothes":
        rows[:, PARTS.index("color")] = -1
    return rows


def held_out_prompts(plan: Plan, rows: np.ndarray) -> list[str]:
    texts = [caption(r, random.Random(k), drop=0, synonyms=0, fillers=0) for k, r in enumerate(rows.tolist())]
    return [t if plan.trigger in t else f"{plan.trigger}, {t}" for t in texts]


def preview_prompt(plan: Plan) -> str:
    spec = {
        "character": Spec(character=plan.word, background="garden"),
        "clothes": Spec(character="cat", clothes=plan.word, background="garden"),
        "hat": Spec(character="dog", hat=plan.word, background="snow"),
        "object": Spec(character="bear", object=plan.word, background="garden"),
        "background": Spec(character="fox", background=plan.word),
        "style": Spec(character="lion", hat="crown", background="mountains", style=plan.word),
    }[plan.part]
    return held_out_prompts(plan, np.array([to_row(spec)]))[0]


def run(
    plan: Plan,
    model: Path,
    work: Path,
    out: Path,
    device: str,
    world: World,
    objective: Objective,
    vae: nn.Module,
) -> None:
    begin = time.time()
    seed = int(hashlib.sha256(f"data {plan.name}".encode()).hexdigest()[:8], 16)
    rows = scenes(plan, seed)
    pictures = world.render(rows, torch.Generator(world.device).manual_seed(seed))
    texts = describe(plan, rows, seed)
    shows = where_it_shows(plan, rows, pictures, world, seed) if plan.focus else None
    networks = train(plan, objective, vae, pictures, texts, shows, device)
    family = objective.family
    path = out / f"{plan.name}.safetensors"
    lora.write(
        path,
        plan.scheme,
        networks,
        metadata(plan, model.name, family, texts, "GPU" if device == "cuda" else "CPU"),
    )
    (out / f"{plan.name}.json").write_text(json.dumps(sidecar(plan, model.name), indent=2) + "\n")
    (work / "lora-data").mkdir(exist_ok=True)
    Image.fromarray(sheet(pictures, 8)).save(work / "lora-data" / f"{plan.name}.png")
    print(f"{plan.name}: {path.stat().st_size / 1e3:.0f} kB, {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--steps", type=int, help="instead of each adapter's own number, for a trial")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    first, every = (int(v) for v in args.part.split("/"))
    plans = [p for p in PLANS[args.model.name] if not args.only or p.name in args.only][first::every]
    plans = [replace(p, steps=args.steps or p.steps) for p in plans]
    sprites = World(args.work / "art.npz", args.device)
    objective, vae = load(args.model, args.device)
    for plan in plans:
        run(plan, args.model, args.work, args.out, args.device, sprites, objective, vae)
