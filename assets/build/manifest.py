"""Write assets/manifest.json: where every shipped file comes from, the command, its sha256.

python assets/build/manifest.py --assets assets
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from safetensors import safe_open

FOLDERS = ("models", "loras", "testbed", "gallery", "configs", "figures")
MODEL = "--model assets/models/{model} --work WORK"


def trained_on(path: Path) -> str:
    """What an adapter's metadata says it was trained on, in words."""
    with safe_open(path.with_suffix(".safetensors"), "pt") as file:
        machine = (file.metadata() or {}).get("studio.trained_on", "CPU")
    return "trained on renders, on an H200" if machine == "GPU" else "trained on renders, on a CPU"


def origin(path: Path, assets: Path) -> tuple[str, str]:
    """(what made the file, the command) for a path relative to assets/."""
    parts = path.parts
    name = path.name
    if name == "README.md":
        return "measured figures", "python assets/build/cards.py --assets assets"
    if name == "studio.json":
        return "defaults and vocabulary", "python assets/build/studio_json.py --assets assets"
    if parts[0] == "models":
        if parts[2].startswith("tokenizer"):
            return (
                "byte-pair merges of the world's words",
                f"python assets/build/tokenizer.py --out assets/models/{parts[1]}/{parts[2]}",
            )
        if parts[2] == "vae":
            return (
                "trained on renders, on an H200",
                "python assets/build/train_vae.py --work WORK --seconds 245",
            )
        if parts[2] in ("unet", "text_encoder", "text_encoder_2"):
            if parts[1] == "tiny-sdxl":
                return (
                    "trained on renders, on an H200",
                    "python assets/build/train_unet.py --work WORK --family sdxl --seconds 330 --pictures 300000",
                )
            return "trained on renders, on an H100", SD_COMMAND
        return "the stock layout", "python assets/build/export.py --work WORK --assets assets"
    if parts[0] == "loras":
        model, stem = parts[1], path.name.split(".")[0]
        if name.endswith(".png"):
            return (
                "drawn by the model with the adapter",
                f"python assets/build/evaluate_loras.py --model assets/models/{model} --loras assets/loras/{model}",
            )
        script = "train_blora.py" if stem.startswith("b-") else "train_loras.py"
        only = "" if stem.startswith("b-") else f" --only {stem}"
        return (
            trained_on(assets / path),
            f"python assets/build/{script} {MODEL.format(model=model)} --out assets/loras/{model}{only}",
        )
    if parts[0] == "testbed":
        if name == "words.json":
            return "the world's words", "python assets/build/words.py --assets assets"
        if parts[1] == "sets":
            return "names, trigger words and settings of the ComposLoRA lists, no weights", "written by hand"
        if parts[1] == "references":
            return "renders of the world", "python assets/build/references.py --work WORK --assets assets"
        if name == "labels.json":
            return "seen by eye in generated pictures", "python assets/build/labels.py sheets --assets assets"
        what = "clip" if parts[1] == "scorer" else "classifier"
        return "trained on renders", f"python assets/build/scorer.py --work WORK --what {what}"
    if parts[0] == "configs":
        if name == "build_tokenizer.py":
            return "CLIP's vocabulary as two files", "written by hand"
        if parts[1] == "tokenizer":
            return "CLIP's vocabulary, as open_clip brings it", "python assets/configs/build_tokenizer.py"
        return f"settings of the published {parts[1].upper()} models, no weights", "written by hand"
    if name == "flora-cost.png":
        return "a figure of BENCHMARKS.md", "python -m studio.bench.flora --device cuda --layers full"
    if name.startswith("web-"):
        command = "LORA_STUDIO_SHOTS=assets/gallery pytest -m slow tests/browser/test_pictures.py"
        return "screenshots of `lora-studio web` (256 colours)", command
    if name == "quality.png":
        return "figure of the embedded models' pictures (24 colours)", "lora-studio bench quality --seeds 1-3"
    if name == "grid.png":
        return (
            "drawn by the embedded models (160 colours)",
            'lora-studio grid --prompt "a nilo fox wearing a kimono" --lora nilo-fox --lora kimono '
            "--x method=merge,switch,composite,cmlora --y seed=1,2,3 --cell 160",
        )
    if name == "blora.png":
        return (
            "drawn by tiny-sdxl with B-LoRAs trained from the pictures shown, laid out by hand",
            "lora-studio train-blora … and render --composer blora …: BENCHMARKS.md, B-LoRA",
        )
    return (
        "drawn by the embedded models",
        f"python assets/build/gallery.py --assets assets --report WORK/figures --only {path.stem}",
    )


SD_COMMAND = (
    "python assets/build/train_unet.py --work WORK --family sd1 --seconds 231 --pictures 250000 --lr 1.2e-3 "
    "--batch 256 --half --texts-from assets/models/tiny-sdxl/text_encoder/model.safetensors"
)


def shipped(assets: Path) -> list[Path]:
    return sorted(
        p.relative_to(assets)
        for folder in FOLDERS
        for p in (assets / folder).rglob("*")
        if p.is_file() and not p.name.startswith(".")
    )


def write(assets: Path) -> None:
    files = {}
    for path in shipped(assets):
        made, command = origin(path, assets)
        content = (assets / path).read_bytes()
        files[path.as_posix()] = {
            "origin": made,
            "command": command,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (assets / "manifest.json").write_text(json.dumps({"files": files}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    write(parser.parse_args().assets)
