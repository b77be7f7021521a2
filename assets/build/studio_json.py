"""Write the machine-readable defaults of the embedded models: assets/models/NAME/studio.json.

python assets/build/studio_json.py --assets assets
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vocab import BASE, COLORS, SYNONYMS
from world import PARTS

EXAMPLES = [
    "a fox wearing a crown on the beach",
    "a cat wearing a lab coat, holding a book, in a room",
    "a frog wearing a wizard hat and a robe at night",
    "a lion wearing a suit, holding a cake, in the garden",
    "a wolf wearing armor, holding a shield, in the snow",
    "a dog wearing a santa hat, holding a gift, in the snow",
    "a pig wearing overalls, holding an apple, in the mountains",
    "a fox wearing a blue shirt, holding a rocket, comic style",
]
CATEGORY = {"character": "character", "clothes": "clothing", "color": "color", "hat": "headwear"}
DESCRIPTION = (
    "A small built-in demo model: paper-doll portraits at 128 x 128 pixels, from a vocabulary of "
    "about a hundred words. It knows nothing else."
)


def vocabulary() -> dict[str, dict[str, list[str]]]:
    lists = {**BASE, "color": COLORS}
    return {
        CATEGORY.get(part, part): {word: SYNONYMS.get(word, []) for word in lists[part]} for part in PARTS
    }


def write(assets: Path, figures: Path) -> None:
    for name, family in (("tiny-sdxl", "sdxl"), ("tiny-sd", "sd1")):
        folder = assets / "models" / name
        if not folder.exists():
            continue
        probe = figures / f"blocks-{name}.json"
        content: dict[str, object] = {
            "family": family,
            "width": 128,
            "height": 128,
            "scheduler": "Euler",
            "steps": 20,
            "guidance_scale": 3.5,
            "examples": EXAMPLES,
            "vocabulary": vocabulary(),
        }
        if probe.exists():
            content["block_map"] = json.loads(probe.read_text())["block_map"]
        content["description"] = DESCRIPTION
        (folder / "studio.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument(
        "--figures",
        type=Path,
        default=Path(__file__).parent / "figures",
        help="folder with blocks-NAME.json, from probe_blocks.py (default: those of what ships)",
    )
    args = parser.parse_args()
    write(args.assets, args.figures)
