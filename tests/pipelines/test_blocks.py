"""Strengths by block: what presets and vectors mean per layout, and that a block at 0 is a block without keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from composers import Use
from pipelines import Request, StudioPipeline
from pipelines.blocks import Layout, block_of, blocks_of, placed, preset_blocks
from pipelines.blora.layouts import published_layers
from pipelines.errors import PromptError, RequestError, StudioError
from pipelines.families.family import FAMILIES
from pipelines.text.tags import LoraTag, take_tags

from ..fuzzing import cases

IN = [f"IN{n:02d}" for n in range(12)]
OUT = [f"OUT{n:02d}" for n in range(12)]
LORA17 = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *OUT[3:]]
LORA12 = ["IN04", "IN05", "IN07", "IN08", "M00", *OUT[:6]]


@cache
def layout(family: str) -> Layout:
    layers, blocks = published_layers(FAMILIES[family])
    return Layout(
        layers.label, {f"@{part}": own for part, own in blocks.items()}, layers.components["unet"].keys()
    )


def read(text: str, family: str) -> Use:
    """What `lbw=` means for a model, beside a strength of 1."""
    _, (tag,) = take_tags(f"<lora:a:1:lbw={text}>")
    return placed(tag.use(), layout(family))


def text_factor(use: Use) -> float:
    return 1.0 if use.text_weight is None else use.text_weight


def factor(text: str, family: str, module: str) -> float:
    """The factor that a layer gets."""
    return read(text, family).block_factor(module)


def test_blocks_are_numbered_as_in_the_original_code() -> None:
    sd1, sdxl = layout("sd1"), layout("sdxl")
    assert list(sd1.numbered) == [*IN, "M00", *OUT]
    assert sd1.attended == LORA17
    assert list(sdxl.numbered) == [*IN[:9], "M00", *OUT[:9]]
    assert sdxl.attended == LORA12
    assert sd1.numbered["IN00"] == ("conv_in",)
    assert set(sd1.numbered["OUT05"]) == {
        *("up_blocks.1.resnets.2", "up_blocks.1.attentions.2", "up_blocks.1.upsamplers.0")
    }
    assert set(sdxl.numbered["OUT00"]) == {"up_blocks.0.resnets.0", "up_blocks.0.attentions.0"}


@pytest.mark.parametrize(
    ("family", "ids"),
    [("sd1", LORA17), ("sd1", [*IN, "M00", *OUT]), ("sdxl", LORA12), ("sdxl", [*IN[:9], "M00", *OUT[:9]])],
    ids=["17", "26", "12", "20"],
)
def test_a_vector_gives_each_block_its_number(family: str, ids: list[str]) -> None:
    numbers = [(index + 1) / 100 for index in range(len(ids))]
    text = ",".join(["0.5", *(f"{number:g}" for number in numbers)])
    assert text_factor(read(text, family)) == 0.5
    given = dict(zip(ids, numbers, strict=True))
    for block, members in layout(family).numbered.items():
        for member in members:
            assert factor(text, family, f"{member}.conv1") == pytest.approx(given.get(block, 0))
    assert factor(text, family, "conv_out") == 1
    assert factor(text, family, "time_embedding.linear_1") == 1


@pytest.mark.parametrize(
    ("preset", "vector"),
    [
        ("INALL", "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0"),
        ("INS", "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0"),
        ("IND", "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0"),
        ("MIDD", "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"),
        ("OUTD", "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0"),
        ("OUTS", "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1"),
        ("OUTALL", "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"),
        ("ALL", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"),
        ("none", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"),
        ("OUT05", "0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0"),
        ("mid", "0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0"),
    ],
)
def test_presets_are_the_extensions_own_on_attention(preset: str, vector: str) -> None:
    for name in layout("sd1").unet_layers:
        if ".attentions." in name:
            assert factor(preset, "sd1", name) == factor(vector, "sd1", name), name
    assert text_factor(read(preset, "sd1")) == text_factor(read(vector, "sd1"))


def test_the_models_own_parts_are_presets() -> None:
    found = read("Style", "sdxl")
    assert found.blocks == tuple((block, 1.0) for block in layout("sdxl").block_map["@style"])
    assert text_factor(found) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "17 numbers, but Stable Diffusion XL takes 12 or 20"),
        ("1,R,1,1,1,1,1,1,1,1,1,1", "every factor must be a number"),
        ("1,nan,1,1,1,1,1,1,1,1,1,1", "every factor must be a number"),
        ("IN11", "no block preset of Stable Diffusion XL; it knows content, style, ALL"),
        ("nonsense", "not a known block list"),
    ],
)
def test_wrong_presets_and_vectors_are_refused(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read(text, "sdxl")


def test_a_factor_on_a_preset_multiplies_its_blocks() -> None:
    half = placed(Use("a", blocks=(("@OUTS", 0.5),)), layout("sdxl"))
    whole = placed(Use("a", blocks=(("@OUTS", 1.0),)), layout("sdxl"))
    assert half.blocks == tuple((name, 0.5 * factor) for name, factor in whole.blocks)


def test_names_of_blocks_are_looked_up() -> None:
    use = Use("a", blocks=(("@content", 0.5), ("up_blocks.1", 1.0)))
    assert placed(use, layout("sdxl")).blocks == (("up_blocks.0.attentions.0", 0.5), ("up_blocks.1", 1.0))
    with pytest.raises(
        RequestError, match=r"no block 'up_blocks\.3'; its blocks are down_blocks\.0, .*mid_block"
    ):
        placed(Use("a", blocks=(("up_blocks.3", 1.0),)), layout("sdxl"))
    with pytest.raises(RequestError, match=r"no map of its style blocks.*probe-blocks"):
        placed(Use("a", blocks=(("@style", 1.0),)), layout("sd1"))


def test_layers_are_counted_by_block() -> None:
    layers = [f"unet.up_blocks.0.attentions.1.transformer_blocks.{n}.attn1.to_q" for n in range(3)]
    found = blocks_of([*layers, "unet.conv_in", "text_encoder.layers.0"])
    assert found == {"conv_in": 1, "up_blocks.0.attentions.1": 3}
    assert block_of("mid_block.resnets.1.conv1") == "mid_block.resnets.1"


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(sdxl_folder)


def latents(pipe: StudioPipeline, prompt: str, *uses: Use) -> torch.Tensor:
    request = Request(prompt, adapters=uses, seed=5, steps=2, guidance_scale=3.0, width=64, height=64)
    image = pipe(request, output_type="latent").images[0]
    assert isinstance(image, torch.Tensor)
    return image


def test_a_block_at_zero_is_a_file_without_its_keys(
    pipe: StudioPipeline, sdxl_folder: Path, make_lora: Callable[..., Path], tmp_path: Path
) -> None:
    """Convolutions included: the file changes every Linear and Conv2d of the UNet."""
    whole = make_lora(sdxl_folder, "locon", seed=3, rank=2, where="", text=False)
    kept = {
        key: tensor
        for key, tensor in load_file(whole).items()
        if not key.startswith(("unet.up_blocks.1.", "unet.down_blocks.0.resnets.1.", "unet.mid_block."))
    }
    assert any("conv1" in key for key in kept.keys() ^ load_file(whole).keys())
    save_file(kept, tmp_path / "cut.safetensors")
    pipe.load_lora_weights(whole, "locon")
    pipe.load_lora_weights(tmp_path / "cut.safetensors", "cut")
    try:
        numbers = ["1" for _ in range(20)]
        for block in ("IN02", "M00", "OUT03", "OUT04", "OUT05"):
            numbers[1 + list(pipe.model.facts.layout.numbered).index(block)] = "0"
        by_vector = latents(pipe, f"a fox <lora:locon:0.8:lbw={','.join(numbers)}>")
        without = latents(pipe, "a fox", Use("cut", 0.8))
        assert torch.allclose(by_vector, without, atol=1e-5)
        assert not torch.allclose(by_vector, latents(pipe, "a fox", Use("locon", 0.8)), atol=1e-3)
        nothing = latents(pipe, "a fox <lora:locon:0.8:lbw=NONE>")
        assert torch.allclose(nothing, latents(pipe, "a fox"), atol=1e-6)
    finally:
        pipe.unload_lora_weights()


def test_the_text_encoder_is_the_vectors_first_number(
    pipe: StudioPipeline, sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    pipe.load_lora_weights(make_lora(sdxl_folder, "fox", seed=1), "fox")
    try:
        ones = ",".join(["0.5", *["1"] * 11])
        use = Request(f"a <lora:fox:0.8:lbw={ones}>").resolved(pipe.model.facts).uses[0]
        assert (use.weight, use.text_weight) == (0.8, 0.4)
        use = Request("a <lora:fox:te=0.6:unet=0.8:lbw=OUTALL>").resolved(pipe.model.facts).uses[0]
        assert (use.weight, use.text_weight) == (0.8, 0.6)
    finally:
        pipe.unload_lora_weights()


# -- made-up texts -----------------------------------------------------------------------------------------

pieces = st.one_of(
    st.sampled_from(
        [
            "ALL",
            "NONE",
            "MIDD",
            "INS",
            "OUTALL",
            "content",
            "style",
            "IN04",
            "OUT99",
            "M00",
            "mid_block",
            "up_blocks.0",
            "@",
            ",",
            "@0.5",
            "1",
            "0.5",
            "-1",
            "nan",
            "inf",
            "1e999",
            "9" * 400,
            "R",
            "",
            "\\",
            "unet",
            " ",
        ]
    ),
    st.text(max_size=4),
)
texts = st.one_of(
    st.lists(pieces, max_size=6).map("".join),
    st.lists(pieces, min_size=10, max_size=27).map(",".join),
    st.lists(st.floats(width=16).map(str), min_size=12, max_size=27).map(",".join),
)


@cases(text=texts, family=st.sampled_from(["sd1", "sdxl"]))
def test_any_text_of_blocks_is_understood_or_refused(text: str, family: str) -> None:
    said = ""
    try:
        blocks = placed(LoraTag("a", lbw=text).use(), layout(family)).blocks
        assert all(isinstance(name, str) and math.isfinite(number) for name, number in blocks)
    except StudioError as error:
        said = str(error)
    assert len(said) < 1000


@cases(
    ci=150,
    name=st.one_of(texts, st.sampled_from(["ALL", "INS", "IN04"])),
    family=st.sampled_from(["sd1", "sdxl"]),
)
def test_any_preset_is_understood_or_refused(name: str, family: str) -> None:
    with suppress(PromptError):
        assert all(math.isfinite(number) for _, number in preset_blocks(name, layout(family)))
