# ruff: noqa: E501 (drawings and texts are long lines)
"""Write the model cards from the measured figures: assets/models/*/README.md and the testbed's.

    python assets/build/cards.py --assets assets

The figures (--figures) are a folder with the reports that evaluate.py, evaluate_loras.py, probe_blocks.py and scorer.py
wrote: report-tiny-sdxl.json, report-tiny-sd.json, loras-tiny-sdxl.json, loras-tiny-sd.json, blocks-MODEL.json,
classifier-report.json, clip-report.json, labels.json; assets/build/figures holds those of what ships. What is not there is left out of the cards.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from vocab import BASE, COLORS

ABOUT = {
    "tiny-sdxl": "SDXL's layout (two text encoders, text_time conditioning), 7.6 M parameters in the UNet",
    "tiny-sd": "SD1.x's layout (one text encoder, four levels), 2.55 M parameters in the UNet",
}
TRAINED = {
    "tiny-sdxl": "330 s on an H200: 3,386 steps of 384 latents, the UNet and both text encoders from scratch",
    "tiny-sd": "231 s on an H100: 5,041 steps of 256 latents; its text encoder starts from tiny-sdxl's, and the VAE is tiny-sdxl's",
}
PARTS = ("character", "clothes", "object", "background", "style", "hat", "color")


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def percent(x: float) -> str:
    return f"{100 * x:.1f} %"


def interval(share: float, n: int) -> str:
    """Wilson's 95 % interval of a share seen in n cases."""
    z = 1.96
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return f"{100 * (centre - half) / (1 + z * z / n):.1f} to {100 * (centre + half) / (1 + z * z / n):.1f} %"


def earlier_section(report: dict[str, Any]) -> list[str]:
    """What an earlier classifier read in more prompts, where the report keeps it."""
    if "earlier" not in report:
        return []
    before = report["earlier"]
    shares = ", ".join(f"{part} {percent(before[part])}" for part in PARTS if part in before)
    return [
        f"{before['prompts']:,} prompts drawn in fp16 on a GPU and read by {before['read by']}:",
        shares + ".",
        "",
    ]


def block_section(name: str, blocks: dict[str, Any]) -> list[str]:
    """Where content and style sit: the blocks that move either by a tenth, and the block map."""
    effects = {
        block: {k: round(v or 0.0, 2) + 0.0 for k, v in moved.items()}
        for block, moved in blocks["effects"].items()
    }
    rows = [
        (block, f"{moved['content']:.2f}", f"{moved['style']:.2f}")
        for block, moved in effects.items()
        if max(moved.values()) >= 0.1
    ]
    silent = max((max(m.values()) for m in effects.values() if max(m.values()) < 0.1), default=0.0)
    sides = blocks["block_map"]
    found = (
        f"So its block map is content in {', '.join(sides['content'])}, style in {', '.join(sides['style'])}."
        if sides
        else "No two of its blocks separate content from style, so it has no block map, and B-LoRA refuses it."
    )
    published = (
        ["SDXL's own published pair (up_blocks.0.attentions.0 and .1) is not this model's."]
        if name == "tiny-sdxl"
        else ["SD1.x has no published map; the procedure is the paper's, the answer is this model's."]
    )
    return [
        "## Where content and style sit",
        "",
        f"Found by `lora-studio probe-blocks {name}`: one group of blocks reads another prompt in its cross-attention; how far",
        f"the picture's edges, its content, and its look, its style, follow ({blocks['pairs']} pairs of prompts, {blocks['seeds']} seed{'s' * (blocks['seeds'] > 1)},",
        f"{blocks['steps']} steps; scored by {blocks['scored by']}; 1 is all the way):",
        "",
        table(
            [*rows, ("every other block", f"{silent:.2f} at most", "")],
            ("blocks that read the other prompt", "content", "style"),
        ),
        "",
        found,
        *published,
        "",
    ]


def model_card(name: str, figures: Path) -> str:
    report = read(figures / f"report-{name}.json")
    blocks = read(figures / f"blocks-{name}.json")
    out = [
        f"# {name}",
        "",
        f"A small built-in model with {ABOUT[name]}. It draws paper-doll portraits at 128 x 128 pixels: a character,",
        "its clothes, a hat, something in its hand, a place, a style. It loads with stock diffusers; pass one dtype.",
        "",
        "## What it is not",
        "",
        "- It knows the words below and nothing else; other words are read letter by letter and mean nothing to it.",
        "- It draws one figure at 128 x 128. Two figures, text, other sizes, photographs are outside its world.",
        "- It is a testbed and a first picture without a download, not a measure of what SD or SDXL can do.",
        "- Small things smear: thin outlines, flags, the pattern of a dress. Under strong styles (neon, sepia, poster)",
        "  objects and characters are harder to tell.",
        "",
        "## Its words",
        "",
        *(f"- {part}: {', '.join(words)}" for part, words in {**BASE, "color": COLORS}.items()),
        "",
        "## How it was made",
        "",
        "Scenes composed by `assets/build/world.py` from emoji art and own drawings (licences in `assets/NOTICE`), never",
        f"photographs or people's pictures. {TRAINED[name]}; v-prediction, scaled-linear betas 0.00085 to 0.02.",
        "The VAE (f = 4, 1.24 M parameters) took 245 s on an H200 and reaches 33.3 dB (mean of the pictures; 32.3 dB of",
        "the mean error) on 2,048 scenes whose combinations were held out. Commands: `assets/manifest.json`.",
        "",
        "Eight per cent of the pairs of a character with a garment, hat, object, place or style, and the fox with a crown,",
        "never appear in training (a hash rule in `assets/build/vocab.py`); every measured prompt contains such a pair.",
        "",
    ]
    if report:
        held = report["held out"]
        rows = [
            (
                p,
                percent(held[p]),
                interval(held[p], held["asked"][p]),
                percent(held["without a style"].get(p, held[p])) if p != "style" else "",
            )
            for p in PARTS
        ]
        hits = report["triples"]
        good = sum(v >= 14 for v in hits.values())
        out += [
            "## How well it follows a prompt",
            "",
            f"{held['prompts']:,} prompts with held-out pairs, one picture each, settings fixed before scoring (Euler, 20 steps,",
            f"guidance 3.5, {report['drawn on']}); read by the classifier in `assets/testbed`, which never saw a generated picture.",
            "",
            table(rows, ("part", "all prompts", "95 % interval", "prompts without a style")),
            "",
            *(
                [
                    "A fifth of these prompts did not say the colour, so 82 % is what a model that always obeys gets there.",
                    "",
                ]
                if "colour left out" in held
                else []
            ),
            *(
                [
                    *(
                        f"The {part}: {count} prompts that ask for it, drawn and read again later (fp32 on a CPU)."
                        for part, count in held["drawn anew"].items()
                    ),
                    "",
                ]
                if "drawn anew" in held
                else []
            ),
            f'"a fox wearing a crown on the beach": {hits["a fox wearing a crown on the beach"]} of 16 seeds. Of {len(hits)} triples',
            f"of (character, hat or object, place), {good} hold on at least 14 of 16 seeds; the others:",
            ", ".join(f'"{k}" {v}' for k, v in hits.items() if v < 14) or "none",
            "",
            *(
                [f"The triples were drawn in fp16 on a GPU and read by {report['triples read by']}.", ""]
                if "triples read by" in report
                else []
            ),
            *(
                [
                    f'Drawn again (fp32 on a CPU) and read by the present classifier, "{triple}" holds on {count} of 16.\n'
                    for triple, count in report.get("triples read again", {}).items()
                ]
            ),
            *earlier_section(report),
        ]
    if blocks:
        out += block_section(name, blocks)
    loras = read(figures / f"loras-{name}.json")
    if loras:
        again = all("read again" in v for v in loras.values())
        head = (
            "adapter",
            "category",
            "kind",
            "prompts",
            "word, base alone",
            "word, adapter",
            "rest, adapter",
        )
        rows = [
            (
                k,
                v["category"],
                v["kind"],
                str(v["prompts"]),
                percent(v["word, base"]),
                percent(v["word, adapter"]),
                percent(v["rest, adapter"]),
                *((percent(v["read again"]["word, adapter"]),) if again else ()),
            )
            for k, v in loras.items()
        ]
        out += [
            "## Its adapters",
            "",
            "The same prompts and seeds by the base alone and with the adapter at strength 1; how often the classifier finds",
            "the adapter's word, and the rest of the prompt.",
            "",
            table(rows, (*head, "word, read again") if again else head),
            "",
            *(
                [
                    "Read by an earlier training of the classifier, which misread styles among others; the last column is the",
                    "present one's reading of the first 8 prompts.",
                    "",
                ]
                if again
                else []
            ),
            '"new word" adapters teach something the base never saw, from 48 varied pictures, and are disentangled; "narrow',
            'instance" adapters teach one particular drawing of something it knows, from 24 pictures with little variety, as',
            "people's own adapters do.",
            "",
        ]
    return "\n".join(out).rstrip() + "\n"


def by_eye(figures: Path) -> list[str]:
    """How far the classifier agrees with labels given by eye to generated pictures."""
    report = read(figures / "labels.json")
    if not report:
        return []
    parts = {k: v for k, v in report.items() if k != "pictures"}
    agree, told = (sum(v[key] for v in parts.values()) for key in ("agree", "told by eye"))
    each = ", ".join(f"{part} {v['agree']} of {v['told by eye']}" for part, v in parts.items())
    differ = [f"{part}: {d}" for part, v in parts.items() for d in v["differ"]]
    return [
        f"On generated pictures: {report['pictures']} of both models were labelled by eye, without their prompts",
        f"(`assets/testbed/labels.json`); of {told} words that the eye could tell the classifier reads {agree} alike",
        f"({each}).",
        f"It differs in: {'; '.join(differ) or 'none'}. Compare again with `assets/build/labels.py`.",
        "",
    ]


def judge_card(figures: Path, what: str) -> str:
    if what == "classifier":
        report = read(figures / "classifier-report.json")
        rows = [(p, *(percent(report[c][p]) for c in report)) for p in PARTS]
        return (
            "\n".join(
                [
                    "# Attribute classifier",
                    "",
                    'A stock transformers ResNet (0.58 M parameters), one softmax a part; its labels are "part:word". It was trained',
                    "on renders of the embedded world, half of them passed through the VAE and back, and never on generated pictures.",
                    "Input: 128 x 128, (x - 0.5) / 0.5. Made by `assets/build/scorer.py`.",
                    "",
                    f"Accuracy on 4,096 fresh renders ({report.get('note', 'of combinations held out from the models')}), and with the truth shuffled:",
                    "",
                    table(rows, ("part", *report)),
                    "",
                    "A third of these renders are under a style. Where an earlier training misread characters and objects under styles",
                    "that take the colours away (noir, blueprint, sketch, poster), a last one with two thirds of the renders under a",
                    "style, in which characters and objects weighed double, reads them too.",
                    "",
                    *by_eye(figures),
                    "The colour of clothes is asked where no style hides it. It knows the world's words and nothing else.",
                ]
            )
            + "\n"
        )
    report = read(figures / "clip-report.json")
    return (
        "\n".join(
            [
                "# Scorer",
                "",
                "A small stock open_clip model (1.33 M parameters; 128 x 128, patch 8) trained on renders of the embedded world and",
                "their descriptions. Its vocabulary is the embedded tokenizer's. Load `open_clip_config.json` and",
                "`open_clip_model.safetensors`; texts end with the end mark and are padded with zeros to 48.",
                "",
                "On 400 renders of combinations held out from the models: is the right description closer than one with one word",
                "swapped, or with an element that is not there?",
                "",
                table([(k, percent(v)) for k, v in report.items()], ("test", "right")),
                "",
                "Below the aim of 95 %: "
                + (", ".join(k for k, v in report.items() if v < 0.95) or "none")
                + ".",
            ]
        )
        + "\n"
    )


def write(assets: Path, figures: Path) -> None:
    for name in ABOUT:
        if (assets / "models" / name).exists():
            (assets / "models" / name / "README.md").write_text(model_card(name, figures))
    for what in ("classifier", "scorer"):
        (assets / "testbed" / what / "README.md").write_text(judge_card(figures, what))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "figures")
    args = parser.parse_args()
    write(args.assets, args.figures)
