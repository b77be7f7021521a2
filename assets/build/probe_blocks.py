"""Find which blocks carry content and which style: give one group of blocks another prompt.

    python assets/build/probe_blocks.py --model assets/models/tiny-sdxl --classifier assets/testbed/classifier --out OUT

Prompt A draws the picture; the cross-attention of one group of blocks reads prompt B instead (B-LoRA's
own analysis, arXiv 2403.14572, section 4). The measure is how far the classifier's margin between B's
word and A's moves from its value on A's pictures (0) towards its value on B's (1), mean over seeds.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from evaluate import draw, load
from PIL import Image
from scorer import SPANS, load_classifier, normalise
from torch import Tensor, nn
from world import INDEX, sheet

BASE = "a fox wearing a suit on the beach"
# part, prompt B, A's word, B's word
PAIRS = [
    ("character", "a frog wearing a suit on the beach", "fox", "frog"),
    ("clothes", "a fox wearing overalls on the beach", "suit", "overalls"),
    ("style", BASE + ", neon style", None, "neon"),
    ("style", BASE + ", sepia style", None, "sepia"),
    ("background", "a fox wearing a suit at night", "beach", "night"),
]


def groups(unet: nn.Module, pairs: bool) -> dict[str, tuple[str, ...]]:
    """Attention blocks to swap together: the sides, each up block, its single and neighbouring parts."""
    names = [n for n, m in unet.named_modules() if type(m).__name__ == "Transformer2DModel"]
    ups = [n for n in names if n.startswith("up")]
    sides = {".".join(n.split(".")[:2]): () for n in ups}
    out: dict[str, tuple[str, ...]] = {"down and mid": tuple(n for n in names if n not in ups)}
    out |= {b: tuple(n for n in ups if n.startswith(b + ".")) for b in sides}
    out |= {n: (n,) for n in ups}
    out |= {f"{a} + {b}": (a, b) for a, b in pairwise(ups)}
    return out if pairs else {k: v for k, v in out.items() if "+" not in k}


class Swap:
    """While entered, the chosen blocks' cross-attention reads `other` [2n, 77, d]."""

    def __init__(self, unet: nn.Module, blocks: tuple[str, ...], other: Tensor) -> None:
        inside = tuple(b + "." for b in blocks)
        self.modules = [m for n, m in unet.named_modules() if n.endswith("attn2") and n.startswith(inside)]
        self.other = other

    def _hook(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "encoder_hidden_states": self.other}

    def __enter__(self) -> None:
        self.handles = [m.register_forward_pre_hook(self._hook, with_kwargs=True) for m in self.modules]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def encode(pipe: Any, prompt: str, n: int) -> Tensor:
    """[2n, 77, d] as the pipeline feeds the UNet: n negatives, then n positives."""
    given = pipe.encode_prompt(
        prompt=[prompt] * n, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    return torch.cat([given[1], given[0]])


@torch.inference_mode()
def margin(judge: nn.Module, pictures: Tensor, part: str, word_a: str | None, word_b: str) -> Tensor:
    """[n] logit of B's word minus A's ("none" where A has none)."""
    device = next(judge.parameters()).device
    logits = judge(normalise(pictures.to(device))).logits[:, slice(*SPANS[part])].cpu()
    a = 0 if word_a is None else INDEX[part][word_a] + 1
    return logits[:, INDEX[part][word_b] + 1] - logits[:, a]


def block_map(report: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Split the attention blocks of the up path: each goes to the side whose words it moves more, and
    a block that moves neither (less than a twentieth of the side) to none.

    Shares are relative to what all single blocks together move, so that a part which is moved less
    everywhere still has its say.
    """
    singles = [n for n in next(iter(report.values())) if ".attentions." in n and "+" not in n]

    def share(parts: tuple[str, ...], name: str) -> float:
        found = [r for p, r in report.items() if p.split(":")[0] in parts]
        return sum(max(0.0, r[name]) / max(1e-6, sum(max(0.0, r[n]) for n in singles)) for r in found) / len(
            found
        )

    content = {n: share(("character", "clothes"), n) for n in singles}
    style = {n: share(("style", "background"), n) for n in singles}
    return {
        "content": [n for n in singles if content[n] >= max(style[n], 0.05)],
        "style": [n for n in singles if style[n] > max(content[n], 0.05)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", action="store_true", help="also neighbouring attention blocks together")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe, judge = load(args.model, args.device), load_classifier(args.classifier, args.device)
    seeds = list(range(args.seeds))
    report: dict[str, dict[str, float]] = {}
    shown = []
    plain = draw(pipe, [BASE] * len(seeds), seeds, len(seeds))
    for part, prompt, word_a, word_b in PAIRS:
        changed = draw(pipe, [prompt] * len(seeds), seeds, len(seeds))
        low, high = (margin(judge, x, part, word_a, word_b).mean() for x in (plain, changed))
        other = encode(pipe, prompt, len(seeds))
        line = [plain[:1], changed[:1]]
        row = {}
        for name, blocks in groups(pipe.unet, args.pairs).items():
            with Swap(pipe.unet, blocks, other):
                x = draw(pipe, [BASE] * len(seeds), seeds, len(seeds))
            row[name] = round(float((margin(judge, x, part, word_a, word_b).mean() - low) / (high - low)), 3)
            line.append(x[:1])
        report[f"{part}: {word_b}"] = row
        shown.append(torch.cat(line))
        print(part, word_b, row, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"measure": report, "block_map": block_map(report)}
    print(content["block_map"], flush=True)
    (args.out / f"blocks-{args.model.name}.json").write_text(json.dumps(content, indent=2) + "\n")
    Image.fromarray(sheet(torch.cat(shown), len(shown[0]))).save(args.out / f"blocks-{args.model.name}.png")
