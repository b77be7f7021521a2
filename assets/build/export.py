"""Turn trained weights into the folders that ship.

    python assets/build/export.py --work WORK --assets assets

Reads WORK/unet-sdxl.safetensors, WORK/unet-sd1.safetensors, WORK/vae.safetensors (else tiny-sdxl's) and the
judges; whatever is missing is left out. The cards are written by `cards.py`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import models

NAMES = {"sdxl": "tiny-sdxl", "sd1": "tiny-sd"}


def export(work: Path, assets: Path) -> None:
    for family, name in NAMES.items():
        weights = work / f"unet-{family}.safetensors"
        if not weights.exists():
            continue
        parts = {"vae": models.load_vae(work), "unet": models.unet(family), **models.texts(family)}
        models.load_weights(weights, parts)
        models.export(assets / "models" / name, family, {k: m.eval() for k, m in parts.items()})
    for source, target in (("classifier", "classifier"), ("clip", "scorer")):
        if (work / source).exists():
            shutil.copytree(work / source, assets / "testbed" / target, dirs_exist_ok=True)
    for path in [*assets.glob("models/**/*"), *assets.glob("testbed/**/*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    args = parser.parse_args()
    export(args.work, args.assets)
