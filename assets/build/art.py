# ruff: noqa: E501 (drawings and texts are long lines)
"""Draw the world's sprites and backgrounds: own SVG plus emoji from three npm packages.

    python assets/build/art.py --work WORK        writes WORK/art.npz (about 10 s; needs node, npm)

Licences of the drawings are in assets/NOTICE. Sprites are twice the size at which the world
places them at most, so that one 2x downsampling gives clean edges.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from vocab import COLORS, TINTED

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
}
RESVG = "@resvg/resvg-js@2.6.2"
HEAD, HAT, OBJECT, TORSO, SCENE = (160, 160), (160, 160), (112, 112), (256, 128), (288, 288)
VARIANTS = 24  # drawings of every background

# word -> (package, icon, colour matrix or None)
HEADS = {
    "fox": "noto/fox", "cat": "noto/cat-face", "dog": "noto/dog-face", "bear": "noto/bear",
    "koala": "noto/koala", "tiger": "noto/tiger-face", "lion": "twemoji/lion",
    "cow": "noto/cow-face", "pig": "twemoji/pig-face", "frog": "noto/frog",
    "monkey": "noto/monkey-face", "mouse": "noto/mouse-face", "rabbit": "noto/rabbit-face",
    "wolf": "noto/wolf", "hamster": "noto/hamster", "unicorn": "noto/unicorn",
    "dragon": "twemoji/dragon-face", "robot": "noto/robot", "alien": "fluent-emoji/alien",
    "skeleton": "noto/skull", "pumpkin": "noto/jack-o-lantern", "clown": "noto/clown-face",
    "horse": "noto/horse-face", "moose": "noto/moose", "panda": "noto/panda",
    "raccoon": "twemoji/raccoon", "nilo fox": "twemoji/fox", "momo cat": "fluent-emoji/cat-face",
}  # fmt: skip
HAT_ICONS = {
    "crown": "noto/crown", "top hat": "noto/top-hat", "straw hat": "noto/womans-hat",
    "cap": "noto/billed-cap", "sunglasses": "noto/sunglasses", "bow": "fluent-emoji/ribbon",
    "headphones": "fluent-emoji/headphone",
}  # fmt: skip
OBJECT_ICONS = {
    "balloon": "noto/balloon", "gift": "noto/wrapped-gift", "basketball": "noto/basketball",
    "rocket": "noto/rocket", "cactus": "noto/cactus", "sunflower": "noto/sunflower",
    "rose": "noto/rose", "apple": "noto/red-apple", "banana": "noto/banana",
    "carrot": "noto/carrot", "pizza": "noto/pizza", "donut": "noto/doughnut",
    "cake": "noto/birthday-cake", "lollipop": "noto/lollipop", "teapot": "noto/teapot",
    "trophy": "noto/trophy", "key": "noto/key", "book": "noto/closed-book",
    "umbrella": "noto/umbrella", "bell": "noto/bell", "drum": "noto/drum",
    "camera": "noto/camera", "shield": "fluent-emoji/shield", "fish": "noto/fish",
    "teddy": "noto/teddy-bear", "star": "noto/star", "heart": "noto/red-heart",
    "diamond": "noto/gem-stone", "mushroom": "noto/mushroom", "pineapple": "noto/pineapple",
    "globe": "noto/globe-showing-europe-africa", "guitar": "noto/guitar",
    "lantern": "noto/red-paper-lantern", "orla rocket": "fluent-emoji/rocket",
    "brio teapot": "fluent-emoji/teapot",
}  # fmt: skip
# Instances are recoloured so that they are one particular thing: word -> degrees of hue.
HUES = {"nilo fox": 190.0, "momo cat": 285.0, "orla rocket": 130.0, "brio teapot": 210.0}

SHADES = {
    "red": ("#e53935", "#a31515"), "blue": ("#2f6fe4", "#1a4294"), "green": ("#3aa845", "#1f6e2a"),
    "yellow": ("#fdd835", "#c79a00"), "purple": ("#8e3fc7", "#5a1f8a"),
    "pink": ("#f78fc0", "#c95a90"), "orange": ("#fb8c00", "#b85c00"),
    "white": ("#f4f4f4", "#b9bec6"), "black": ("#3a3a40", "#141418"),
}  # fmt: skip
BODY = "M8 64 C8 36 20 24 42 19 L50 13 Q64 24 78 13 L86 19 C108 24 120 36 120 64 Z"
ARMS = "M26 64 C25 52 27 45 31 39 M102 64 C103 52 101 45 97 39"


class Icons:
    """The emoji packages, read on demand; every use gets its own ids for gradients."""

    def __init__(self, node_modules: Path) -> None:
        self.root = node_modules / "@iconify-json"
        self.sets: dict[str, dict] = {}
        self.count = 0

    def place(self, ref: str, x: float, y: float, w: float, h: float, extra: str = "") -> str:
        package, name = ref.split("/")
        if package not in self.sets:
            self.sets[package] = json.loads((self.root / package / "icons.json").read_text())
        data = self.sets[package]
        if name not in data["icons"]:
            name = data["aliases"][name]["parent"]
        icon = data["icons"][name]
        width = icon.get("width", data.get("width", 16))
        height = icon.get("height", data.get("height", 16))
        self.count += 1
        body = icon["body"]
        body = re.sub(r'id="([^"]+)"', rf'id="k{self.count}\1"', body)
        body = re.sub(r"url\(#([^)]+)\)", rf"url(#k{self.count}\1)", body)
        body = re.sub(r'href="#([^"]+)"', rf'href="#k{self.count}\1"', body)
        view = f'viewBox="0 0 {width} {height}"'
        box = f'x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}"'
        return f"<svg {box} {view} {extra}>{body}</svg>"


def svg(width: int, height: int, body: str) -> str:
    ns = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {ns} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{body}</svg>'


# ---------------------------------------------------------------- clothes, 128 x 64 units


def garment(fill: str, dark: str, inside: str = "") -> str:
    """A bust: shoulders with arm folds, and whatever the garment has on it."""
    return (
        f'<clipPath id="b"><path d="{BODY}"/></clipPath>'
        f'<path d="{BODY}" fill="{fill}"/>'
        f'<g clip-path="url(#b)">{inside}</g>'
        f'<path d="{ARMS}" stroke="{dark}" stroke-width="2.4" fill="none" stroke-linecap="round"/>'
        f'<path d="{BODY}" fill="none" stroke="{dark}" stroke-width="2"/>'
    )


def rect(x: float, y: float, w: float, h: float, fill: str, r: float = 0) -> str:
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{r}" fill="{fill}"/>'


def path(d: str, fill: str = "none", stroke: str = "none", width: float = 2) -> str:
    return f'<path d="{d}" fill="{fill}" stroke="{stroke}" stroke-width="{width}"/>'


def dot(x: float, y: float, r: float, fill: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{fill}"/>'


def shirt(c: str, d: str) -> str:
    return garment(c, d, path("M44 14 Q64 38 84 14", "none", d, 4))


def hoodie(c: str, d: str) -> str:
    inside = path("M34 18 Q64 48 94 18 L84 8 H44 Z", d)
    inside += path("M40 16 Q64 36 88 16 L80 6 H48 Z", c)
    inside += path("M54 32 V50 M74 32 V50", "none", "#fff", 3)
    return garment(c, d, inside + path("M40 64 L46 52 H82 L88 64 Z", d))


def sweater(c: str, d: str) -> str:
    stripes = "".join(rect(0, y, 128, 7, "#fffdf2") for y in (30, 46, 62))
    return garment(c, d, stripes + path("M42 12 Q64 36 86 12 L82 8 H46 Z", d))


def dress(c: str, d: str) -> str:
    """Bare shoulders with straps, a fitted top and a ruffle."""
    top = "M30 64 C32 50 34 44 36 36 Q50 44 64 36 Q78 44 92 36 C94 44 96 50 98 64 Z"
    skin = "#ead2b4"
    body = f'<path d="{BODY}" fill="{skin}"/><path d="{BODY}" fill="none" stroke="#c9a27d" stroke-width="2"/>'
    straps = path("M40 38 L46 14 M88 38 L82 14", "none", d, 5)
    return body + straps + path(top, c, d, 2) + path("M30 52 Q64 60 98 52", "none", "#fff", 3)


def vela_dress(c: str, d: str) -> str:
    spots = "".join(
        dot(x, y, 3.2, "#ffe27a")
        for x, y in ((44, 48), (58, 46), (72, 48), (86, 47), (40, 60), (54, 60), (70, 61), (88, 60))
    )
    return (
        dress(c, d).replace('stroke="#fff"', 'stroke="none"')
        + spots
        + path("M56 40 L64 45 L72 40 L72 50 L64 45 L56 50 Z", "#ff5fa2")
    )


def suit() -> str:
    inside = path("M48 10 L64 52 L80 10 Z", "#fff") + path("M60 24 H68 L70 48 L64 58 L58 48 Z", "#d32f2f")
    inside += path("M46 12 L36 22 L60 64 H64 Z M82 12 L92 22 L68 64 H64 Z", "#1c2536")
    return garment("#33415c", "#151c2b", inside)


def lab_coat() -> str:
    inside = path("M50 10 L64 40 L78 10 Z", "#63b3ed") + path("M64 40 V64", "none", "#9aa7b5", 2.4)
    inside += path("M48 12 L38 22 L62 48 L64 40 Z M80 12 L90 22 L66 48 L64 40 Z", "#dfe6ee")
    inside += (
        rect(78, 46, 15, 14, "#dfe6ee", 1) + rect(81, 41, 3, 10, "#e53935") + rect(86, 41, 3, 10, "#2f6fe4")
    )
    return garment("#fbfdff", "#9aa7b5", inside)


def overalls() -> str:
    inside = path("M42 14 Q64 36 86 14", "none", "#c0392b", 3)
    inside += path("M42 16 L48 40 M86 16 L80 40", "none", "#2b5ea8", 8) + rect(40, 38, 48, 30, "#2b5ea8", 3)
    inside += dot(48, 42, 3.4, "#ffd54f") + dot(80, 42, 3.4, "#ffd54f") + rect(54, 48, 20, 12, "#1f4680", 2)
    return garment("#ef6c57", "#a83a2a", inside)


def raincoat() -> str:
    inside = path("M36 16 Q64 44 92 16 L84 8 H44 Z", "#d9a400") + path("M64 30 V64", "none", "#b88700", 3)
    inside += dot(72, 40, 3.6, "#5d4300") + dot(72, 54, 3.6, "#5d4300")
    return garment("#ffcf1a", "#b88700", inside)


def armor() -> str:
    inside = path("M64 20 V64 M36 34 Q64 46 92 34 M38 50 Q64 60 90 50", "none", "#6c7885", 2.6)
    inside += path("M44 14 Q64 34 84 14 L80 8 H48 Z", "#5b6672")
    pads = "".join(
        f'<ellipse cx="{x}" cy="35" rx="17" ry="13" fill="#cfd8e0" stroke="#5b6672" stroke-width="2.4"/>'
        for x in (20, 108)
    )
    return (
        garment("#aab6c2", "#5b6672", inside) + pads + dot(20, 34, 3, "#f2c94c") + dot(108, 34, 3, "#f2c94c")
    )


def robe() -> str:
    inside = path("M48 10 L64 64 L80 10 Z", "#2a1a57") + path("M46 10 L64 64 L82 10", "none", "#f2c94c", 4)
    stars = "".join(
        path(
            f"M{x} {y - 5} L{x + 1.6} {y - 1.6} L{x + 5} {y} L{x + 1.6} {y + 1.6} L{x} {y + 5} L{x - 1.6} {y + 1.6} L{x - 5} {y} L{x - 1.6} {y - 1.6} Z",
            "#ffe27a",
        )
        for x, y in ((36, 40), (92, 40), (44, 56), (84, 56), (20, 50), (108, 50))
    )
    return garment("#4a2f9a", "#24124f", inside + stars)


def jacket(c: str = "#8a5630", d: str = "#4f2d14", pattern: str = "") -> str:
    inside = pattern + path("M50 10 L64 64 L78 10 Z", "#f1ead9") + path("M64 30 L60 64 H68 Z", "#f1ead9")
    inside += path("M48 10 L32 22 L46 40 L64 62 Z M80 10 L96 22 L82 40 L64 62 Z", d)
    return garment(c, d, inside + path("M58 60 L48 44 M70 60 L80 44", "none", "#e8c07a", 2))


def tarn_jacket() -> str:
    plaid = "".join(rect(x, 0, 5, 64, "#f6d365") for x in (16, 34, 92, 110))
    plaid += "".join(rect(0, y, 128, 5, "#0e4d3a") for y in (30, 46, 60))
    return jacket("#1f8a6b", "#0a3629", plaid)


def uniform() -> str:
    inside = path("M44 14 Q64 30 84 14 L82 8 H46 Z", "#1d2f5f")
    inside += "".join(path(f"M48 {y} H80", "none", "#ffd54f", 3.4) for y in (32, 42, 52, 62))
    inside += path("M64 24 V64", "none", "#8f1414", 2.4)
    pads = "".join(
        f'<ellipse cx="{x}" cy="31" rx="14" ry="6" fill="#ffd54f" stroke="#a67c00" stroke-width="1.6"/>'
        for x in (24, 104)
    )
    return garment("#d62828", "#8f1414", inside) + pads


def kimono() -> str:
    inside = path("M44 10 L74 64 H60 L36 16 Z", "#fff4f7") + path("M84 10 L58 64 H70 L92 16 Z", "#fde0ea")
    blossoms = "".join(
        "".join(
            dot(x + 3.4 * dx, y + 3.4 * dy, 2.6, "#ffd9e8") for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0))
        )
        + dot(x, y, 1.8, "#ffb300")
        for x, y in ((26, 44), (98, 38), (108, 56), (40, 34))
    )
    return garment("#c2185b", "#7b0f3a", inside + blossoms + rect(34, 54, 60, 12, "#26a69a"))


def spacesuit() -> str:
    inside = (
        rect(46, 38, 36, 20, "#c4ccd6", 4)
        + dot(54, 48, 4, "#e53935")
        + dot(64, 48, 4, "#43a047")
        + dot(74, 48, 4, "#1e88e5")
    )
    inside += path("M14 46 Q24 52 34 46 M94 46 Q104 52 114 46", "none", "#f57c00", 6)
    collar = '<ellipse cx="64" cy="19" rx="34" ry="11" fill="#d5dde6" stroke="#8592a1" stroke-width="3"/>'
    return garment("#f7f9fc", "#8592a1", inside) + collar


# ---------------------------------------------------------------- hats, 80 x 80 units


def party_hat() -> str:
    cone = path("M40 14 L62 76 Q40 84 18 76 Z", "#7e57c2", "#4527a0", 1.5)
    spots = "".join(
        dot(x, y, 4.6, c)
        for x, y, c in (
            (40, 36, "#ffeb3b"),
            (32, 54, "#4dd0e1"),
            (49, 56, "#ff80ab"),
            (28, 71, "#ffeb3b"),
            (42, 70, "#69f0ae"),
            (54, 72, "#ffab40"),
        )
    )
    return cone + spots + dot(40, 12, 8, "#ff4081")


def wizard_hat() -> str:
    brim = '<ellipse cx="40" cy="68" rx="38" ry="9" fill="#1e2a78"/>'
    cone = path("M18 66 Q34 30 52 4 Q50 36 62 66 Q40 74 18 66 Z", "#2f3fae")
    band = path("M18 66 Q40 74 62 66 L60 57 Q40 64 21 57 Z", "#f2c94c")
    star = path(
        "M40 32 L42.6 39 L50 39.6 L44.4 44.4 L46.2 51.6 L40 47.6 L33.8 51.6 L35.6 44.4 L30 39.6 L37.4 39 Z",
        "#ffe27a",
    )
    return brim + cone + band + star


def santa_hat() -> str:
    cone = path("M12 64 Q16 22 46 14 Q66 12 74 36 Q58 26 56 34 Q64 48 68 64 Z", "#e02f2f", "#9c1515", 1.5)
    return cone + rect(6, 58, 68, 18, "#fff8f4", 9) + dot(73, 40, 9, "#fff8f4")


def viking_helmet() -> str:
    horns = path(
        "M16 58 Q-2 44 4 16 Q14 36 28 44 Z M64 58 Q82 44 76 16 Q66 36 52 44 Z", "#f5ead0", "#a08a5b", 1.5
    )
    dome = path("M10 72 Q10 30 40 28 Q70 30 70 72 Z", "#9aa5b1", "#56616d", 1.8)
    return (
        horns
        + dome
        + rect(6, 62, 68, 13, "#c58b2a", 4)
        + rect(35, 28, 10, 36, "#c58b2a", 3)
        + dot(18, 68, 3, "#fff3c4")
        + dot(62, 68, 3, "#fff3c4")
    )


# ---------------------------------------------------------------- backgrounds, 144 x 144 units

Rng = random.Random


def sky(top: str, bottom: str) -> str:
    return (
        f'<linearGradient id="sky" x1="0" y1="0" x2="0" y2="1"><stop offset="0" stop-color="{top}"/><stop offset="1" stop-color="{bottom}"/></linearGradient>'
        + rect(0, 0, 144, 144, "url(#sky)")
    )


def cloud(x: float, y: float, s: float, fill: str = "#fff") -> str:
    return "".join(
        dot(x + s * dx, y + s * dy, s * r, fill)
        for dx, dy, r in ((-1.1, 0.2, 0.7), (0, -0.2, 1.0), (1.1, 0.2, 0.7))
    ) + rect(x - 1.7 * s, y + 0.2 * s, 3.4 * s, 0.7 * s, fill, 0.35 * s)


def tree(x: float, y: float, s: float, fill: str) -> str:
    trunk = rect(x - 0.12 * s, y - 0.3 * s, 0.24 * s, 0.34 * s, "#7a4a21")
    tiers = "".join(
        path(
            f"M{x} {y - (1.5 - 0.35 * k) * s} L{x + (0.36 + 0.13 * k) * s} {y - (0.85 - 0.32 * k) * s} H{x - (0.36 + 0.13 * k) * s} Z",
            fill,
        )
        for k in range(3)
    )
    return trunk + tiers


def side(r: Rng) -> tuple[float, float]:
    """An x on the left and one on the right, clear of the figure in the middle."""
    return r.uniform(14, 30), r.uniform(114, 130)


def bg_beach(r: Rng, i: Icons) -> str:
    sea = r.uniform(70, 82)
    body = sky("#6ec6ff", "#d4f1ff") + rect(0, sea, 144, 60, "#1e9ad6") + rect(0, sea + 10, 144, 5, "#5cc3ee")
    body += path(f"M0 {sea + 32} Q72 {sea + 22} 144 {sea + 34} V144 H0 Z", "#f6dc9b") + path(
        f"M0 {sea + 32} Q72 {sea + 22} 144 {sea + 34}", "none", "#fff", 4
    )
    a, b = r.sample(side(r), 2)
    return (
        body
        + i.place("noto/palm-tree", a - 30, sea - 44, 64, 84)
        + dot(b, r.uniform(22, 34), 13, "#ffd740")
        + cloud(r.uniform(50, 90), r.uniform(16, 30), 7)
    )


def bg_forest(r: Rng, i: Icons) -> str:
    body = sky("#a8e0c4", "#e4f7d8") + rect(0, 92, 144, 52, "#5d9c3f")
    far = "".join(tree(x + r.uniform(-4, 4), 98, r.uniform(40, 52), "#5fa873") for x in range(4, 144, 20))
    near = "".join(
        tree(x, 112, r.uniform(56, 68), "#2e7d46")
        for x in (r.uniform(6, 18), r.uniform(28, 38), r.uniform(106, 116), r.uniform(126, 138))
    )
    return body + far + near


def bg_city(r: Rng, i: Icons) -> str:
    body = sky("#8fb8e8", "#e6eefb")
    x = -4.0
    while x < 144:
        w, top = r.uniform(22, 30), r.uniform(22, 62)
        wall = r.choice(["#55658a", "#6b7fa8", "#44527a", "#7a6f9b"])
        body += rect(x, top, w - 2, 120 - top, wall)
        for row in range(4):
            for column in range(2):
                body += rect(
                    x + 4 + column * (w - 12) / 1.6,
                    top + 6 + row * 14,
                    6,
                    7,
                    r.choice(["#ffe08a", "#ffe08a", "#33405f"]),
                )
        x += w
    return (
        body
        + rect(0, 112, 144, 32, "#4a4f58")
        + "".join(rect(x, 125, 18, 4, "#fff") for x in range(-6, 144, 36))
    )


def bg_mountains(r: Rng, i: Icons) -> str:
    body = sky("#7cc4f5", "#e2f4ff")
    for x, top, w in (
        (r.uniform(20, 36), r.uniform(26, 36), 52),
        (r.uniform(106, 124), r.uniform(18, 30), 58),
        (r.uniform(64, 80), r.uniform(44, 52), 50),
    ):
        body += path(f"M{x} {top} L{x + w} 112 H{x - w} Z", r.choice(["#7d8798", "#6c7789"]))
        s = 0.3
        body += path(
            f"M{x} {top} L{x + s * w} {top + s * (112 - top)} L{x + 0.1 * w} {top + 0.2 * (112 - top)} L{x - 0.06 * w} {top + 0.3 * (112 - top)} L{x - s * w} {top + s * (112 - top)} Z",
            "#fff",
        )
    return (
        body
        + path("M0 108 Q40 98 80 106 T144 104 V144 H0 Z", "#69b04c")
        + cloud(r.uniform(56, 90), r.uniform(14, 24), 7)
    )


def bg_desert(r: Rng, i: Icons) -> str:
    a, b = r.sample(side(r), 2)
    body = sky("#ffd08a", "#fff1c9") + dot(b, r.uniform(22, 32), 14, "#ff8f3f")
    body += path("M0 88 Q36 70 80 86 T144 80 V144 H0 Z", "#e9b25c") + path(
        "M0 104 Q50 90 100 106 T144 102 V144 H0 Z", "#d99a3e"
    )
    return (
        body
        + f'<g transform="translate({a - 16} 48)">'
        + rect(11, 0, 12, 58, "#3f8f4f", 6)
        + path("M2 18 V30 Q2 36 12 36 M32 12 V24 Q32 30 22 30", "none", "#3f8f4f", 8)
        + "</g>"
    )


def bg_snow(r: Rng, i: Icons) -> str:
    body = sky("#c3d9f0", "#f1f7ff") + path("M0 96 Q40 84 90 96 T144 92 V144 H0 Z", "#ffffff")
    for x in (*side(r), r.choice([r.uniform(36, 44), r.uniform(100, 108)])):
        s = r.uniform(40, 54)
        body += tree(x, 104, s, "#3c7f6d") + path(
            f"M{x} {104 - 1.5 * s} L{x + 0.2 * s} {104 - 1.13 * s} H{x - 0.2 * s} Z", "#fff"
        )
    return body + "".join(dot(r.uniform(0, 144), r.uniform(0, 100), 2.2, "#fff") for _ in range(16))


def bg_garden(r: Rng, i: Icons) -> str:
    body = (
        sky("#9fdcff", "#eafaff")
        + cloud(r.uniform(26, 40), r.uniform(18, 30), 8)
        + cloud(r.uniform(104, 120), r.uniform(20, 34), 9)
    )
    body += path("M0 80 Q72 68 144 80 V144 H0 Z", "#7ccb58")
    for k in range(13):
        x, y = 5 + k * 11.2 + r.uniform(-3, 3), r.uniform(86, 112)
        petal = r.choice(["#ff6fa5", "#ffd23f", "#ffffff", "#b07cff", "#ff6b4a"])
        body += (
            rect(x - 1, y, 2.4, 14, "#3f8f3a")
            + "".join(
                dot(x + 4 * dx, y + 4 * dy, 3.4, petal) for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0))
            )
            + dot(x, y, 2.6, "#ffb300" if petal != "#ffd23f" else "#8d5a1b")
        )
    return body


def bg_night(r: Rng, i: Icons) -> str:
    body = sky("#0c1445", "#2b3a86") + "".join(
        dot(r.uniform(0, 144), r.uniform(0, 92), r.choice([1.4, 1.8, 2.4]), "#fff7cf") for _ in range(24)
    )
    x, y = r.choice(side(r)), r.uniform(22, 34)
    body += dot(x, y, 14, "#ffe9a8") + dot(x + 6, y - 4, 12, "#131b50")
    return body + path("M0 104 Q36 92 76 102 T144 98 V144 H0 Z", "#101a3a")


def bg_underwater(r: Rng, i: Icons) -> str:
    body = sky("#35c2e8", "#0b4f9c") + path("M0 124 Q40 114 80 122 T144 118 V144 H0 Z", "#e2c98b")
    for x in (*side(r), r.uniform(34, 42)):
        sway = r.uniform(5, 9)
        body += path(
            f"M{x} 128 Q{x + sway} 112 {x} 98 T{x} 70", "none", r.choice(["#2fbf71", "#e85d75", "#9b5de5"]), 7
        )
    for _ in range(9):
        body += f'<circle cx="{r.uniform(4, 140):.1f}" cy="{r.uniform(6, 100):.1f}" r="{r.uniform(2.5, 5):.1f}" fill="#bdefff" fill-opacity="0.55" stroke="#eaffff" stroke-width="1.2"/>'
    return body + i.place("noto/tropical-fish", r.choice([6, 112]), r.uniform(34, 62), 26, 26)


def bg_sunset(r: Rng, i: Icons) -> str:
    x = r.choice([r.uniform(22, 36), r.uniform(108, 122)])
    body = sky("#5b2a86", "#ff9a56") + dot(x, 80, 20, "#ffe066") + rect(0, 82, 144, 62, "#7a2f6f")
    body += "".join(rect(x - w, y, 2 * w, 4, "#ffd166", 2) for y, w in ((88, 20), (97, 15), (106, 10)))
    return body + "".join(rect(r.uniform(0, 100), y, 40, 5, "#ff7b7b", 2.5) for y in (22, 40, 56))


def bg_room(r: Rng, i: Icons) -> str:
    body = (
        rect(0, 0, 144, 144, r.choice(["#f3d9b1", "#f0cfc0", "#dfe3c0"]))
        + rect(0, 108, 144, 36, "#9a6238")
        + rect(0, 105, 144, 5, "#fff6e6")
    )
    a, b = (14, 100) if r.random() < 0.5 else (100, 14)
    body += (
        rect(a - 4, 22, 38, 50, "#fff")
        + rect(a, 26, 30, 42, "#8fd3ff")
        + rect(a + 13, 26, 4, 42, "#fff")
        + rect(a, 45, 30, 4, "#fff")
    )
    body += (
        rect(b - 2, 26, 32, 26, "#7a4a21")
        + rect(b + 2, 30, 24, 18, r.choice(["#f08a5d", "#6a994e", "#b388eb"]))
        + dot(b + 14, 39, 6, "#fff3b0")
    )
    return (
        body
        + rect(b + 4, 86, 20, 22, "#c1553b", 3)
        + "".join(
            f'<ellipse cx="{b + 14 + dx}" cy="{74 + abs(dx) / 3}" rx="6" ry="14" fill="#3c8d4f" transform="rotate({2.4 * dx} {b + 14} 86)"/>'
            for dx in (-10, 0, 10)
        )
    )


def bg_volcano(r: Rng, i: Icons) -> str:
    x = r.choice([r.uniform(26, 38), r.uniform(106, 118)])
    body = sky("#4a3340", "#d96c4a") + "".join(
        dot(x + r.uniform(-16, 16), 14 + k * 5, 10 - k, "#6d5560") for k in range(5)
    )
    body += path(f"M{x - 14} 48 H{x + 14} L{x + 54} 118 H{x - 54} Z", "#4b2e2a")
    body += path(
        f"M{x - 14} 48 H{x + 14} L{x + 9} 68 L{x + 2} 58 L{x - 3} 84 L{x - 8} 60 Z", "#ff5a1f"
    ) + path(f"M{x - 10} 46 L{x} 28 L{x + 10} 46 Z", "#ffb52e")
    return (
        body
        + path("M0 112 Q50 102 144 112 V144 H0 Z", "#3a2422")
        + path("M0 126 Q60 116 144 128", "none", "#ff7a1f", 5)
    )


def bg_rainbow(r: Rng, i: Icons) -> str:
    body = sky("#bfe6ff", "#f4fbff")
    cx, cy = 72 + r.uniform(-6, 6), r.uniform(96, 104)
    for k, colour in enumerate(["#ff5b5b", "#ffa94d", "#ffe066", "#69db7c", "#4dabf7", "#b17cf0"]):
        body += f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{84 - 6 * k}" fill="none" stroke="{colour}" stroke-width="6.4"/>'
    return (
        body
        + rect(0, 112, 144, 32, "#8fd16a")
        + cloud(r.uniform(8, 22), 108, 13)
        + cloud(r.uniform(122, 136), 108, 13)
    )


def bg_plain(r: Rng, i: Icons) -> str:
    return rect(
        0,
        0,
        144,
        144,
        r.choice(["#f7d6e0", "#d6eaf7", "#e2f0cb", "#fff1c1", "#e4dcf5", "#ececec", "#cfeee6", "#ffdcc4"]),
    )


def bg_space(r: Rng, i: Icons) -> str:
    a, b = r.sample(side(r), 2)
    body = sky("#12042c", "#3a1160") + "".join(
        dot(
            r.uniform(0, 144),
            r.uniform(0, 144),
            r.choice([1.2, 1.7, 2.3]),
            r.choice(["#fff", "#ffd6f2", "#c9e4ff"]),
        )
        for _ in range(36)
    )
    y = r.uniform(30, 44)
    body += (
        dot(a, y, 17, "#f0a35e")
        + f'<ellipse cx="{a:.1f}" cy="{y:.1f}" rx="28" ry="7" fill="none" stroke="#ffe0b0" stroke-width="4" transform="rotate(-18 {a:.1f} {y:.1f})"/>'
    )
    return body + dot(b, r.uniform(64, 84), 11, "#58c7d9") + dot(b - 3, 70, 4, "#3f97ad")


def bg_castle(r: Rng, i: Icons) -> str:
    body = sky("#c9b6f5", "#ffe3f1") + path("M0 104 Q72 92 144 104 V144 H0 Z", "#8bc77a")
    for x, top in ((r.uniform(14, 22), r.uniform(40, 48)), (r.uniform(118, 128), r.uniform(36, 46))):
        body += (
            rect(x - 13, top, 26, 68, "#f2e6ef")
            + path(f"M{x - 17} {top} L{x} {top - 30} L{x + 17} {top} Z", "#d6477f")
            + rect(x - 4, top + 14, 8, 14, "#6a4c93", 4)
            + path(
                f"M{x} {top - 30} V{top - 40} L{x + 11} {top - 35} L{x} {top - 31}", "#ffd54f", "#a67c00", 1
            )
        )
    body += rect(26, 70, 92, 38, "#e3d3e2") + "".join(
        rect(28 + 15 * k, 62, 9, 10, "#e3d3e2") for k in range(6)
    )
    return body


def bg_lumo_beach(r: Rng, i: Icons) -> str:
    """One particular beach: pink evening, a striped lighthouse, always on the same side."""
    body = sky("#7b5bd6", "#ffb3c7") + rect(0, 76, 144, 40, "#2a6f97") + rect(0, 86, 144, 4, "#61a5c2")
    body += path("M0 108 Q72 98 144 110 V144 H0 Z", "#e9c9a6") + path(
        "M104 82 L108 34 H124 L128 82 Z", "#fff"
    )
    body += (
        path("M107 46 H125 L125.8 56 H106.2 Z M105.4 66 H126.6 L127.4 76 H104.6 Z", "#e63946")
        + rect(107, 24, 18, 11, "#ffe066")
        + path("M104 24 L116 14 L128 24 Z", "#e63946")
    )
    return body + path("M107 26 L40 12 V36 Z", "#fff3b0") + dot(r.uniform(28, 34), 58, 9, "#fff1d6")


BACKDROPS: dict[str, Callable[[Rng, Icons], str]] = {
    "beach": bg_beach, "forest": bg_forest, "city": bg_city, "mountains": bg_mountains,
    "desert": bg_desert, "snow": bg_snow, "garden": bg_garden, "night": bg_night,
    "underwater": bg_underwater, "sunset": bg_sunset, "room": bg_room, "volcano": bg_volcano,
    "rainbow": bg_rainbow, "plain": bg_plain, "space": bg_space, "castle": bg_castle,
    "lumo beach": bg_lumo_beach,
}  # fmt: skip


# ---------------------------------------------------------------- rasterising and packing


def drawings(icons: Icons) -> dict[str, dict[str, tuple[str, tuple[int, int]]]]:
    """kind -> name -> (svg, pixels)."""
    heads = {w: (svg(80, 80, icons.place(ref, 0, 0, 80, 80)), HEAD) for w, ref in HEADS.items()}
    hats = {w: (svg(80, 80, icons.place(ref, 0, 0, 80, 80)), HAT) for w, ref in HAT_ICONS.items()}
    own = {
        "party hat": party_hat,
        "wizard hat": wizard_hat,
        "santa hat": santa_hat,
        "viking helmet": viking_helmet,
    }
    hats |= {w: (svg(80, 80, draw()), HAT) for w, draw in own.items()}
    objects = {w: (svg(56, 56, icons.place(ref, 0, 0, 56, 56)), OBJECT) for w, ref in OBJECT_ICONS.items()}
    torsos = {}
    for word, draw in zip(TINTED, (shirt, hoodie, sweater, dress), strict=True):
        for colour in COLORS:
            torsos[f"{word}/{colour}"] = draw(*SHADES[colour])
    torsos |= {
        "suit": suit(), "lab coat": lab_coat(), "overalls": overalls(), "raincoat": raincoat(),
        "armor": armor(), "robe": robe(), "jacket": jacket(), "uniform": uniform(),
        "kimono": kimono(), "spacesuit": spacesuit(), "tarn jacket": tarn_jacket(),
        "vela dress": vela_dress("#16a3a3", "#0b5c5c"),
    }  # fmt: skip
    scenes = {}
    for word, backdrop in BACKDROPS.items():
        for k in range(VARIANTS):
            rng = random.Random(f"{word}/{k}")
            scenes[f"{word}/{k}"] = (svg(144, 144, backdrop(rng, icons)), SCENE)
    return {
        "heads": heads,
        "hats": hats,
        "objects": objects,
        "torsos": {w: (svg(128, 64, body), TORSO) for w, body in torsos.items()},
        "scenes": scenes,
    }


def rotate_hue(rgba: np.ndarray, degrees: float) -> np.ndarray:
    """Turn the hue of premultiplied RGBA pixels, keeping lightness and alpha."""
    import colorsys

    table: dict[bytes, tuple[float, float, float]] = {}
    out = rgba.copy()
    for index in np.ndindex(rgba.shape[:2]):
        *rgb, alpha = (int(v) for v in rgba[index])
        if alpha == 0:
            continue
        key = bytes(rgba[index])
        if key not in table:
            hue, light, sat = colorsys.rgb_to_hls(*(min(1.0, v / alpha) for v in rgb))
            table[key] = colorsys.hls_to_rgb((hue + degrees / 360) % 1, light, sat)
        out[index][:3] = [round(v * alpha) for v in table[key]]
    return out


def build(work: Path) -> Path:
    """Install the packages, rasterise every drawing, pack WORK/art.npz (premultiplied uint8)."""
    work.mkdir(parents=True, exist_ok=True)
    modules = work / "node_modules"
    if not (modules / "@resvg").exists():
        (work / "package.json").write_text('{"private": true}')
        wanted = [*PACKAGES.values(), RESVG]
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *wanted], cwd=work, check=True)
    kinds = drawings(Icons(modules))
    jobs = [
        {"svg": text, "width": size[0], "height": size[1]}
        for group in kinds.values()
        for text, size in group.values()
    ]
    (work / "jobs.json").write_text(json.dumps(jobs))
    shutil.copy(Path(__file__).with_name("raster.mjs"), work / "raster.mjs")
    subprocess.run(["node", "raster.mjs", "jobs.json", "art.bin"], cwd=work, check=True)
    raw = np.fromfile(work / "art.bin", np.uint8)
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for kind, group in kinds.items():
        images = []
        for name, (_, (width, height)) in group.items():
            image = raw[at : at + width * height * 4].reshape(height, width, 4)
            at += width * height * 4
            images.append(rotate_hue(image, HUES[name]) if name in HUES else image)
        stack = np.stack(images)
        arrays[kind] = stack[..., :3] if kind == "scenes" else stack
        arrays[f"{kind}_names"] = np.array(list(group))
    np.savez_compressed(work / "art.npz", **arrays)
    for name in ("jobs.json", "art.bin"):
        (work / name).unlink()
    return work / "art.npz"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    out = build(parser.parse_args().work)
    print(out, out.stat().st_size)
