"""A1111's text: what we write is read back, and what other programs write is understood."""

from __future__ import annotations

import pytest

from composers import Switch
from studio.drafts.fields import FIELDS
from studio.pictures.a1111 import BESIDE, Parameters, pairs, read, write

from ...budget import cheap

ODD = [
    "a fox",
    "a fox, (red:1.2), [hat], <lora:fox:te=0.5:unet=0.8>",
    'he said "hello: world", then left',
    "first line\nsecond line\n\nfourth, with: a colon",
    "ein Fuchs, 狐 🦊, naïve — “quoted”",
    "Steps: a painting of steps, no settings",
    "ends with a comma,",
    "",
]


@pytest.mark.parametrize("prompt", ODD)
@pytest.mark.parametrize("negative", [None, "blurry, low: quality", "two\nlines"])
def test_what_is_written_is_read_back(prompt: str, negative: str | None) -> None:
    said = Parameters(
        prompt,
        negative,
        {
            "steps": 20,
            "scheduler": "DPM++ 2M Karras",
            "guidance_scale": 3.5,
            "seed": 2**32 - 1,
            "width": 128,
            "height": 96,
            "composer": Switch(interval=3, convention="code"),
        },
        model='odd, "name": x',
        model_hash="0123456789",
        lora_hashes={"fox": "0123456789ab", "folder/hat": "ba9876543210", "red, , hat": "ab" * 6},
    )
    assert read(write(said)) == said


def test_values_are_quoted_as_a1111_does() -> None:
    text = write(
        Parameters(
            "a fox",
            values={
                "steps": 20,
                "scheduler": "Euler",
                "guidance_scale": 7.0,
                "seed": 1,
                "width": 64,
                "height": 64,
            },
            lora_hashes={"fox": "ab" * 6},
        )
    )
    assert text == (
        'a fox\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Lora hashes: "fox: abababababab"'
    )


def test_every_setting_is_written_as_a1111_reads_it() -> None:
    """The first line as it is, the units of A1111, and its order of keys."""
    said = Parameters(
        "a fox",
        "rain",
        {
            "steps": 20,
            "scheduler": "DPM++ 2M Karras",
            "guidance_scale": 6.5,
            "seed": 5,
            "width": 832,
            "height": 1216,
            "strength": 0.45,
            "clip_skip": 1,
            "guidance_rescale": 0.7,
            "composer": Switch(interval=3),
        },
        model="ghost",
        model_hash="e3edb8a26f",
        lora_hashes={"fox": "ab" * 6, "hat": "cd" * 6},
        version="lora-studio 1.0",
    )
    assert write(said).split("\n") == [
        "a fox",
        "Negative prompt: rain",
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 5, Size: 832x1216, Model hash: e3edb8a26f, "
        'Model: ghost, Denoising strength: 0.45, Clip skip: 2, CFG Rescale: 0.7, Composition: "switch:interval=3", '
        'Lora hashes: "fox: abababababab, hat: cdcdcdcdcdcd", Version: lora-studio 1.0',
    ]


def test_another_programs_text() -> None:
    said = read(
        "masterpiece, 1girl <lora:add_detail:0.7>,\nred hat\nNegative prompt: bad hands,\nblurry\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1234567, Size: 832x1216, "
        "Model hash: e3edb8a26f, Model: ghostmix_v20Bakedvae, VAE hash: 735e4c3a44, VAE: x.safetensors, "
        'Clip skip: 2, TI hashes: "easynegative: c74b4e810b03", Lora hashes: "add_detail: 7c6bad76eb54", '
        "Version: v1.10.1"
    )
    assert said.prompt == "masterpiece, 1girl <lora:add_detail:0.7>,\nred hat"
    assert said.negative_prompt == "bad hands,\nblurry"
    assert said.values == {
        "steps": 30,
        "scheduler": "DPM++ 2M Karras",
        "guidance_scale": 6.5,
        "seed": 1234567,
        "width": 832,
        "height": 1216,
        "clip_skip": 1,
        "clip_skip_as": "a1111",
    }
    assert (said.model, said.model_hash) == ("ghostmix_v20Bakedvae", "e3edb8a26f")
    assert said.lora_hashes == {"add_detail": "7c6bad76eb54"}
    assert (said.vae, said.ignored) == ("x", ("TI hashes",))


@pytest.mark.parametrize(
    "text",
    ["a fox", "a fox\nin the snow: cold", "a: b, c: d", "", "\n\n", "a: b, c: d, and so on: x, !"],
)
def test_a_text_without_settings_is_all_prompt(text: str) -> None:
    said = read(text)
    assert said.values == {}
    assert said.prompt == text.strip("\n")


@pytest.mark.parametrize(
    ("last", "read_all_the_same", "unread"),
    [
        ("Steps: many, Sampler: Euler, Seed: -1", {"scheduler": "Euler"}, {"Steps", "Seed"}),
        ("Steps: 1, Size: big, CFG scale: nan", {"steps": 1}, {"Size", "CFG scale"}),
        ("Steps: 1001, Sampler: Odd, CFG scale: 5", {"guidance_scale": 5.0}, {"Steps", "Sampler"}),
        ("Steps: 1, Clip skip: 0, Denoising strength: 2", {"steps": 1}, {"Clip skip", "Denoising strength"}),
        ("Steps: 1, Composition: swich, Crop: 5", {"steps": 1}, {"Composition", "Crop"}),
        ('Steps: 1, Cut: shallow, Lora hashes: "fox: none"', {"steps": 1}, {"Cut", "Lora hashes"}),
        ("Steps: , Sampler: , Composition: ", {}, set()),
    ],
)
def test_nonsense_values_say_nothing_and_are_named(
    last: str, read_all_the_same: dict[str, object], unread: set[str]
) -> None:
    said = read(f"a fox\n{last}")
    assert said.prompt == "a fox"
    assert said.values == read_all_the_same
    assert set(said.unread) == unread
    assert said.ignored == ()


def test_the_strength_of_a_second_pass_is_none_of_ours() -> None:
    said = read("a\nSteps: 1, Seed: 2, Denoising strength: 0.4, Hires upscale: 2")
    assert said.values == {"steps": 1, "seed": 2}
    assert said.ignored == ("Denoising strength", "Hires upscale")


def test_no_two_fields_share_a_key() -> None:
    keys = [field.key for field in FIELDS if field.key]
    by_hand = ("Size", "Clip skip", "Denoising strength", *BESIDE)
    assert len({*keys, *by_hand}) == len(keys) + len(by_hand)


@pytest.mark.parametrize(
    "line",
    [
        " " * 100_000 + "x",
        "Steps" + " " * 100_000 + "x",
        "a " * 50_000,
        "a:" * 50_000,
        "a:1," * 25_000,
        'a:",' * 25_000,
        'a:"\\' * 25_000,
        'a:"' + "\\" * 100_000,
        'a: "' * 25_000,
        "a:" + "," * 100_000,
        "\t" * 100_000,
        "é" * 100_000 + ":",
        "a:1, " * 900 + 'b: "' + "x" * 100_000,
        "Lora hashes: " + ":" * 100_000,
    ],
    ids=lambda line: line[:8],
)
def test_reading_takes_time_in_proportion_to_the_text(line: str) -> None:
    with cheap():
        read(f"a fox\n{line}")
        pairs(line)


@pytest.mark.parametrize(
    "number", ["9" * 5000, "\u00b2", "\u0663", "9" * 400 + ".5", "1e5", "-1", "inf", "0x10"]
)
def test_numbers_that_are_none_say_nothing(number: str) -> None:
    said = read(
        f"a\nSteps: {number}, CFG scale: {number}, Seed: {number}, Size: {number}x{number}, Clip skip: x"
    )
    assert said.values == {}


def test_of_more_settings_than_any_program_has_the_first_are_read_and_the_rest_is_named() -> None:
    line = "Steps: 4, Sampler: Euler, Seed: 7, " + ", ".join(f"key{n}: {n}" for n in range(5000))
    said = read(f"a fox\n{line}")
    assert (said.prompt, said.values) == ("a fox", {"steps": 4, "scheduler": "Euler", "seed": 7})
    assert len(pairs(line)) == 1000
    assert said.ignored[-1].startswith("key997: 997, key998: 998")
