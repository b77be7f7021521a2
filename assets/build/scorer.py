"""Train the two judges of pictures on rendered scenes, never on generated ones.

    python assets/build/scorer.py --work WORK --what classifier --seconds 100 --device cuda
    python assets/build/scorer.py --work WORK --what clip       --seconds 110 --device cuda

The classifier is a stock transformers ResNet whose labels are "part:word" (one softmax a part); the
scorer is a stock open_clip model. Both see every word of the world, also those the base never sees.
Half of their training pictures went through the VAE and back, so that its softness is familiar.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import models
import numpy as np
import tokenizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vocab import COLORS, TINTED
from world import CHAR, CLOTHES, COLOR, HAT, OBJECT, PARTS, STYLE, WORDS, World, caption, draw_rows, held_out

CLIP_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 128, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {
        "context_length": 48,
        "vocab_size": len(tokenizer.tables()[0]),
        "width": 96,
        "heads": 3,
        "layers": 3,
    },
}
LABELS = [f"{part}:{word}" for part in PARTS for word in ["none", *WORDS[part]]]
SPANS = {}
_at = 0
for _part in PARTS:
    SPANS[_part] = (_at, _at + 1 + len(WORDS[_part]))
    _at = SPANS[_part][1]


def classifier() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 48, 80, 128],
            depths=[1, 2, 2, 1],
            layer_type="basic",
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={w: k for k, w in enumerate(LABELS)},
        )
    )


def normalise(x: Tensor) -> Tensor:
    """0..1 -> the judges' input range."""
    return (x - 0.5) / 0.5


def targets(rows: Tensor) -> Tensor:
    """[n, 7] -> class in each part's softmax; the colour is not asked where a style hides it."""
    out = rows + 1
    hidden = (rows[:, STYLE] >= 0) & (rows[:, COLOR] >= 0)
    out[:, COLOR] = torch.where(hidden, -100, out[:, COLOR])
    return out


HARD = {"character": 2.0, "object": 2.0}  # the parts with the most words weigh double


def head_loss(logits: Tensor, rows: Tensor) -> Tensor:
    wanted = targets(rows)
    losses = [
        HARD.get(p, 1.0) * F.cross_entropy(logits[:, slice(*SPANS[p])], wanted[:, k], ignore_index=-100)
        for k, p in enumerate(PARTS)
    ]
    return torch.stack(losses).sum()


def rough(x: Tensor, g: torch.Generator) -> Tensor:
    """Shift, soften, relight and add noise: small disturbances of a true render."""
    n = len(x)
    dx, dy = (int(v) for v in torch.randint(-3, 4, (2,), generator=g, device=x.device))
    x = torch.roll(F.pad(x, (3, 3, 3, 3), mode="replicate"), (dy, dx), (2, 3))[..., 3:-3, 3:-3]
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = torch.rand(n, 1, 1, 1, generator=g, device=x.device)
    x = x + (soft - x) * mix * 0.9
    gain = 1 + 0.2 * (torch.rand(n, 3, 1, 1, generator=g, device=x.device) - 0.5)
    level = 0.06 * torch.rand(n, 1, 1, 1, generator=g, device=x.device)
    return (x * gain + level * torch.randn(x.shape, generator=g, device=x.device)).clamp(0, 1)


class Scenes:
    """A pool of renders of every word, refreshed while training; half went through the VAE."""

    def __init__(
        self, work: Path, device: str, size: int, seed: int, only_rare: bool = False, styled: float = 0
    ) -> None:
        self.only_rare, self.styled = only_rare, styled
        self.world = World(work / "art.npz", device)
        self.vae = models.load_vae(work).to(device)
        self.device, self.size = device, size
        self.numbers = np.random.default_rng(seed)
        self.g = torch.Generator(device).manual_seed(seed)
        self.rows = torch.empty(size, 7, dtype=torch.long, device=device)
        self.pictures = torch.empty(size, 3, 128, 128, dtype=torch.uint8, device=device)
        for at in range(0, size, 512):
            self.refresh(at, min(512, size - at))

    def draw(self, n: int) -> np.ndarray:
        """Rows of any words. The pairs held out from the models are in: a judge that never saw a
        fox with a crown learns that foxes have none, and misjudges exactly what it is to judge.
        """
        rows = draw_rows(8 * n if self.only_rare else n, self.numbers, everything=True)
        rows = (rows[held_out(rows)] if self.only_rare else rows)[:n]
        more = (rows[:, STYLE] < 0) & (self.numbers.random(len(rows)) < self.styled)
        rows[more, STYLE] = self.numbers.integers(0, len(WORDS["style"]), int(more.sum()))
        return rows

    @torch.inference_mode()
    def refresh(self, at: int, n: int) -> None:
        rows = self.draw(n)
        x = self.world.render(rows, self.g)
        half = 0 if self.only_rare else n // 2
        if half:
            x[:half] = through(self.vae, x[:half])
        self.rows[at : at + n] = torch.from_numpy(rows).to(self.device)
        self.pictures[at : at + n] = (x * 255).round().byte()

    def batch(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        pick = torch.randint(self.size, (n,), generator=self.g, device=self.device)
        return pick, self.rows[pick], rough(self.pictures[pick].float() / 255, self.g)


def through(vae: nn.Module, x: Tensor) -> Tensor:
    """Pictures as the VAE gives them back."""
    parts = [vae.decode(vae.encode(p * 2 - 1).latent_dist.mean).sample for p in x.split(128)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def train_classifier(
    work: Path,
    seconds: float,
    device: str,
    batch: int,
    pool: int,
    resume: bool,
    lr: float,
    only_rare: bool,
    styled: float,
    seed: int,
    start_at: float,
) -> None:
    cuda = device == "cuda"
    torch.manual_seed(seed)
    scenes = Scenes(work, device, pool, seed + 10 * resume + 100 * only_rare, only_rare, styled)
    model = load_classifier(work / "classifier", device) if resume else classifier().to(device)
    model.train()
    print("classifier", sum(p.numel() for p in model.parameters()) / 1e6, "M", flush=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02, fused=cuda)
    time.sleep(max(0.0, start_at - time.time()))
    start, step = time.time(), 0
    while (passed := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * passed)) + 1e-6
        _, rows, x = scenes.batch(batch)
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            logits = model(normalise(x)).logits
        loss = head_loss(logits.float(), rows)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 20 == 0:
            scenes.refresh(step // 20 * 256 % pool, min(256, pool - step // 20 * 256 % pool))
        if step % (200 if cuda else 5) == 0:
            print(f"classifier step {step} loss {float(loss):.3f} {time.time() - start:.0f} s", flush=True)
    model.eval().half()
    model.save_pretrained(work / "classifier")
    preprocessor = {
        "image_processor_type": "ConvNextImageProcessor", "do_resize": False, "do_rescale": True,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (work / "classifier/preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    report = measure_classifier(work, device, 4096 if cuda else 64)
    (work / "classifier-report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report), flush=True)


@torch.inference_mode()
def read(model: nn.Module, pictures: Tensor) -> Tensor:
    """[n, 3, 128, 128] in 0..1 -> [n, 7] recognised words (-1 none)."""
    logits = torch.cat([model(normalise(x)).logits for x in pictures.split(256)])
    return torch.stack([logits[:, slice(*SPANS[p])].argmax(1) - 1 for p in PARTS], 1)


def load_classifier(folder: Path, device: str) -> nn.Module:
    from transformers import ResNetForImageClassification

    return ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def held_out_scenes(world: World, n: int, seed: int) -> tuple[Tensor, Tensor]:
    rows = draw_rows(8 * n, np.random.default_rng(seed), everything=True)
    rows = rows[held_out(rows)][:n]
    return torch.from_numpy(rows).to(world.device), world.render(
        rows, torch.Generator(world.device).manual_seed(seed)
    )


def measure_classifier(work: Path, device: str, n: int) -> dict[str, dict[str, float]]:
    """Accuracy a part on held-out true renders, as they are and through the VAE, and shuffled."""
    world = World(work / "art.npz", device)
    vae = models.load_vae(work).to(device)
    model = load_classifier(work / "classifier", device)
    rows, x = held_out_scenes(world, n, 30_000)
    wanted = targets(rows) - 1
    shuffled = wanted[torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(device)]
    report: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        cases = {
            "renders": (x, wanted),
            "through the vae": (through(vae, x), wanted),
            "shuffled": (x, shuffled),
        }
        for name, (pictures, truth) in cases.items():
            got = read(model, pictures)
            ask = truth > -100
            if name == "shuffled":
                ask &= truth >= 0
            right = (got == truth) & ask
            report[name] = {
                p: round(float(right[:, k].sum() / ask[:, k].sum()), 4) for k, p in enumerate(PARTS)
            }
    return report


def clip_model() -> nn.Module:
    import open_clip

    return open_clip.CLIP(**json.loads(json.dumps(CLIP_CONFIG)))


def clip_ids(text: str) -> list[int]:
    """Ids in open_clip's layout: zeros behind the end mark."""
    length = CLIP_CONFIG["text_cfg"]["context_length"]  # type: ignore[index]
    ids = tokenizer.encode(text, length)
    end = ids.index(tokenizer.tables()[0][tokenizer.EOS])
    return ids[: end + 1] + [0] * (length - end - 1)


def changed_row(row: list[int], rng: random.Random) -> list[int]:
    """The row with one word swapped, or with one element more than the picture shows."""
    row = list(row)
    columns = [k for k in range(len(PARTS)) if row[k] >= 0 and not (k == COLOR and row[STYLE] >= 0)]
    if row[CHAR] >= 0 and rng.random() < 0.25:
        columns = [k for k in (HAT, OBJECT, STYLE, CLOTHES) if row[k] < 0] or columns
    column = rng.choices(
        columns, [3.0 if k == OBJECT else 2.0 if k in (COLOR, CHAR) else 1.0 for k in columns]
    )[0]
    row[column] = rng.choice([w for w in range(len(WORDS[PARTS[column]])) if w != row[column]])
    if column == CLOTHES:
        tinted = row[CLOTHES] < len(TINTED)
        row[COLOR] = (row[COLOR] if row[COLOR] >= 0 else rng.randrange(len(COLORS))) if tinted else -1
    return row


def train_clip(
    work: Path, seconds: float, device: str, batch: int, pool: int, resume: bool, seed: int, start_at: float
) -> None:
    cuda = device == "cuda"
    torch.manual_seed(seed)
    scenes = Scenes(work, device, pool, 1 + seed + 10 * resume)
    model = load_clip(work / "clip", device) if resume else clip_model().to(device)
    model.train()
    helper = nn.Linear(128, len(LABELS)).to(device)  # speeds up the image tower; not kept
    print("clip", sum(p.numel() for p in model.parameters()) / 1e6, "M", flush=True)
    rng = random.Random(1 + seed)
    # of every picture: a whole description, one with gaps, and the first with one thing wrong
    texts = torch.empty(pool, 3, 48, dtype=torch.long, device=device)

    def describe(at: int, n: int) -> None:
        made = []
        for row in scenes.rows[at : at + n].tolist():
            same = rng.randrange(2**32)
            whole, wrong = (caption(r, random.Random(same), drop=0.0) for r in (row, changed_row(row, rng)))
            made.append([clip_ids(t) for t in (whole, caption(row, rng, drop=0.1), wrong)])
        texts[at : at + n] = torch.tensor(made, device=device)

    for at in range(0, pool, 1024):
        describe(at, min(1024, pool - at))
    parameters = [*model.parameters(), *helper.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=cuda)
    time.sleep(max(0.0, start_at - time.time()))
    start, step = time.time(), 0
    while (passed := (time.time() - start) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1.5e-3 * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * passed)) + 1e-6
        pick, rows, x = scenes.batch(batch)
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            image = model.encode_image(normalise(x))
            whole, gaps, wrong = (model.encode_text(texts[pick, k], normalize=True).float() for k in range(3))
            extra = helper(image)
        some = torch.rand(batch, 1, device=device) < 0.5
        image = F.normalize(image.float(), dim=-1)
        scale = model.logit_scale.exp().clamp_max(100)
        logits = scale * image @ torch.where(some, whole, gaps).T
        margin = scale * (image * (whole - wrong)).sum(-1)
        same = torch.arange(batch, device=device)
        loss = (
            F.cross_entropy(logits, same)
            + F.cross_entropy(logits.T, same)
            + 2 * F.softplus(-margin).mean()
            + 0.3 * (1 - passed) * head_loss(extra.float(), rows)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if step % 8 == 0:
            at = step // 8 * 128 % pool
            scenes.refresh(at, min(128, pool - at))
            describe(at, min(128, pool - at))
        if step % (100 if cuda else 5) == 0:
            print(f"clip step {step} loss {float(loss):.3f} {time.time() - start:.0f} s", flush=True)
    from safetensors.torch import save_file

    model.eval()
    folder = work / "clip"
    folder.mkdir(exist_ok=True)
    save_file(models.half(model), folder / "open_clip_model.safetensors")
    mean = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": mean}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    report = measure_clip(work, device, 2000 if cuda else 64)
    (work / "clip-report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report), flush=True)


def load_clip(folder: Path, device: str) -> nn.Module:
    from safetensors.torch import load_file

    model = clip_model()
    model.load_state_dict(
        {k: v.float() for k, v in load_file(folder / "open_clip_model.safetensors").items()}
    )
    return model.to(device).eval()


@torch.inference_mode()
def measure_clip(work: Path, device: str, n: int) -> dict[str, float]:
    """Retrieval among 1,000, single-word swaps and missing elements, on held-out renders."""
    world = World(work / "art.npz", device)
    model = load_clip(work / "clip", device)
    rows, x = held_out_scenes(world, n, 40_000)
    rng = random.Random(40_000)
    numbers = np.random.default_rng(40_000)
    image = torch.cat([model.encode_image(normalise(p), normalize=True) for p in x.split(256)])
    right = rows.tolist()

    def texts(changed: list[list[int]]) -> Tensor:
        ids = torch.tensor(
            [
                clip_ids(caption(r, random.Random(k), drop=0, synonyms=0, fillers=0, color=1))
                for k, r in enumerate(changed)
            ],
            device=device,
        )
        return torch.cat([model.encode_text(p, normalize=True) for p in ids.split(512)])

    truth = texts(right)
    own = (image * truth).sum(-1)
    pool = min(n, 1000)
    report = {
        f"retrieval among {pool:,}": float(
            (image[:pool] @ truth[:pool].T).argmax(1).eq(torch.arange(pool, device=device)).float().mean()
        )
    }
    for column, part in enumerate(PARTS):
        if column == COLOR:
            asked = [k for k, r in enumerate(right) if r[COLOR] >= 0 and r[STYLE] < 0]
        else:
            asked = [k for k, r in enumerate(right) if r[column] >= 0]
        changed = []
        for k in asked:
            row = list(right[k])
            others = [w for w in range(len(WORDS[part])) if w != row[column]]
            row[column] = int(numbers.choice(others))
            if column == CLOTHES:
                row[COLOR] = right[k][COLOR] if row[CLOTHES] < 4 else -1
                if row[CLOTHES] < 4 and row[COLOR] < 0:
                    row[COLOR] = rng.randrange(9)
            changed.append(row)
        report[f"swap {part}"] = float((own[asked] > (image[asked] * texts(changed)).sum(-1)).float().mean())
    for column, part in ((HAT, "hat"), (OBJECT, "object"), (STYLE, "style"), (CLOTHES, "clothes")):
        asked = [k for k, r in enumerate(right) if r[column] < 0 and r[CHAR] >= 0]
        changed = []
        for k in asked:
            row = list(right[k])
            row[column] = rng.randrange(len(WORDS[part]))
            if column == CLOTHES and row[CLOTHES] < 4:
                row[COLOR] = rng.randrange(9)
            changed.append(row)
        report[f"missing {part}"] = float(
            (own[asked] > (image[asked] * texts(changed)).sum(-1)).float().mean()
        )
    return {k: round(v, 4) for k, v in report.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--what", choices=["classifier", "clip"], required=True)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--pool", type=int, default=40960)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--lr", type=float, default=3e-3, help="of the classifier")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start-at", type=float, default=0, help="not before this second of the epoch")
    parser.add_argument(
        "--styled", type=float, default=0, help="give a style to this part of the renders without one"
    )
    parser.add_argument(
        "--only-rare",
        action="store_true",
        help="the classifier's last touch: only pairs that are held out from the models",
    )
    args = parser.parse_args()
    if args.what == "classifier":
        train_classifier(
            args.work,
            args.seconds,
            args.device,
            args.batch,
            args.pool,
            args.resume,
            args.lr,
            args.only_rare,
            args.styled,
            args.seed,
            args.start_at,
        )
    else:
        train_clip(
            args.work,
            args.seconds,
            args.device,
            args.batch,
            args.pool,
            args.resume,
            args.seed,
            args.start_at,
        )
