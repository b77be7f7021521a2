"""The embedded world: sample what a picture shows, lay it out, draw it, describe it.

Everything works on batches of attribute rows, one integer a part (`PARTS`), -1 for "none":

    attrs = sample(1000, rng)                          # [n, 7]
    pictures = World(art, "cuda").render(attrs, gen)   # [n, 3, 128, 128] in 0..1
    text = caption(attrs[0], rng)

The renderer composites at twice the size and averages down, so edges are clean.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from vocab import (
    BACKGROUNDS,
    BASE,
    COLORS,
    FILLERS,
    INSTANCES,
    NEW,
    PLACES,
    SYNONYMS,
    TINTED,
    Spec,
    held_out_pairs,
)

PARTS = ("character", "clothes", "color", "hat", "object", "background", "style")
SIZE = 128
SUPER = 2  # supersampling


def words(part: str) -> list[str]:
    """All names of a part: the base's, the new words, the instances, in this order."""
    if part == "color":
        return list(COLORS)
    return [*BASE[part], *NEW[part], *INSTANCES[part]]


WORDS = {part: words(part) for part in PARTS}
INDEX = {part: {w: k for k, w in enumerate(WORDS[part])} for part in PARTS}
N_BASE = {part: len(COLORS if part == "color" else BASE[part]) for part in PARTS}
CHAR, CLOTHES, COLOR, HAT, OBJECT, BACKGROUND, STYLE = range(7)


def to_row(spec: Spec) -> list[int]:
    return [-1 if (w := getattr(spec, p)) is None else INDEX[p][w] for p in PARTS]


def to_spec(row: Sequence[int]) -> Spec:
    return Spec(**{p: None if k < 0 else WORDS[p][k] for p, k in zip(PARTS, map(int, row), strict=True)})  # type: ignore[arg-type]


def _held_out_table(part: str) -> np.ndarray:
    """[characters, words]: True where the pair never appears in the base's training."""
    table = np.zeros((len(WORDS["character"]), len(WORDS[part])), bool)
    for c, character in enumerate(WORDS["character"]):
        for w, word in enumerate(WORDS[part]):
            table[c, w] = bool(
                held_out_pairs(Spec(**{"background": None, "character": character, part: word}))
            )  # type: ignore[arg-type]
    return table


_TABLES: dict[str, np.ndarray] = {}


def held_out(attrs: np.ndarray) -> np.ndarray:
    """[n]: True where a row contains a held-out pair."""
    out = np.zeros(len(attrs), bool)
    for column, part in (
        (CLOTHES, "clothes"),
        (HAT, "hat"),
        (OBJECT, "object"),
        (BACKGROUND, "background"),
        (STYLE, "style"),
    ):
        if part not in _TABLES:
            _TABLES[part] = _held_out_table(part)
        both = (attrs[:, CHAR] >= 0) & (attrs[:, column] >= 0)
        out |= both & _TABLES[part][attrs[:, CHAR], attrs[:, column]]
    return out


def draw_rows(n: int, rng: np.random.Generator, everything: bool = False) -> np.ndarray:
    """[n, 7] rows of the world, held-out pairs included.

    `everything` also draws the new words and the instances (for the scorer, never the base).
    """
    count = {p: len(WORDS[p]) if everything else N_BASE[p] for p in PARTS}
    rows = np.stack([rng.integers(0, count[p], n) for p in PARTS], 1)
    kind = rng.random(n)
    rows[(kind < 0.05), CHAR] = -1  # 2 % scenery alone, 3 % an object alone
    no_character = rows[:, CHAR] < 0
    rows[no_character, CLOTHES] = -1
    rows[no_character, HAT] = -1
    rows[kind < 0.02, OBJECT] = -1
    person = ~no_character
    rows[person & (rng.random(n) < 0.16), CLOTHES] = -1
    rows[person & (rng.random(n) < 0.42), HAT] = -1
    rows[person & (rng.random(n) < 0.32), OBJECT] = -1
    rows[rng.random(n) < 0.66, STYLE] = -1
    tinted = (rows[:, CLOTHES] >= 0) & (rows[:, CLOTHES] < len(TINTED))
    rows[~tinted, COLOR] = -1
    return rows


def sample(n: int, rng: np.random.Generator, only_held_out: bool = False) -> np.ndarray:
    """[n, 7] rows for training the base (or, on request, only rows with a held-out pair)."""
    parts: list[np.ndarray] = []
    have = 0
    while have < n:
        rows = draw_rows(max(1024, 2 * n), rng)
        rows = rows[held_out(rows) == only_held_out]
        parts.append(rows)
        have += len(rows)
    return np.concatenate(parts)[:n]


# ---------------------------------------------------------------- captions


def _say(word: str, rng: random.Random, synonyms: float) -> str:
    options = SYNONYMS.get(word)
    return rng.choice(options) if options and rng.random() < synonyms else word


def _a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _clothes(spec: Spec, rng: random.Random, synonyms: float, color: float) -> str:
    assert spec.clothes is not None
    noun = _say(spec.clothes, rng, synonyms)
    return f"{spec.color} {noun}" if spec.color and rng.random() < color else noun


def caption(
    row: Sequence[int],
    rng: random.Random,
    drop: float = 0.06,
    synonyms: float = 0.12,
    fillers: float = 0.2,
    color: float = 0.8,
) -> str:
    """One description: half of them sentences, half comma tags; parts are dropped at times.

    drop, synonyms, fillers: how often a part is left out, said by another word, or surrounded by idle ones.
    color: how often the colour of clothes is said.
    """
    spec = to_spec(row)
    parts: dict[str, str] = {}
    for part in ("character", "clothes", "hat", "object", "background", "style"):
        word = getattr(spec, part)
        if word is None or rng.random() < (drop * 0.4 if part == "character" else drop):
            continue
        parts[part] = _clothes(spec, rng, synonyms, color) if part == "clothes" else _say(word, rng, synonyms)
    if spec.style is None and rng.random() < 0.03:
        parts["style"] = "no style"
    if rng.random() < 0.5:
        return _sentence(spec, parts, rng, fillers)
    tags = list(parts.values())
    if rng.random() < 0.5:
        head, rest = tags[:1], tags[1:]
        rng.shuffle(rest)
        tags = head + rest
    if rng.random() < fillers:
        tags.insert(rng.choice([0, len(tags)]), " ".join(rng.sample(FILLERS, rng.choice([1, 1, 2]))))
    return ", ".join(tags)


def _sentence(spec: Spec, parts: dict[str, str], rng: random.Random, fillers: float) -> str:
    def article(noun: str) -> str:
        return noun if noun in ("sunglasses", "headphones", "overalls", "armor", "shades") else _a(noun)

    worn = [article(parts[p]) for p in ("clothes", "hat") if p in parts]
    if len(worn) == 2 and rng.random() < 0.3:
        worn.reverse()
    text = ""
    if "character" in parts:
        adjective = (
            rng.choice(["cute ", "little ", "happy ", "lovely "]) if rng.random() < fillers * 0.6 else ""
        )
        text = _a(adjective + parts["character"])
        if worn:
            text += rng.choice([" wearing ", " in ", " with ", " wearing "]) + " and ".join(worn)
        if "object" in parts:
            text += rng.choice([" holding ", " with ", ", holding ", " and "]) + _a(parts["object"])
    else:
        things = worn + ([_a(parts["object"])] if "object" in parts else [])
        text = " and ".join(things)
    if "background" in parts:
        place = (
            PLACES[spec.background]
            if parts["background"] == spec.background and rng.random() < 0.85
            else f"{parts['background']} background"
        )
        text = f"{text} {place}" if rng.random() < 0.85 and text else f"{place}, {text}".strip(", ")
    if "style" in parts:
        style = parts["style"]
        text += rng.choice(
            [f", {style} style", f" in {style} style", f", {style}", f", in the style of {style}"]
        )
    if rng.random() < fillers * 0.6:
        text = rng.choice(["a picture of ", "an illustration of ", "a drawing of ", "a portrait of "]) + text
    return text.strip(", ")


# ---------------------------------------------------------------- drawing

# Where things sit on a head: hat's base and eyes as fractions of the head's height from its top,
# the width that hats are fitted to as a fraction of the head's, and a sideways shift of the hat.
ANCHORS: dict[str, tuple[float, float, float, float]] = {
    "fox": (0.26, 0.52, 0.62, 0), "cat": (0.22, 0.46, 0.66, 0), "dog": (0.14, 0.44, 0.62, 0),
    "bear": (0.16, 0.47, 0.66, 0), "koala": (0.18, 0.48, 0.62, 0), "tiger": (0.15, 0.47, 0.66, 0),
    "lion": (0.16, 0.46, 0.66, 0), "cow": (0.20, 0.40, 0.62, 0), "pig": (0.15, 0.42, 0.66, 0),
    "frog": (0.20, 0.20, 0.66, 0), "monkey": (0.12, 0.45, 0.60, 0), "mouse": (0.26, 0.55, 0.55, 0),
    "rabbit": (0.46, 0.66, 0.72, 0), "wolf": (0.24, 0.48, 0.62, 0), "hamster": (0.14, 0.50, 0.66, 0),
    "unicorn": (0.22, 0.44, 0.55, 0.02), "dragon": (0.20, 0.32, 0.55, -0.05), "robot": (0.26, 0.50, 0.62, 0),
    "alien": (0.12, 0.48, 0.76, 0), "skeleton": (0.12, 0.50, 0.76, 0), "pumpkin": (0.22, 0.46, 0.62, 0),
    "clown": (0.13, 0.44, 0.62, 0), "horse": (0.18, 0.40, 0.55, -0.05), "moose": (0.40, 0.58, 0.50, 0),
    "panda": (0.14, 0.47, 0.66, 0), "raccoon": (0.20, 0.48, 0.62, 0), "nilo fox": (0.26, 0.50, 0.62, 0),
    "momo cat": (0.24, 0.50, 0.66, 0),
}  # fmt: skip
# Heads whose ears or antlers take much of their height are drawn larger.
GROWTH = {"rabbit": 1.28, "moose": 1.16, "unicorn": 1.06, "horse": 1.06}
# Hat: width in units of the fitted width, and the height above its own bottom where it rests.
HAT_FIT: dict[str, tuple[float, float]] = {
    "crown": (1.10, 0.06), "top hat": (1.22, 0.10), "straw hat": (1.65, 0.24), "cap": (1.30, 0.10),
    "party hat": (0.74, 0.05), "wizard hat": (1.36, 0.12), "santa hat": (1.25, 0.10),
    "viking helmet": (1.50, 0.06),
}  # fmt: skip


def _trim(sprites: np.ndarray) -> np.ndarray:
    """[n, 4] boxes (left, top, right, bottom) in fractions of each sprite's frame."""
    boxes = []
    for alpha in sprites[..., 3] > 24:
        ys, xs = np.where(alpha.any(1))[0], np.where(alpha.any(0))[0]
        h, w = alpha.shape
        boxes.append((xs[0] / w, ys[0] / h, (xs[-1] + 1) / w, (ys[-1] + 1) / h))
    return np.array(boxes, np.float32)


class World:
    """The sprites on one device, and the renderer."""

    def __init__(self, art: Path, device: str | torch.device = "cpu") -> None:
        data = np.load(art)
        self.device = torch.device(device)

        def bank(kind: str, names: Sequence[str]) -> Tensor:
            order = {str(n): k for k, n in enumerate(data[f"{kind}_names"])}
            stack = data[kind][[order[n] for n in names]]
            return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous().to(self.device)  # [n, c, h, w]

        torso_names = [f"{w}/{c}" for w in TINTED for c in COLORS] + WORDS["clothes"][len(TINTED) :]
        scene_names = [str(n) for n in data["scenes_names"]]
        self.variants = 1 + max(int(n.split("/")[1]) for n in scene_names)
        self.heads = bank("heads", WORDS["character"])
        self.hats = bank("hats", WORDS["hat"])
        self.objects = bank("objects", WORDS["object"])
        self.torsos = bank("torsos", torso_names)
        self.scenes = bank("scenes", [f"{w}/{k}" for w in WORDS["background"] for k in range(self.variants)])

        def boxes(sprites: Tensor) -> Tensor:
            return torch.from_numpy(_trim(sprites.permute(0, 2, 3, 1).cpu().numpy())).to(self.device)

        self.head_box, self.hat_box, self.object_box = (
            boxes(self.heads),
            boxes(self.hats),
            boxes(self.objects),
        )
        anchors = [ANCHORS[w] for w in WORDS["character"]]
        fits = [HAT_FIT.get(w, (0.0, 0.0)) for w in WORDS["hat"]]
        growth = [GROWTH.get(w, 1.0) for w in WORDS["character"]]
        self.growth = torch.tensor(growth, device=self.device)
        self.anchors = torch.tensor(anchors, device=self.device)
        self.hat_fit = torch.tensor(fits, device=self.device)

    def render(self, attrs: np.ndarray | Tensor, generator: torch.Generator, chunk: int = 512) -> Tensor:
        """[n, 7] rows -> [n, 3, 128, 128] pictures in 0..1, drawn `chunk` at a time."""
        rows = torch.as_tensor(attrs, device=self.device, dtype=torch.long)
        return torch.cat([self._render(r, generator) for r in rows.split(chunk)])

    def _render(self, a: Tensor, g: torch.Generator) -> Tensor:
        n = len(a)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=g, device=self.device)

        def flip(p: float = 0.5) -> Tensor:
            return torch.where(torch.rand(n, generator=g, device=self.device) < p, -1.0, 1.0)

        canvas = self._scene(a, uniform, flip)
        has_body, has_head = a[:, CLOTHES] >= 0, a[:, CHAR] >= 0
        shift = uniform(-5, 5)
        zero = torch.zeros(n, device=self.device)

        # torso
        tint = len(TINTED)
        torso = torch.where(
            a[:, CLOTHES] < tint,
            a[:, CLOTHES] * len(COLORS) + a[:, COLOR].clamp_min(0),
            tint * len(COLORS) + a[:, CLOTHES] - tint,
        )
        width = uniform(114, 122)
        bottom = uniform(129, 133)
        canvas = self._paste(
            canvas,
            self.torsos,
            torso,
            has_body,
            64 + shift,
            bottom - width / 4,
            width,
            width / 2,
            zero,
            zero + 1,
        )

        # head
        box = self.head_box[a[:, CHAR].clamp_min(0)]  # [n, 4]
        box_w, box_h = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        hatted = a[:, HAT] >= 0
        bare = torch.where(hatted, uniform(74, 80), uniform(84, 94))
        size = torch.where(has_body, uniform(64, 70), bare) * self.growth[a[:, CHAR].clamp_min(0)]
        frame = size / torch.maximum(box_w * 0.94, box_h)
        turn = uniform(-6, 6)
        cx = 64 + shift + uniform(-2, 2)
        chin = torch.where(has_body, uniform(90, 94), uniform(112, 120))
        cy = chin - size * box_h / torch.maximum(box_w * 0.94, box_h) / 2
        cy = torch.where(hatted, cy + 1.5, cy - 2)
        mirror = flip()
        offset_x, offset_y = (box[:, 0] + box[:, 2]) / 2 - 0.5, (box[:, 1] + box[:, 3]) / 2 - 0.5
        canvas = self._paste(
            canvas,
            self.heads,
            a[:, CHAR],
            has_head,
            cx - frame * offset_x * mirror,
            cy - frame * offset_y,
            frame,
            frame,
            turn,
            mirror,
        )
        canvas = self._hat(canvas, a, cx, cy, frame * box_w, frame * box_h, turn, mirror, uniform)

        # object: in a front corner, or alone and large
        alone = (a[:, CHAR] < 0) & (a[:, OBJECT] >= 0)
        side = flip()
        box = self.object_box[a[:, OBJECT].clamp_min(0)]
        extent = torch.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
        size = torch.where(alone, uniform(80, 96), uniform(48, 54)) / extent
        ox = torch.where(alone, 64 + 2 * shift, 64 + side * uniform(34, 38))
        oy = torch.where(alone, uniform(62, 72), uniform(94, 99))
        canvas = self._paste(
            canvas,
            self.objects,
            a[:, OBJECT],
            a[:, OBJECT] >= 0,
            ox,
            oy,
            size,
            size,
            uniform(-10, 10),
            flip(),
        )

        picture = F.avg_pool2d(canvas, SUPER)  # [n, 3, 128, 128]
        return self._styled(picture, a[:, STYLE]).clamp(0, 1)

    def _scene(self, a: Tensor, uniform, flip) -> Tensor:
        n = len(a)
        variant = (uniform(0, self.variants)).long().clamp_max(self.variants - 1)
        scenes = self.scenes[a[:, BACKGROUND] * self.variants + variant].float() / 255
        zoom = uniform(0.88, 0.98)
        theta = torch.zeros(n, 2, 3, device=self.device)
        # "lumo beach" is one place: its lighthouse keeps its side
        lumo = a[:, BACKGROUND] == INDEX["background"]["lumo beach"]
        theta[:, 0, 0] = zoom * torch.where(lumo, 1.0, flip())
        theta[:, 1, 1] = zoom
        theta[:, 0, 2] = (1 - zoom) * uniform(-1, 1)
        theta[:, 1, 2] = (1 - zoom) * uniform(-1, 1)
        grid = F.affine_grid(theta, [n, 3, SIZE * SUPER, SIZE * SUPER], align_corners=False)
        scene = F.grid_sample(scenes, grid, padding_mode="border", align_corners=False)
        return scene * uniform(0.95, 1.04)[:, None, None, None]

    def _paste(
        self,
        canvas: Tensor,
        bank: Tensor,
        index: Tensor,
        present: Tensor,
        cx: Tensor,
        cy: Tensor,
        width: Tensor,
        height: Tensor,
        degrees: Tensor,
        mirror: Tensor,
    ) -> Tensor:
        """Lay sprites over the canvas: centre, frame size (pixels of 128), turn, mirror (1 or -1)."""
        rows = present.nonzero()[:, 0]
        if len(rows) == 0:
            return canvas
        cx, cy, width, height, degrees, mirror = (v[rows] for v in (cx, cy, width, height, degrees, mirror))
        angle = torch.deg2rad(degrees)
        cos, sin = torch.cos(angle), torch.sin(angle)
        half = SIZE / 2
        theta = torch.stack(
            [
                torch.stack(
                    [
                        cos * SIZE / width * mirror,
                        sin * SIZE / width * mirror,
                        mirror * 2 / width * (cos * (half - cx) + sin * (half - cy)),
                    ],
                    -1,
                ),
                torch.stack(
                    [
                        -sin * SIZE / height,
                        cos * SIZE / height,
                        2 / height * (-sin * (half - cx) + cos * (half - cy)),
                    ],
                    -1,
                ),
            ],
            1,
        )  # [m, 2, 3]
        sprites = bank[index[rows]].float() / 255
        grid = F.affine_grid(theta, [len(rows), 4, SIZE * SUPER, SIZE * SUPER], align_corners=False)
        layer = F.grid_sample(sprites, grid, align_corners=False)  # premultiplied RGBA
        canvas = canvas.clone()
        canvas[rows] = layer[:, :3] + (1 - layer[:, 3:]) * canvas[rows]
        return canvas

    def _hat(
        self,
        canvas: Tensor,
        a: Tensor,
        cx: Tensor,
        cy: Tensor,
        head_w: Tensor,
        head_h: Tensor,
        turn: Tensor,
        mirror: Tensor,
        uniform,
    ) -> Tensor:
        names = WORDS["hat"]
        hat, char = a[:, HAT].clamp_min(0), a[:, CHAR].clamp_min(0)
        base, eyes, fitted, aside = self.anchors[char].unbind(1)
        fit, rest = self.hat_fit[hat].unbind(1)
        box = self.hat_box[hat]
        box_w, box_h = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
        glasses, bow, phones = (hat == names.index(w) for w in ("sunglasses", "bow", "headphones"))
        # all hats fit a width between the head's own and a typical one
        width = 0.5 * (head_w * fitted + 42 * head_h / 66)
        width = torch.where(
            glasses,
            1.28 * width,
            torch.where(bow, 0.95 * width, torch.where(phones, 1.10 * head_w, fit * width)),
        )
        width = width * uniform(0.96, 1.04)
        frame = width / box_w
        height = frame * box_h
        dy = (base - 0.5) * head_h - height * (0.5 - rest)  # offset of the hat's centre
        dy = torch.where(glasses, (eyes - 0.5) * head_h, dy)
        dy = torch.where(bow, (base - 0.5) * head_h - 0.08 * height, dy)
        dy = torch.where(phones, (eyes - 0.5) * head_h - 0.16 * height, dy)
        dx = aside * head_w * mirror + torch.where(bow, 0.22 * head_w * mirror, torch.zeros_like(dy))
        angle = torch.deg2rad(turn)
        x = cx + dx * torch.cos(angle) - dy * torch.sin(angle)
        y = cy + dx * torch.sin(angle) + dy * torch.cos(angle)
        # keep the top of tall hats inside the picture
        y = torch.maximum(y, height / 2 - 1)
        offset_x, offset_y = (box[:, 0] + box[:, 2]) / 2 - 0.5, (box[:, 1] + box[:, 3]) / 2 - 0.5
        present = (a[:, HAT] >= 0) & (a[:, CHAR] >= 0)
        return self._paste(
            canvas,
            self.hats,
            a[:, HAT],
            present,
            x - frame * offset_x * mirror,
            y - frame * offset_y,
            frame,
            frame,
            turn,
            mirror,
        )

    def _styled(self, picture: Tensor, style: Tensor) -> Tensor:
        out = picture.clone()
        for index in style.unique().tolist():
            if index >= 0:
                rows = style == index
                out[rows] = FILTERS[WORDS["style"][index]](picture[rows].clamp(0, 1))
        return out


# ---------------------------------------------------------------- style filters, [n, 3, 128, 128] -> same


def _gray(x: Tensor) -> Tensor:
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _blur(x: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device) / sigma) ** 2)
    taps = (taps / taps.sum()).to(x.dtype)
    c = x.shape[1]
    x = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    x = F.conv2d(x, taps[None, None, None, :].repeat(c, 1, 1, 1), groups=c)
    return F.conv2d(x, taps[None, None, :, None].repeat(c, 1, 1, 1), groups=c)


def _edges(x: Tensor, sigma: float = 1.0) -> Tensor:
    """[n, 1, h, w] outline strength in 0..1: the largest gradient over the channels."""
    s = F.pad(_blur(x, sigma), (1, 1, 1, 1), mode="replicate")
    dx, dy = s[..., 1:-1, 2:] - s[..., 1:-1, :-2], s[..., 2:, 1:-1] - s[..., :-2, 1:-1]
    return (dx.square() + dy.square()).sqrt().amax(1, keepdim=True)


def _rgb(x: Tensor, r: float, g: float, b: float) -> Tensor:
    return x.new_tensor([r, g, b])[None, :, None, None]


def _ramp(t: Tensor, stops: Sequence[tuple[float, float, float]]) -> Tensor:
    """Map 0..1 to colours, linearly between evenly spaced stops."""
    table = t.new_tensor(stops)
    at = t.clamp(0, 1) * (len(stops) - 1)
    low = at.floor().long().clamp_max(len(stops) - 2)
    mix = at - low
    colours = table[low[:, 0]] * (1 - mix[:, 0, ..., None]) + table[low[:, 0] + 1] * mix[:, 0, ..., None]
    return colours.permute(0, 3, 1, 2)


def pixel_art(x: Tensor) -> Tensor:
    small = F.avg_pool2d(x, 4)
    small = (0.5 + (small - 0.5) * 1.25).clamp(0, 1)
    return F.interpolate((small * 6).round() / 6, scale_factor=4, mode="nearest")


def _vignette(x: Tensor, strength: float) -> Tensor:
    axis = torch.linspace(-1, 1, SIZE, device=x.device)
    radius = axis[None, :] ** 2 + axis[:, None] ** 2
    return x * (1 - strength * (radius - 0.5).clamp_min(0))


def sepia(x: Tensor) -> Tensor:
    return _vignette(_ramp(_gray(x), [(0.16, 0.09, 0.04), (0.62, 0.43, 0.25), (0.98, 0.90, 0.74)]), 0.35)


def noir(x: Tensor) -> Tensor:
    t = _gray(x)
    t = ((t - 0.5) * 1.7 + 0.47).clamp(0, 1)
    return _vignette(t.expand_as(x), 0.45)


def neon(x: Tensor) -> Tensor:
    line = (_edges(x) * 2.2).clamp(0, 1)
    hue = _blur(x, 1.5)
    hue = (hue - hue.amin(1, keepdim=True)) / (hue.amax(1, keepdim=True) - hue.amin(1, keepdim=True) + 0.12)
    glow = _blur(line * hue, 2.0)
    return _rgb(x, 0.05, 0.02, 0.12) + 0.10 * x + line * (0.25 + 0.75 * hue) + 0.5 * glow


def comic(x: Tensor) -> Tensor:
    line = (_edges(x, 0.9) * 2.6 - 0.35).clamp(0, 1)
    gray = _gray(x)
    vivid = (gray + (x - gray) * 1.5).clamp(0, 1)
    flat = (vivid * 3).round() / 3
    return flat * (1 - line) + 0.04 * line


def blueprint(x: Tensor) -> Tensor:
    line = (_edges(x) * 2.0).clamp(0, 1)
    grid = torch.zeros(SIZE, device=x.device)
    grid[::16] = 1.0
    mesh = torch.maximum(grid[:, None], grid[None, :])[None, None]
    paper = _rgb(x, 0.10, 0.29, 0.62) * (0.85 + 0.3 * _gray(x)) + 0.07 * mesh
    return paper * (1 - line) + line * _rgb(x, 0.93, 0.97, 1.0)


def watercolor(x: Tensor) -> Tensor:
    soft = _blur(x, 0.8)
    gray = _gray(soft)
    wet = 1 - (1 - gray - (soft - gray) * 1.25) * 0.58
    pigment = (_edges(x, 1.1) * 1.6 - 0.1).clamp(0, 0.6)
    return wet * (1 - pigment) + pigment * soft * 0.7 + _rgb(x, 0.01, 0.0, -0.05)


def poster(x: Tensor) -> Tensor:
    """Four flat inks by lightness: navy, red, sky, cream."""
    t = _blur(_gray(x), 0.7)
    inks = x.new_tensor([(0.05, 0.16, 0.29), (0.84, 0.16, 0.18), (0.46, 0.68, 0.75), (0.98, 0.92, 0.74)])
    level = ((t - 0.30) * 14).sigmoid(), ((t - 0.52) * 14).sigmoid(), ((t - 0.76) * 14).sigmoid()
    out = inks[0][None, :, None, None].expand_as(x)
    for ink, mask in zip(inks[1:], level, strict=True):
        out = out * (1 - mask) + ink[None, :, None, None] * mask
    return out


def sketch(x: Tensor) -> Tensor:
    line = (_edges(x, 0.8) * 2.0).clamp(0, 0.9)
    shade = 0.16 * (1 - _blur(_gray(x), 1.2))
    return (_rgb(x, 0.97, 0.95, 0.91) - shade) * (1 - line) + 0.20 * line


def thermal(x: Tensor) -> Tensor:
    t = ((_blur(_gray(x), 0.8) - 0.5) * 1.25 + 0.5).clamp(0, 1)
    return _ramp(
        t, [(0.02, 0.0, 0.25), (0.45, 0.0, 0.62), (0.92, 0.20, 0.25), (1.0, 0.72, 0.1), (1.0, 1.0, 0.8)]
    )


def kelda(x: Tensor) -> Tensor:
    """One particular duotone: deep teal to peach."""
    return _ramp(_gray(x), [(0.02, 0.22, 0.26), (0.20, 0.55, 0.50), (1.0, 0.80, 0.66)])


FILTERS = {
    "pixel art": pixel_art, "sepia": sepia, "noir": noir, "neon": neon, "comic": comic,
    "blueprint": blueprint, "watercolor": watercolor, "poster": poster, "sketch": sketch,
    "thermal": thermal, "kelda duotone": kelda,
}  # fmt: skip


def sheet(pictures: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """[n, 3, h, w] in 0..1 -> one uint8 picture [H, W, 3]."""
    n, _, h, w = pictures.shape
    lines = -(-n // columns)
    out = np.zeros((lines * (h + gap) - gap, columns * (w + gap) - gap, 3), np.uint8)
    data = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for k in range(n):
        y, x = k // columns * (h + gap), k % columns * (w + gap)
        out[y : y + h, x : x + w] = data[k]
    return out


def save(picture: np.ndarray, path: Path) -> None:
    """As PNG with six bits a colour: the eye sees no difference, and the file is two fifths lighter."""
    from PIL import Image

    Image.fromarray(picture & 0xFC).save(path, optimize=True)


if __name__ == "__main__":
    import argparse

    from PIL import Image

    parser = argparse.ArgumentParser(description="Draw a contact sheet of the world.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = draw_rows(48, np.random.default_rng(args.seed), args.everything)
    pictures = World(args.work / "art.npz").render(rows, torch.Generator().manual_seed(args.seed))
    Image.fromarray(sheet(pictures, 8)).save(args.work / "world.png")
    for row in rows[:16]:
        print(caption(row, random.Random(int(row[0]))))
    assert len(BACKGROUNDS) == N_BASE["background"]
