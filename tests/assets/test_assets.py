"""What ships in assets/: sizes, origins, agreement with stock diffusers, and that pictures mean their prompts.

The judge of pictures is the shipped classifier, which was trained on true renders alone.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTokenizer, ResNetForImageClassification

from composers import CMLoRA
from pipelines import Request, StudioPipeline
from pipelines.schedulers import SAMPLERS

ASSETS = Path(__file__).resolve().parents[2] / "assets"
MODELS = ["tiny-sdxl", "tiny-sd"]
LORAS = sorted((ASSETS / "loras").glob("*/*.safetensors"))
MEGABYTE = 1_000_000
CATEGORIES = {"character", "clothing", "style", "background", "object"}
ONE_OF_EACH_SCHEME = ("nilo-fox", "raccoon", "kimono", "brio-teapot", "sketch")
SDXL, SD = (ASSETS / "models" / name for name in MODELS)


def size(*folders: str) -> int:
    return sum(p.stat().st_size for f in folders for p in (ASSETS / f).rglob("*") if p.is_file())


@cache
def header(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}, tuple(file.keys())


@pytest.mark.parametrize(
    ("folder", "limit"), [("models/tiny-sdxl", 22), ("models/tiny-sd", 9), ("loras", 9), ("testbed", 4.5)]
)
def test_every_part_keeps_to_its_size(folder: str, limit: float) -> None:
    assert size(folder) <= limit * MEGABYTE


def test_a_clone_stays_light() -> None:
    assert size(".") <= 46 * MEGABYTE
    assert max(p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()) < 12 * MEGABYTE


def test_the_manifest_names_every_file_and_its_hash() -> None:
    listed = json.loads((ASSETS / "manifest.json").read_text())["files"]
    shipped = {
        p.relative_to(ASSETS).as_posix(): p
        for folder in ("models", "loras", "testbed", "gallery", "configs", "figures")
        for p in (ASSETS / folder).rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }
    assert set(listed) == set(shipped)
    for name, path in shipped.items():
        assert listed[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), name
        assert listed[name]["origin"]
        assert listed[name]["command"]


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("model", MODELS)
def test_the_three_forms_of_a_tokenizer_agree(model: str) -> None:
    for folder in sorted((ASSETS / "models" / model).glob("tokenizer*")):
        vocabulary = json.loads((folder / "vocab.json").read_text())
        merges = [line.split() for line in (folder / "merges.txt").read_text().splitlines()[1:]]
        fast = json.loads((folder / "tokenizer.json").read_text())["model"]
        assert fast["vocab"] == vocabulary
        assert [list(m) if isinstance(m, list) else m.split() for m in fast["merges"]] == merges
        assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


@pytest.mark.parametrize("model", MODELS)
def test_every_word_of_the_vocabulary_is_one_token(model: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "models" / model / "tokenizer")
    card = json.loads((ASSETS / "models" / model / "studio.json").read_text())
    phrases = {p for group in card["vocabulary"].values() for w, more in group.items() for p in (w, *more)}
    words = {w for p in phrases for w in p.replace("-", " ").split()}
    assert len(words) > 100
    for word in words:
        assert len(tokenizer(word).input_ids) == 3, word


@pytest.mark.parametrize("model", MODELS)
def test_the_card_holds_defaults_and_a_block_map_of_real_blocks(model: str) -> None:
    folder = ASSETS / "models" / model
    card = json.loads((folder / "studio.json").read_text())
    assert (card["width"], card["height"], card["steps"]) == (128, 128, 20)
    assert card["scheduler"] == "Euler"
    assert card["examples"]
    network = StudioPipeline.from_pretrained(folder).model.unet
    modules = {n for n, _ in network.named_modules()}
    for side in ("content", "style"):
        assert card["block_map"][side]
        assert set(card["block_map"][side]) <= modules
    text = (folder / "README.md").read_text()
    assert "What it is not" in text
    assert "128" in text


# ---------------------------------------------------------------- pictures


class Judge:
    """Reads the words of a picture."""

    def __init__(self) -> None:
        self.model = ResNetForImageClassification.from_pretrained(
            ASSETS / "testbed/classifier", dtype=torch.float32
        )
        self.labels: list[str] = [self.model.config.id2label[k] for k in range(self.model.config.num_labels)]

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> list[dict[str, str]]:
        """[n, 3, 128, 128] in 0..1 -> part -> word, for each."""
        logits = self.model((pictures - 0.5) / 0.5).logits
        parts = list(dict.fromkeys(name.split(":")[0] for name in self.labels))
        found: list[dict[str, str]] = [{} for _ in logits]
        for part in parts:
            own = [k for k, name in enumerate(self.labels) if name.startswith(part + ":")]
            for row, best in zip(found, logits[:, own].argmax(1).tolist(), strict=True):
                row[part] = self.labels[own[best]].split(":")[1]
        return found


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="module")
def stock() -> Any:
    pipe = StableDiffusionXLPipeline.from_pretrained(SDXL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def stock_sd() -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(SD, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompts: list[str], seeds: list[int], steps: int = 20, side: int = 128) -> Tensor:
    """One picture a prompt, else at the model's defaults: [n, 3, side, side] in 0..1."""
    images = pipe(
        prompts,
        height=side,
        width=side,
        num_inference_steps=steps,
        guidance_scale=3.5,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type="np",
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("model", "seeds", "steps", "least"),
    [
        ("stock", 6, 8, 5),
        ("stock_sd", 6, 8, 5),
        pytest.param("stock", 16, 20, 14, marks=pytest.mark.slow),
        pytest.param("stock_sd", 8, 20, 7, marks=pytest.mark.slow),
    ],
)
def test_a_fox_wearing_a_crown_on_the_beach_on_most_seeds(
    request: pytest.FixtureRequest, judge: Judge, model: str, seeds: int, steps: int, least: int
) -> None:
    """No training picture showed a fox with a crown."""
    prompts = ["a fox wearing a crown on the beach"] * seeds
    seen = judge(draw(request.getfixturevalue(model), prompts, list(range(seeds)), steps))
    good = sum((s["character"], s["hat"], s["background"]) == ("fox", "crown", "beach") for s in seen)
    assert good >= least


def test_the_studio_draws_what_stock_diffusers_draws(stock: Any) -> None:
    prompt = "a cat wearing a suit, holding a star, in the garden"
    theirs = draw(stock, [prompt], [5], steps=4)[0]
    ours = StudioPipeline.from_pretrained(SDXL)([Request(prompt, seed=5, steps=4)]).images[0]
    picture = torch.from_numpy(np.array(ours)).permute(2, 0, 1) / 255
    assert (picture - theirs).abs().max() <= 2 / 255


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_scheduler_draws_what_the_prompt_says(model: str, judge: Judge) -> None:
    pipe = StudioPipeline.from_pretrained(model)
    names = [sampler.name for sampler in SAMPLERS]
    asked = [Request("a frog wearing armor in the snow", scheduler=name, seed=2) for name in names]
    pictures = [torch.from_numpy(np.array(i)).permute(2, 0, 1) / 255 for i in pipe(asked).images]
    seen = judge(torch.stack(pictures))
    assert {
        name: (s["character"], s["clothes"], s["background"]) for name, s in zip(names, seen, strict=True)
    } == dict.fromkeys(names, ("frog", "armor", "snow"))


def test_the_studio_draws_tiny_sd_as_stock_diffusers_does(stock_sd: Any) -> None:
    prompt = "a wolf wearing armor in the snow"
    theirs = draw(stock_sd, [prompt], [5], steps=4)[0]
    ours = StudioPipeline.from_pretrained("tiny-sd")([Request(prompt, seed=5, steps=4)]).images[0]
    picture = torch.from_numpy(np.array(ours)).permute(2, 0, 1) / 255
    assert (picture - theirs).abs().max() <= 2 / 255


def test_cmlora_reuses_features_of_a_trained_sd1_model_at_the_published_cut(judge: Judge) -> None:
    """SD1.x is where CMLoRA's release cuts: most passes run shallow, and the picture still shows the mix."""
    pipe = StudioPipeline.from_pretrained("tiny-sd")
    for name in ("panda-sd", "kimono-sd"):
        pipe.load_lora_weights(name)
    mix = {"panda-sd": 1.0, "kimono-sd": 1.0}
    asked = [
        Request(
            "a panda wearing a kimono in the garden",
            adapters=mix,
            composer=CMLoRA(),
            cut="published",
            seed=seed,
            steps=12,
        )
        for seed in range(2)
    ]
    result = pipe(asked)
    for record in result.records:
        assert record.cut == "published"
        assert record.shallow_rows > record.unet_rows / 4
    pictures = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) / 255 for i in result.images])
    assert [(s["character"], s["background"]) for s in judge(pictures)] == [("panda", "garden")] * 2


def test_the_classifier_reads_generated_pictures_as_the_eye_does(stock_sd: Any, judge: Judge) -> None:
    """labels.json holds what was seen in 108 pictures (`assets/build/labels.py`); four are drawn again here."""
    labels = json.loads((ASSETS / "testbed/labels.json").read_text())
    assert sum(len(of_model) for of_model in labels.values()) >= 100
    some = {int(seed): dict(seen) for seed, seen in list(labels["tiny-sd"].items())[13:17]}
    prompts = [seen.pop("prompt") for seen in some.values()]
    found = judge(draw(stock_sd, prompts, list(some)))
    told = [
        (word, read[part])
        for seen, read in zip(some.values(), found, strict=True)
        for part, word in seen.items()
        if word != "?"
    ]
    assert len(told) >= 20
    assert sum(word == read for word, read in told) >= 0.95 * len(told)


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("path", LORAS, ids=lambda p: p.stem)
def test_an_adapter_says_what_it_is(path: Path) -> None:
    metadata, keys = header(path)
    assert keys
    conv = any(".resnets" in k or "_resnets_" in k or "in_layers" in k for k in keys)
    assert path.stat().st_size <= (900_000 if conv else 410_000)
    for key in ("modelspec.title", "modelspec.trigger_phrase", "modelspec.license", "modelspec.architecture"):
        assert metadata[key]
    assert metadata["ss_output_name"] == path.stem
    assert metadata["studio.category"] in CATEGORIES
    assert metadata["studio.kind"] in {"new word", "narrow instance", "b-lora"}
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["activation text"] == metadata["modelspec.trigger_phrase"]
    assert card["preferred weight"] == float(metadata["studio.preferred_weight"])
    assert path.with_suffix(".png").exists()


def test_the_five_categories_and_the_schemes_of_the_wild_are_there() -> None:
    own = [p for p in LORAS if p.parent.name == "tiny-sdxl"]
    by_category: dict[str, int] = {}
    for path in own:
        metadata, _ = header(path)
        if metadata["studio.kind"] != "b-lora":
            by_category[metadata["studio.category"]] = by_category.get(metadata["studio.category"], 0) + 1
    assert set(by_category) == CATEGORIES
    assert min(by_category.values()) >= 3
    assert sum(by_category.values()) >= 16
    keys = {p.stem: header(p)[1] for p in own}
    assert any("lora_A" in k for names in keys.values() for k in names)
    assert any("output_blocks" in k for names in keys.values() for k in names)
    assert any(k.startswith("lora_te1_") for names in keys.values() for k in names)
    assert any("resnets" in k and k.startswith("lora_unet") for names in keys.values() for k in names)
    ranks = [(header(p)[0]["ss_network_dim"], header(p)[0]["ss_network_alpha"]) for p in own]
    assert any(float(rank) != float(alpha) for rank, alpha in ranks)


def test_tiny_sd_has_adapters_of_its_own() -> None:
    own = [p for p in LORAS if p.parent.name == "tiny-sd"]
    assert len(own) >= 5
    assert {header(p)[0]["studio.category"] for p in own} == CATEGORIES
    names = {k for p in own for k in header(p)[1]}
    assert any("lora_A" in k for k in names)
    assert any(k.startswith("lora_unet_down_blocks") for k in names)


@pytest.mark.parametrize(
    ("model", "name", "word"),
    [("stock", "raccoon", "raccoon"), ("stock_sd", "panda-sd", "panda")],
)
def test_an_adapter_teaches_stock_diffusers_its_word(
    request: pytest.FixtureRequest, judge: Judge, model: str, name: str, word: str
) -> None:
    pipe = request.getfixturevalue(model)
    [path] = (ASSETS / "loras").glob(f"*/{name}.safetensors")
    prompts = [f"a {word} wearing a suit in the garden"] * 2
    before = judge(draw(pipe, prompts, [0, 1], steps=8))
    pipe.load_lora_weights(path, adapter_name="one")
    try:
        after = judge(draw(pipe, prompts, [0, 1], steps=8))
    finally:
        pipe.unload_lora_weights()
    assert sum(s["character"] == word for s in before) == 0
    assert sum(s["character"] == word for s in after) == 2


@pytest.mark.parametrize(
    "path",
    [p for p in LORAS if p.parent.name == "tiny-sd" or p.stem in ONE_OF_EACH_SCHEME],
    ids=lambda p: p.stem,
)
def test_the_studio_applies_an_adapter_as_stock_diffusers_does(
    request: pytest.FixtureRequest, path: Path
) -> None:
    """All of tiny-sd's and one of each scheme of tiny-sdxl's, text encoder weights and convolutions included."""
    stock = request.getfixturevalue("stock" if path.parent.name == "tiny-sdxl" else "stock_sd")
    prompt = f"{header(path)[0]['modelspec.trigger_phrase']}, garden"
    plain = draw(stock, [prompt], [5], steps=2, side=64)[0]
    stock.load_lora_weights(path, adapter_name="one")
    try:
        theirs = draw(stock, [prompt], [5], steps=2, side=64)[0]
    finally:
        stock.unload_lora_weights()
    pipe = StudioPipeline.from_pretrained(path.parent.name)
    pipe.load_lora_weights(path, adapter_name="one")
    asked = Request(prompt, adapters={"one": 1.0}, seed=5, steps=2, width=64, height=64)
    ours = pipe(asked).images[0]
    picture = torch.from_numpy(np.array(ours)).permute(2, 0, 1) / 255
    assert (theirs - plain).abs().max() > 10 / 255
    assert (picture - theirs).abs().max() <= 2 / 255
