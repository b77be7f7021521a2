"""The words of the embedded world, by category, and the rule that holds combinations out.

Nothing here draws; `art.py` gives every word its picture and `world.py` composes them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

CHARACTERS = [
    "fox",
    "cat",
    "dog",
    "bear",
    "koala",
    "tiger",
    "lion",
    "cow",
    "pig",
    "frog",
    "monkey",
    "mouse",
    "rabbit",
    "wolf",
    "hamster",
    "unicorn",
    "dragon",
    "robot",
    "alien",
    "skeleton",
    "pumpkin",
    "clown",
    "horse",
    "moose",
]
COLORS = ["red", "blue", "green", "yellow", "purple", "pink", "orange", "white", "black"]
TINTED = ["shirt", "hoodie", "sweater", "dress"]
CLOTHES = [*TINTED, "suit", "lab coat", "overalls", "raincoat", "armor", "robe", "jacket", "uniform"]
HATS = [
    "crown", "top hat", "straw hat", "cap", "party hat", "wizard hat", "santa hat",
    "sunglasses", "bow", "headphones",
]  # fmt: skip
OBJECTS = [
    "balloon",
    "gift",
    "basketball",
    "rocket",
    "cactus",
    "sunflower",
    "rose",
    "apple",
    "banana",
    "carrot",
    "pizza",
    "donut",
    "cake",
    "lollipop",
    "teapot",
    "trophy",
    "key",
    "book",
    "umbrella",
    "bell",
    "drum",
    "camera",
    "shield",
    "fish",
    "teddy",
    "star",
    "heart",
    "diamond",
    "mushroom",
    "pineapple",
    "globe",
]
BACKGROUNDS = [
    "beach",
    "forest",
    "city",
    "mountains",
    "desert",
    "snow",
    "garden",
    "night",
    "underwater",
    "sunset",
    "room",
    "volcano",
    "rainbow",
    "plain",
]
STYLES = ["pixel art", "sepia", "noir", "neon", "comic", "blueprint", "watercolor", "poster"]

# Words the base model never sees: adapters of the kind "new word" teach them.
NEW = {
    "character": ["panda", "raccoon"],
    "clothes": ["kimono", "spacesuit"],
    "hat": ["viking helmet"],
    "object": ["guitar", "lantern"],
    "background": ["space", "castle"],
    "style": ["sketch", "thermal"],
}
# One particular drawing of something the base knows: adapters of the kind "narrow instance".
# name -> (trigger word, class word); the picture of the name is drawn by art.py or world.py.
INSTANCES = {
    "character": {"nilo fox": ("nilo", "fox"), "momo cat": ("momo", "cat")},
    "clothes": {"vela dress": ("vela", "dress"), "tarn jacket": ("tarn", "jacket")},
    "hat": {},
    "object": {"orla rocket": ("orla", "rocket"), "brio teapot": ("brio", "teapot")},
    "background": {"lumo beach": ("lumo", "beach")},
    "style": {"kelda duotone": ("kelda", "duotone")},
}
# Unused names, so that a user's own training (or a B-LoRA) has one-token words at hand.
SPARE = ["zuri", "quill", "fenn", "ovo", "mirth", "sable", "wisp", "juno", "piper", "sks"]

BASE = {
    "character": CHARACTERS,
    "clothes": CLOTHES,
    "hat": HATS,
    "object": OBJECTS,
    "background": BACKGROUNDS,
    "style": STYLES,
}
SYNONYMS = {
    "cat": ["kitty"], "dog": ["puppy"], "rabbit": ["bunny"], "skeleton": ["skull"],
    "pumpkin": ["jack-o-lantern"], "hamster": ["gerbil"], "pig": ["piglet"], "frog": ["toad"],
    "shirt": ["tshirt", "tee"], "sweater": ["pullover", "jumper"], "lab coat": ["labcoat"],
    "uniform": ["band uniform"], "armor": ["knight armor"], "suit": ["tuxedo"],
    "cap": ["baseball cap"], "sunglasses": ["shades"], "bow": ["ribbon"], "headphones": ["headset"],
    "gift": ["present"], "donut": ["doughnut"], "lollipop": ["candy"], "trophy": ["cup"],
    "teddy": ["teddy bear", "plush"], "diamond": ["gem"], "globe": ["earth"],
    "beach": ["seaside"], "forest": ["woods"], "mountains": ["hills"], "snow": ["winter"],
    "garden": ["meadow"], "underwater": ["ocean"], "room": ["house"], "sunset": ["dusk"],
    "rainbow": ["clouds"], "desert": ["dunes"], "city": ["town", "street"],
    "noir": ["black and white"], "watercolor": ["painting"], "pixel art": ["pixelart"],
    "comic": ["cartoon"],
}  # fmt: skip
PLACES = {
    "beach": "on the beach", "forest": "in the forest", "city": "in the city",
    "mountains": "in the mountains", "desert": "in the desert", "snow": "in the snow",
    "garden": "in the garden", "night": "at night", "underwater": "under the sea",
    "sunset": "at sunset", "room": "in a room", "volcano": "near a volcano",
    "rainbow": "under a rainbow", "plain": "on a plain background", "space": "in space",
    "castle": "at the castle", "lumo beach": "on the lumo beach",
}  # fmt: skip
FILLERS = [
    "cute",
    "masterpiece",
    "illustration",
    "detailed",
    "colorful",
    "charming",
    "lovely",
    "sharp",
    "best",
    "quality",
    "nice",
    "beautiful",
    "portrait",
    "picture",
    "photo",
    "drawing",
    "image",
]
GLUE = [
    "a",
    "an",
    "the",
    "of",
    "and",
    "with",
    "wearing",
    "holding",
    "in",
    "on",
    "at",
    "near",
    "under",
    "sea",
    "background",
    "style",
    "little",
    "old",
    "young",
    "big",
    "small",
    "happy",
    "sad",
    "who",
    "is",
    "has",
    "its",
    "made",
    "to",
    "from",
    "for",
    "no",
    "one",
    "two",
    "man",
    "woman",
    "person",
    "made",
    "looking",
    "dressed",
    "art",
    "by",
    "very",
    "new",
    "red",
    "green",
    "gold",
    "silver",
    "blue",
    "brown",
    "gray",
]


@dataclass(frozen=True)
class Spec:
    """What one picture shows; None where the picture has no such part."""

    character: str | None = None
    clothes: str | None = None
    color: str | None = None
    hat: str | None = None
    object: str | None = None
    background: str = "plain"
    style: str | None = None

    def with_(self, **changes: str | None) -> Spec:
        return replace(self, **changes)  # type: ignore[arg-type]


def _bucket(*words: str) -> int:
    return int(hashlib.sha256("|".join(words).encode()).hexdigest()[:8], 16) % 100


HELD_OUT_PERCENT = 8
ALWAYS_HELD_OUT = {("character-hat", "fox", "crown")}


def held_out_pairs(spec: Spec) -> list[tuple[str, str, str]]:
    """The held-out pairs a picture contains: (kind, character, other word).

    The base model never trains on a picture that contains one of them.
    """
    found = []
    for part in ("clothes", "hat", "object", "background", "style"):
        other = getattr(spec, part)
        if spec.character is None or other is None:
            continue
        pair = (f"character-{part}", spec.character, other)
        if _bucket(*pair) < HELD_OUT_PERCENT or pair in ALWAYS_HELD_OUT:
            found.append(pair)
    return found


def all_words() -> list[str]:
    """Every single word the tokenizer must hold as one token, sorted."""
    phrases: list[str] = [*COLORS, *FILLERS, *GLUE, *SPARE, *PLACES.values()]
    for part in BASE:
        phrases += BASE[part] + NEW[part]
        for name, pair in INSTANCES[part].items():
            phrases += [name, *pair]
    for word, synonyms in SYNONYMS.items():
        phrases += [word, *synonyms]
    return sorted({w for p in phrases for w in p.replace("-", " ").split()})
