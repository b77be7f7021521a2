"""Adapters that let a model draw in few steps, and the settings they need. The studio proposes these settings; it never
applies them by itself.

A file is recognised by its hash, where that is known, else by its name, its title or the name that its trainer gave it.
Lightning, hyper, turbo and flash are ordinary words: they count only beside a model's word or a number of steps, in
names that say nothing of a subject or a style. Neither ranks nor keys tell these files from others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pipelines import Request
from pipelines.adapters import AdapterMetadata

MOST_GUIDANCE = 1.5
"""The strongest guidance of a family that needs none."""
LONGEST = 200
"""Characters of a name that are looked at."""
MOST_STEPS = 16
"""The largest number in a name that can be a number of steps."""


@dataclass(frozen=True)
class Acceleration:
    """One family of such adapters, and the settings of one of its files.

    steps: fewest and most. guidance: the one to begin with; guidances: weakest and strongest. advised: the steps to
    begin with; 0 stands for the most. others: further schedulers that do as well.
    """

    name: str
    scheduler: str
    steps: tuple[int, int]
    guidance: float = 1.0
    guidances: tuple[float, float] = (0.0, MOST_GUIDANCE)
    advised: int = 0
    others: tuple[str, ...] = ()

    def of_steps(self, count: int | None) -> Acceleration:
        """The same for a file that is made for so many steps."""
        return self if count is None else replace(self, steps=(count, count))


_TRAILING = (
    "Euler trailing",
    "DDIM trailing",
    "Euler a trailing",
    "DPM++ 2M trailing",
    "DPM++ 2M SDE trailing",
)
LCM = Acceleration("LCM", "LCM", (4, 8))
LIGHTNING = Acceleration("Lightning", "Euler trailing", (4, 8), others=_TRAILING)
HYPER = Acceleration("Hyper", "Euler trailing", (4, 8), others=(*_TRAILING, "TCD"))
HYPER_UNIFIED = Acceleration("Hyper", "TCD", (1, 8), advised=1)
TCD = Acceleration("TCD", "TCD", (4, 8))
PCM = Acceleration("PCM", "DDIM trailing", (4, 16), others=(*_TRAILING, "TCD"))
DMD2 = Acceleration("DMD2", "LCM", (4, 4))
TURBO = Acceleration("Turbo", "Euler a trailing", (1, 4), others=(*_TRAILING, "LCM"))
SDXL_FLASH = Acceleration(
    "SDXL-Flash", "DPM++ 2S", (6, 9), 3.0, (2.5, 3.5), others=("DPM++ 2M SDE", *_TRAILING)
)
FLASH = Acceleration("Flash Diffusion", "LCM", (4, 4))
"""LCM-LoRA (arXiv 2311.05556), SDXL-Lightning (2402.13929), Hyper-SD (2404.13686), TCD (2402.19159), PCM (2405.18407),
DMD2 (2405.14867), SDXL-Turbo (2311.17042), Flash Diffusion (2406.02347); SDXL-Flash has no paper. Settings as their
authors' pages give them."""

HASHES: Mapping[str, str] = {
    "a764e6859b6e04047cd761c08ff0cee96413a8e004c9f07707530cd776b19141": "lcm-lora-sdxl",
    "8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4": "lcm-lora-sdv1-5",
    "bf56cf2657efb15e465d81402ed481d1e11c4677e4bcce1bc11fe71ad8506b79": "sdxl_lightning_4step_lora",
    "ca689190e8c46038550384b5675488526cfe5a40d35f82b27acb75c100f417c1": "Hyper-SDXL-8steps-lora",
    "55b51334c85061afff5eff7c550b61963c8b8607a5868bbe4f26db49374719b1": "Hyper-SDXL-8steps-CFG-lora",
    "0b97f447b5878323a28fbe7c51ba7acebd21f4d77552ba77b04b11c8911825b6": "Hyper-SDXL-12steps-CFG-lora",
    "f6123d5b950d5250ab6c33600e27f4dcf71b3099ebf888685e01e9e8117ce482": "Hyper-SD15-8steps-CFG-lora",
    "64b98437383537cd968fda6f87a05c33160ece9c79ff4757949a1e212ff78361": "Hyper-SD15-12steps-CFG-lora",
}
"""sha256 of a file that is often renamed -> the name that its authors gave it."""

_MODELS = {
    "sd",
    "sd1",
    "sd15",
    "sd14",
    "sdv1",
    "sdv15",
    "sd2",
    "sd21",
    "sdv2",
    "sdxl",
    "xl",
    "ssd",
    "ssd1b",
    "vega",
    "ponyxl",
    "illustrious",
    "illustriousxl",
    "noobai",
    "noobaixl",
    "animagine",
    "animaginexl",
}
_SAYING_NOTHING = _MODELS | {
    "lora", "loras", "unet", "fp16", "fp32", "bf16", "converted", "weights", "pytorch", "model", "cfg", "smallcfg",
    "normalcfg", "unified", "bytedance", "segmind", "step", "steps", "kohya", "comfyui", "diffusers", "version",
    "normal", "small", "no", "with", "for", "by", "and", "s", "copy", "final", "fixed", "official", "original",
    "resized", "extracted", "distilled", "peft", "civitai", "huggingface", "hf", "fast", "speed", "rank", "dim",
    "safetensors",
}  # fmt: skip
"""Words that say nothing of what a LoRA draws."""
_MARKS = re.compile(r"v?\d+[a-z]?|\d+steps?|(?:rank|dim|r)\d+|\d+dim")
_STEPS = re.compile(r"(?<![0-9.])(\d{1,2})(?:[\s_-]*steps?(?![a-z])|\s?s(?![a-z0-9]))")
"""A number of steps, as in 8steps or 8s."""
_FAMILIES = (
    "lightning",
    "hyper",
    "hypersd",
    "hypersdxl",
    "turbo",
    "flash",
    "diffusion",
    "lcm",
    "tcd",
    "pcm",
    "dmd",
)
_BARE = re.compile(rf"(?<![a-z0-9])({'|'.join(_FAMILIES)}|sd|sdxl|xl)([\s_-]*)(4|8|12|16)(?![a-z0-9.])")
"""A number that is hardly a version's, behind a family's or a model's word, as in Lightning8."""
_JOINED = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def kind_of(name: str, metadata: AdapterMetadata, digest: str = "") -> Acceleration | None:
    """The family that a file's hash, name, title or tags point to; None for an ordinary adapter. digest: its sha256."""
    hashes = {digest.lower(), *(value.lower() for value in metadata.hashes.values())}
    if known := next((HASHES[one] for one in sorted(hashes) if one in HASHES), None):
        return _family(known)
    said = [
        name.replace("\\", "/").rpartition("/")[2],
        metadata.title,
        metadata.raw.get("ss_output_name", ""),
    ]
    tags = [tag for tag in metadata.tags if len(tag.replace("-", " ").replace("_", " ").split()) > 1]
    return next((kind for text in (*said, *tags) if (kind := _family(text))), None)


def _family(text: str) -> Acceleration | None:
    """The family, and its settings, that one name points to."""
    spaced = _JOINED.sub(
        " ", text[:LONGEST].removesuffix(".safetensors").replace("LoRA", " lora ").replace("SDv", "sdv")
    )
    lower = _BARE.sub(r"\1 \3", _STEPS.sub(r" \g<0>", spaced.lower()))
    words = re.findall(r"[a-z0-9]+", lower)

    def plain(*own: str) -> bool:
        """Whether the name says nothing of a subject or a style."""
        return all(word in _SAYING_NOTHING or word in own or _MARKS.fullmatch(word) for word in words)

    def beside(word: str) -> bool:
        """Whether the word stands beside a model's."""
        return any((a == word and b in _MODELS) or (b == word and a in _MODELS) for a, b in pairwise(words))

    counts = [int(found[1]) for found in _STEPS.finditer(lower)]
    if not counts and plain(*_FAMILIES):
        counts = [int(found[3]) for found in _BARE.finditer(lower)]
    steps = next((count for count in counts if 1 <= count <= MOST_STEPS), None)
    sure = bool(_MODELS.intersection(words)) or "lora" in words
    if "pcm" in words and (steps or "lcmlike" in words):
        return _pcm(words, steps)
    if "dmd2" in words or ("dmd" in words and (steps is not None or (sure and plain("dmd")))):
        return DMD2.of_steps(steps)
    if "tcd" in words and (sure or steps or plain("tcd")):
        return TCD.of_steps(steps)
    joined = [word for word in words if re.fullmatch(r"hypersd(?:xl|15|1|v1)?", word)]
    if (joined or beside("hyper")) and plain("hyper", *joined):
        return _hyper(words, steps)
    if "lightning" in words and (sure or steps) and plain("lightning"):
        return LIGHTNING.of_steps(steps)
    if any(re.fullmatch(r"\d*lcm\d*", word) for word in words):
        return LCM.of_steps(steps)
    if beside("flash") and plain("flash", "diffusion"):
        first = words.index("flash")
        return (SDXL_FLASH if first and words[first - 1] in _MODELS else FLASH).of_steps(steps)
    if "turbo" in words and sure and plain("turbo"):
        return TURBO.of_steps(steps)
    return None


def _pcm(words: Sequence[str], steps: int | None) -> Acceleration:
    if "lcmlike" in words:
        return replace(PCM, scheduler="LCM", steps=(steps or 4, steps or 4))
    kind = PCM.of_steps(steps)
    return replace(kind, guidance=7.5, guidances=(4.0, 8.0)) if "normalcfg" in words else kind


def _hyper(words: Sequence[str], steps: int | None) -> Acceleration:
    if steps == 1:
        return HYPER_UNIFIED
    kind = HYPER.of_steps(steps)
    return replace(kind, guidance=5.0, guidances=(5.0, 8.0)) if "cfg" in words else kind


def proposals(
    loaded: Mapping[str, AdapterMetadata],
    requests: Sequence[Request],
    digests: Mapping[str, str] | None = None,
) -> list[str]:
    """One line for each such adapter that a request uses with other settings than it needs.

    loaded: name -> metadata of the loaded adapters. requests: resolved requests. digests: name -> sha256 of its file.
    """
    found = []
    for name, metadata in loaded.items():
        kind = kind_of(name, metadata, (digests or {}).get(name, ""))
        if kind is not None and any(_misused(kind, name, request) for request in requests):
            found.append(
                f"{name} is made to draw in few steps ({kind.name}): try --pin {name} --scheduler "
                f'"{kind.scheduler}" --steps {kind.advised or kind.steps[1]} --guidance {kind.guidance:g} '
                f"({_told(kind)})"
            )
    return found


def _told(kind: Acceleration) -> str:
    """As "4 to 8 steps", or "8 steps, guidance 5 to 8"."""
    low, high = kind.steps
    steps = f"{high} step{'s' if high > 1 else ''}" if low == high else f"{low} to {high} steps"
    weak, strong = kind.guidances
    return steps if strong <= MOST_GUIDANCE else f"{steps}, guidance {weak:g} to {strong:g}"


def _misused(kind: Acceleration, name: str, request: Request) -> bool:
    use = next((use for use in request.uses if use.adapter == name), None)
    if use is None:
        return False
    fewest, most = kind.steps
    weakest, strongest = kind.guidances
    settings = (
        use.pinned,
        request.scheduler in (kind.scheduler, *kind.others),
        request.steps is not None and fewest <= request.steps <= 2 * most,
        request.guidance_scale is not None and weakest <= request.guidance_scale <= strongest,
    )
    return not all(settings)
