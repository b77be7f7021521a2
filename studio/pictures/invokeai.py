"""How InvokeAI says how a picture was made. Three generations of PNG texts:

`Dream` (2022), a line of its command: "a fox [blurry]" -s 50 -S 7 -W 512 -H 512 -C 7.5 -A k_lms
`sd-metadata` (2.x), JSON: {"model_weights", "image": {"prompt": [{"prompt", "weight"}], "steps", "cfg_scale", …}}
`invokeai_metadata` (from 3 on), JSON: {"positive_prompt", "loras": [{"model": {"name"}, "weight"}], …}

Words in square brackets are a negative prompt in the first two. `(a fox)1.3` and `fox++` are weights in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from studio.pictures.foreign import Foreign
from studio.pictures.loras import stem
from studio.pictures.numbers import real
from studio.pictures.taking import Taking

PROGRAM = "InvokeAI"
DREAM, META, NEW = "Dream", "sd-metadata", "invokeai_metadata"
LONGEST = 40_000
"""Most characters of a line of the command."""
CALLS = "its prompt uses .and(), .blend() or .swap() of InvokeAI, which are words here: write it anew"
_DREAM = re.compile(r'\s*"(?P<prompt>.*)"(?P<rest>[^"]*)', re.DOTALL)
_FLAG = re.compile(
    r"(?<!\S)(?:-(?P<near>[sSWHCf])(?P<number>[0-9.]+)|-(?P<by>[Am])(?P<name>k_\w+|ddim|plms)"
    r"|--?(?P<flag>[a-zA-Z_]+)(?:[= ]\s*(?P<value>[^\s-]\S*|-[0-9.]+))?)"
)
"""A flag of the command; its first versions had no space behind it."""
_FLAGS = {
    "s": "steps", "S": "seed", "W": "width", "H": "height", "C": "cfg_scale", "A": "sampler", "f": "strength",
    "m": "sampler", "I": "init_img", "steps": "steps", "seed": "seed", "width": "width", "height": "height",
    "cfg_scale": "cfg_scale", "sampler": "sampler", "strength": "strength", "init_img": "init_img",
}  # fmt: skip
DEEPEST = 50
"""Deepest nesting of brackets."""
_CALLS = re.compile(r"\)\s*\.(?:and|blend|swap)\\?\(|\)\s*\.(?:and|blend)\b|\.swap\\?\(")
"""Calls in a prompt, also with their brackets escaped."""
_NOTHING = ("app_version", "app_id", "generation_mode", "rand_device", "type", "model_id", "model", "postprocessing",
            "_version", "created_by", "n", "g", "G_fidelity", "fnformat", "metadata_version")  # fmt: skip
_TRIGGER = re.compile(r"<([\w.-]{1,100})>")
"""How a prompt names an embedding."""
_NEGATIVE = re.compile(r"(?<!\s)\s*+\[([^\[\]]*+)\]")
"""Blanks are tried only from the first one, so that no text takes quadratic time."""
_BRACKET = re.compile(r"\\.|[()]", re.DOTALL)
_WEIGHT = re.compile(r"(?P<weight>[0-9]{0,9}\.?[0-9]{1,9}|\+{1,9}|-{1,9})(?![\w.])")
_SIGNS = re.compile(r"(?<![\w(])(?P<words>[^\W\d_][\w']{0,80})(?P<weight>\+{1,9}|-{2,9})(?![\w+-])")


def read(texts: Mapping[str, str], objects: Mapping[str, Any]) -> Foreign | None:
    """What the texts say; None where they are not InvokeAI's. objects: the texts that are objects of JSON."""
    new, old = objects.get(NEW), objects.get(META)
    if isinstance(new, Mapping):
        return _new(new)
    if isinstance(old, Mapping):
        return _old(old)
    return _dream(texts[DREAM]) if len(texts.get(DREAM, "")) in range(1, LONGEST) else None


def _new(said: Mapping[str, Any]) -> Foreign:
    mode = said.get("generation_mode")
    taking = Taking(said)
    values = taking.values()
    for name in ("prompt", "negative_prompt"):
        style = taking.text(f"{'positive' if name == 'prompt' else 'negative'}_style_prompt")
        text = values[name] or ""
        if style and style.strip() and style.strip() != text.strip():
            text = f"{text}, {style}" if text else style
        values[name] = weighted(text) if text else None
    values["prompt"] = values["prompt"] or ""
    values["guidance_rescale"] = taking.real("cfg_rescale_multiplier")
    values |= taking.clip_skip("a1111", first=0)
    model = said.get("model")
    digest = model.get("hash") if isinstance(model, Mapping) else None
    taking.loras.take(taking.any("loras"))
    strength = taking.real("strength")
    start = taking.any("init_image") is not None or (isinstance(mode, str) and not mode.endswith("txt2img"))
    if start and strength is not None:
        values["strength"] = strength
    name = taking.model()
    taking.pass_over(*_NOTHING)
    return _foreign(taking, values, name, digest, start)


def _old(said: Mapping[str, Any]) -> Foreign | None:
    image = said.get("image")
    if not isinstance(image, Mapping):
        return None
    taking = Taking({**{key: value for key, value in said.items() if key != "image"}, **image})
    prompt = taking.any("prompt")
    words: list[str] = []
    for one in prompt if isinstance(prompt, list) else [prompt]:
        text = one.get("prompt") if isinstance(one, Mapping) else one
        weight = real(one.get("weight", 1)) if isinstance(one, Mapping) else 1.0
        if not isinstance(text, str):
            taking.unread["prompt"] = "it must be text"
        else:
            words.append(text if weight in (None, 1.0) else f"{text} :{weight:g}")
    values = taking.values()
    values["prompt"], values["negative_prompt"] = _parted(" AND ".join(words))
    start = image.get("type") == "img2img" or taking.any("init_image_path", "init_img") is not None
    strength = taking.real("strength")
    if start and strength is not None:
        values["strength"] = strength
    name = taking.text("model_weights") or ""
    digest = taking.text("model_hash")
    taking.pass_over(*_NOTHING)
    return _foreign(taking, values, name, digest, start)


def _dream(line: str) -> Foreign | None:
    match = _DREAM.fullmatch(line)
    if match is None:
        return None
    said: dict[str, Any] = {}
    for found in _FLAG.finditer(match["rest"]):
        flag = found["near"] or found["by"] or found["flag"]
        value = found["number"] or found["name"] or found["value"]
        said.setdefault(_FLAGS.get(flag, f"-{flag}"), value or True)
    if not {"steps", "seed", "sampler", "cfg_scale"} & said.keys():
        return None
    taking = Taking(said)
    values = taking.values()
    values["prompt"], values["negative_prompt"] = _parted(match["prompt"].replace('\\"', '"'))
    start = taking.any("init_img") is not None
    strength = taking.real("strength")
    if start and strength is not None:
        values["strength"] = strength
    return _foreign(taking, values, "", None, start)


def _foreign(taking: Taking, values: dict[str, Any], model: str, digest: object, start: bool) -> Foreign:
    vae = taking.vae()
    return Foreign(
        PROGRAM,
        values,
        tuple(taking.loras.wanted),
        stem(model),
        digest.rpartition(":")[2] if isinstance(digest, str) else "",
        notes=taking.notes(
            [CALLS] if _CALLS.search(f"{values['prompt']} {values['negative_prompt']}") else ()
        ),
        hashes=taking.loras.hashes,
        from_picture=start,
        vae=vae,
    )


def _parted(text: str) -> tuple[str, str | None]:
    """A prompt of the first generations, and the words in its square brackets, which are a negative prompt."""
    negative = _NEGATIVE.findall(text)
    positive = _NEGATIVE.sub("", text).strip(" ,")
    return weighted(positive), weighted(", ".join(one.strip() for one in negative if one.strip())) or None


def weighted(text: str) -> str:
    """The prompt with InvokeAI's weights as we write them. Its round brackets alone weigh nothing, and its square ones
    are words. A prompt with calls stays as it is written, with all brackets escaped."""
    text = _TRIGGER.sub(r"embedding:\1", text)
    if _CALLS.search(text):
        return re.sub(r"(?<!\\)[\[\]()]", r"\\\g<0>", text)
    text = re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", text)
    open_: list[list[str]] = [[]]
    place = 0
    for sign in _BRACKET.finditer(text):
        if sign.start() < place:  # within a weight
            continue
        open_[-1].append(_SIGNS.sub(_rewritten, text[place : sign.start()]))
        place = sign.end()
        if sign[0] == "(" and len(open_) <= DEEPEST:
            open_.append([])
        elif sign[0] == ")" and len(open_) > 1:
            words = "".join(open_.pop())
            weight = _WEIGHT.match(text, place)
            open_[-1].append(f"({words}:{_factor(weight['weight']):.4g})" if weight else words)
            place = weight.end() if weight else place
        else:
            open_[-1].append(sign[0] if len(sign[0]) > 1 else f"\\{sign[0]}")
    open_[-1].append(_SIGNS.sub(_rewritten, text[place:]))
    return "\\(".join("".join(words) for words in open_)


def _rewritten(match: re.Match[str]) -> str:
    return f"({match['words']}:{_factor(match['weight']):.4g})"


def _factor(said: str) -> float:
    return 1.1 ** len(said) if said[0] == "+" else 0.9 ** len(said) if said[0] == "-" else float(said)
