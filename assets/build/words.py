"""Write assets/testbed/words.json: the attribute words, by part, and the pairs held out from training.

python assets/build/words.py --assets assets
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vocab import (
    ALWAYS_HELD_OUT,
    BASE,
    COLORS,
    HELD_OUT_PERCENT,
    INSTANCES,
    NEW,
    PLACES,
    SYNONYMS,
    Spec,
    held_out_pairs,
)


def write(assets: Path) -> None:
    pairs = []
    for part in ("clothes", "hat", "object", "background", "style"):
        for character in BASE["character"]:
            for word in BASE[part]:
                pairs += held_out_pairs(Spec(**{"background": None, "character": character, part: word}))  # type: ignore[arg-type]
    content = {
        "base": {**BASE, "color": COLORS},
        "new words": NEW,
        "narrow instances": INSTANCES,
        "synonyms": SYNONYMS,
        "places": PLACES,
        "held out": {
            "percent": HELD_OUT_PERCENT,
            "always": sorted(ALWAYS_HELD_OUT),
            "pairs": sorted(set(pairs)),
        },
    }
    (assets / "testbed/words.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    write(parser.parse_args().assets)
