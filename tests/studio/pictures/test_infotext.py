"""Settings lines as A1111, Forge, SD.Next, Civitai, Fooocus and others write them: all is taken over or named."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import strategies as st

from studio.pictures.a1111 import Parameters, read
from studio.pictures.a1111 import pairs as pairs_of
from studio.pictures.infotext import is_infotext, taken_apart
from studio.pictures.metadata import understood

from ...budget import cheap
from ...fuzzing import cases

LINE = "Steps: 20, Sampler: Euler, CFG scale: 4.5, Seed: 7, Size: 128x96"
SAID = {"steps": 20, "scheduler": "Euler", "guidance_scale": 4.5, "seed": 7, "width": 128, "height": 96}
RESOURCES = json.dumps(
    [
        {
            "type": "checkpoint",
            "modelVersionId": 1,
            "modelName": "Grand Model, v2",
            "modelVersionName": "a: b",
        },
        {
            "type": "lora",
            "weight": 0.8,
            "modelVersionId": 2,
            "modelName": 'Nilo "Fox" [x]',
            "modelVersionName": "{",
        },
        {"type": "embed", "modelVersionId": 3, "modelName": "bad hands"},
    ]
)


def told(said: Parameters) -> str:
    return "; ".join([*said.ignored, *said.unread])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (', Hashes: {"lora:fox": "00112233aa", "model": "44556677bb"}', []),
        (", Civitai resources: " + RESOURCES, ["bad hands"]),
        (", Odd: [1, 2, {3: 4]", ["Odd"]),
        (', Odd: {"a": "b, c: d", "e": [1, 2', ["Odd"]),
        (', ADetailer prompt: "a fox, Model: x, red', ["ADetailer prompt", "red"]),
        (', Odd: "a "quoted" word, and more"', ["Odd", "and more"]),
        (', Odd: "a fox\\nin snow: deep, white"', ["Odd"]),
        (', Odd: "a fox\nin snow: deep, white"', ["Odd"]),
        (", bare flag", ["bare flag"]),
        (", [bracketed], another flag", ["[bracketed]", "another flag"]),
        (", Model: [mix] v2", []),
        (", :, , ::, ,", [":", "::"]),
        (
            "\nTemplate: a {fox|owl}, Steps: many, in __place__\nNegative Template: bad, [x]",
            ["Template", "Negative T"],
        ),
        (
            "\nPostprocess upscale by: 2, Postprocess upscaler: X4",
            ["Postprocess upscale by", "Postprocess upscaler"],
        ),
        ("\nnice picture", ["nice picture"]),
        (", Version: f2.0.1v1.10.1-previous-1\nModule 1: ae", ["Module 1"]),
        (", Hires upscale: 2, Denoising strength: 0.4", ["Hires upscale", "Denoising strength"]),
        (", Steps: 50, Seed: 9", ["another Steps: 50", "another Seed: 9"]),
        (", Created Date: 2024-10-29T1530:03.7Z, Url: https://x.y/z", ["Url"]),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["behind", "before"])
def test_what_cannot_be_read_costs_nothing_else(more: str, named: list[str], before: bool) -> None:
    if before and "\n" in more:
        pytest.skip("lines that follow")
    line = f"{more[2:]}, {LINE}" if before and "Steps" not in more else LINE + more
    said = read(f"a fox\nNegative prompt: blurry\n{line}")
    assert (said.prompt, said.negative_prompt) == ("a fox", "blurry")
    assert {**said.values, **SAID} == said.values
    assert not [one for one in named if one not in told(said)], told(said)


def test_a_list_of_files_of_civitai_is_read_by_its_brackets() -> None:
    said = read(f"a fox\n{LINE}, Civitai resources: {RESOURCES}, Version: x")
    assert (said.model, said.version) == ("Grand Model, v2", "x")
    assert [(one.adapter, one.weight) for one in said.loras] == [('Nilo "Fox" [x]', 0.8)]


def test_hashes_in_all_their_forms() -> None:
    for more in (
        'Lora hashes: "fox: 00112233aabb, red, hat: 44556677ccdd"',
        "Lora hashes: fox: 00112233aabb",
        'Hashes: {"lora:fox": "00112233AABB", "embed:bad": "99887766", "vae": "11223344"}',
        'Lora hashes: "fox: 0x00112233aabb"',
    ):
        assert read(f"a\n{LINE}, {more}").lora_hashes["fox"] == "00112233aabb", more
    said = read(f'a\n{LINE}, Hashes: {{"model": "0123456789"}}')
    assert (said.model_hash, said.lora_hashes, said.ignored) == ("0123456789", {}, ())
    old = read(f'a\n{LINE}, Lora hashes: "fox: 00112233aabb: 0.5"')
    assert [(one.adapter, one.weight) for one in old.loras] == [("fox", 0.5)]


def test_strengths_that_stand_in_the_settings() -> None:
    said = read(
        f'a\n{LINE}, Lora hashes: "fox: 0011223344", Lora weights: "fox: 0.5, hat: -1", Version: Fooocus v2.5'
    )
    assert [(one.adapter, one.weight) for one in said.loras] == [("fox", 0.5), ("hat", -1.0)]
    assert (said.program, said.ignored) == ("Fooocus", ())
    said = read(
        f"a\n{LINE}, AddNet Enabled: True, AddNet Module 1: LoRA, AddNet Model 1: fox(0011223344aa), "
        "AddNet Weight A 1: 0.8, AddNet Weight B 1: 0.4"
    )
    assert [(one.adapter, one.weight, one.text_weight) for one in said.loras] == [("fox", 0.8, 0.4)]
    assert (said.lora_hashes, said.ignored) == ({"fox": "0011223344aa"}, ())


@pytest.mark.parametrize(
    ("value", "read_as"),
    [(".5", 0.5), ("5.", 5.0), ("7,5", 7.5), ("0.50", 0.5), ("1e1", 10.0), ("7", 7.0)],
)
def test_numbers_are_read_as_they_are_meant(value: str, read_as: float) -> None:
    said = read(f"a\nSteps: 20, CFG scale: {value}, Seed: 7, Sampler: Euler")
    assert said.values == {"steps": 20, "guidance_scale": read_as, "seed": 7, "scheduler": "Euler"}
    assert told(said) == ""


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 + 1, 2**64 - 1])
def test_seeds_are_exact(seed: int) -> None:
    assert read(f"a\nSteps: 20, Seed: {seed}, Sampler: Euler").values["seed"] == seed
    assert read(f"a\nSteps: 20, Seed: {seed}.0, Sampler: Euler").values["seed"] == seed


@pytest.mark.parametrize("seed", ["-1", str(2**64), "9" * 30, "4.29E+09", "1.5", "7e3"])
def test_a_seed_that_cannot_be_meant_is_left_out_and_told(seed: str) -> None:
    said = read(f"a\nSteps: 20, Seed: {seed}, Sampler: Euler")
    assert "seed" not in said.values
    assert "Seed" in said.unread
    if seed[-1].isdigit() and "." not in seed and "e" not in seed:
        assert "it is left out, and another one is drawn" in said.unread["Seed"]


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        (LINE, "", None),
        (f"\n\n{LINE}\n\n", "", None),
        (f"a fox\n{LINE}", "a fox", None),
        (f"Negative prompt: blurry\n{LINE}", "", "blurry"),
        (f"a fox\r\nNegative prompt: blurry\r\n{LINE}\r\n", "a fox", "blurry"),
        (f"a fox\nNegative Prompt: blurry\nbad\n{LINE}", "a fox", "blurry\nbad"),
        (f"a fox\nNegative prompt: blurry\nlight: soft, mood: dark, lens: long\n{LINE}", "a fox",
         "blurry\nlight: soft, mood: dark, lens: long"),
        (f"a fox\nNegative prompt: blurry\nSteps: 3, Sampler: DDIM, Seed: 1\n{LINE}", "a fox", "blurry"),
        (f"Steps: a painting of steps\nModel: a woman, Size: large\n{LINE}",
         "Steps: a painting of steps\nModel: a woman, Size: large", None),
        (f"a fox\n{LINE}\nNegative prompt: blurry", "a fox", "blurry"),
        (f"a fox, red Negative prompt: blurry, bad {LINE}", "a fox, red", "blurry, bad"),
        (f"a fox\nNegative prompt: blurry {LINE}", "a fox", "blurry"),
        (f"a fox, red hat {LINE}", "a fox, red hat", None),
        (f'["a fox"|an owl]: "x", {{y}}\n{LINE}', '["a fox"|an owl]: "x", {y}', None),
        (f"a fox\nNegative prompt: blurry\n{LINE},\nModel: tiny, Clip skip: 1, Version: v1", "a fox", "blurry"),
        (f"a fox\n{LINE},\nClip skip: 1", "a fox", None),
        ("a fox\nNegative prompt: blurry\n" + LINE.replace(", ", "\n"), "a fox", "blurry"),
        (LINE.replace(", ", "\n") + "\nNegative prompt: blurry", "", "blurry"),
        (f"a fox Negative prompt: blurry\n{LINE}", "a fox", "blurry"),
        (f"a fox\n{LINE}\nTemplate: a, b: c, Steps: 5, Seed: 3, Sampler: x", "a fox", None),
        (f"\ufeffa fox\n{LINE}", "a fox", None),
        ("Model: a car\nof the year\n" + LINE.replace(", ", "\n"), "Model: a car\nof the year", None),
    ],
)  # fmt: skip
def test_prompts_end_where_the_settings_begin(text: str, prompt: str, negative: str | None) -> None:
    said = read(text)
    assert (said.prompt, said.negative_prompt) == (prompt, negative)
    assert {**said.values, **SAID} == said.values


@pytest.mark.parametrize(
    ("line", "sampler"),
    [
        ("Sampler: DPM++ 2M, Schedule type: Karras", "DPM++ 2M Karras"),
        ("Sampler: DPM++ 2M SDE Karras, Scheduler: karras", "DPM++ 2M SDE Karras"),
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a"),
        ("Sampler: dpmpp_2m_sde_gpu, Scheduler: karras", "DPM++ 2M SDE Karras"),
    ],
)
def test_a_sampler_and_its_schedule_are_one_name(line: str, sampler: str) -> None:
    said = read(f"a\nSteps: 20, {line}, Seed: 7, Size: 64x64")
    assert (said.values["scheduler"], told(said)) == (sampler, "")


KEYS = {
    "Steps": ("steps", st.integers(1, 150)),
    "CFG scale": ("guidance_scale", st.sampled_from([1, 4.5, ".5", 7.0, "12."])),
    "Seed": ("seed", st.one_of(st.integers(0, 2**32), st.sampled_from([2**53 + 1, 2**64 - 1]))),
    "Sampler": ("scheduler", st.sampled_from(["Euler", "DDIM", "DPM++ 2M Karras"])),
    "Denoising strength": ("strength", st.sampled_from([0.25, 0.75])),
    "Clip skip": ("clip_skip", st.integers(1, 4)),
    "Guidance": ("guidance_scale", st.just(3.0)),
}
"""Keys that are read, with Request's name and values."""
WORDS = st.text(st.sampled_from("abc xyz,:;()[]<>|é狐-_/.'"), min_size=1, max_size=30).filter(
    lambda text: text.strip()
)
ODD = st.one_of(
    WORDS.map(json.dumps),
    st.recursive(WORDS, lambda inner: st.lists(inner, max_size=3), max_leaves=4).map(json.dumps),
    st.dictionaries(WORDS, st.one_of(WORDS, st.lists(st.integers(), max_size=3)), max_size=3).map(json.dumps),
    st.sampled_from(['"open', "[1, 2", '{"a": 1', 'a "b" c', "x: y", '"', "[", "{}", "]", '""', "a=b"]),
    st.text(st.sampled_from("abc xyz.-_é狐0123"), max_size=20),
)
OTHER = st.sampled_from(
    [
        "ADetailer prompt",
        "Refiner",
        "Odd key",
        "Module 1",
        "TI hashes",
        "Mimic mode",
        "RP Ratios",
        "sv_prompt",
        "Ä b",
    ]
)
PROMPTS = st.lists(
    st.text(st.sampled_from("abc xyz,.()[]<>|é狐-_'\"{}"), max_size=30).filter(
        lambda text: text.strip() and not text.startswith(("{", "["))
    ),
    min_size=1,
    max_size=3,
).map("\n".join)


@cases(
    ci=40,
    known=st.fixed_dictionaries(
        {key: values for key, (_, values) in list(KEYS.items())[:4]},
        optional={key: values for key, (_, values) in list(KEYS.items())[4:6]},
    ),
    others=st.dictionaries(OTHER, ODD, max_size=5),
    prompt=PROMPTS,
    negative=st.one_of(st.none(), PROMPTS),
    order=st.randoms(use_true_random=False),
    ends=st.sampled_from(["\n", "\r\n"]),
    behind=st.sampled_from(
        ["", "\nTemplate: a {b|c}, d\nNegative Template: [x], y: z", "\nsome words", ",", " , "]
    ),
)
def test_every_value_is_taken_over_or_named_and_none_lands_in_a_prompt(
    known: dict[str, object],
    others: dict[str, str],
    prompt: str,
    negative: str | None,
    order: random.Random,
    ends: str,
    behind: str,
) -> None:
    pairs = [*known.items(), *others.items()]
    order.shuffle(pairs)
    line = ", ".join(f"{key}: {value}" for key, value in pairs) + behind
    text = "\n".join([prompt, *([] if negative is None else [f"Negative prompt: {negative}"]), line])
    said = read(text.replace("\n", ends))
    assert (said.prompt, said.negative_prompt) == (prompt.strip("\n"), negative)
    for key, value in known.items():
        name, _ = KEYS[key]
        wanted = int(str(value)) - 1 if key == "Clip skip" else value
        if name in ("guidance_scale", "strength"):
            wanted = float(str(value))
        assert said.values[name] == wanted
    named = told(said)
    kept = [
        value for key, value in pairs_of(text).items() if key in named
    ]  # a quote that is open may meet another
    assert all(key in named or any(key in value for value in kept) for key in others), (named, text)
    assert "Template" in named or "Template" not in behind


@pytest.mark.parametrize(
    "line",
    [
        "Steps: 1, Seed: 1, Sampler: x, " + "a: [" * 50_000,
        "Steps: 1, Seed: 1, Sampler: x, " + 'a: {"' * 50_000,
        "Steps: 1, Seed: 1, Sampler: x, " + 'a: ["\\' * 50_000,
        "Steps: 1, Seed: 1, Sampler: x, " + "[" * 200_000,
        "Steps: 1, Seed: 1, Sampler: x\n" * 4_000,
        "Steps: 1, Seed: 1, Sampler: x\n" + "Template: x\n" * 4_000,
        "Negative prompt: " * 4_000 + "Steps: 1, Seed: 1, Sampler: x",
        "Steps: 1 " * 8_000 + ", Seed: 1, Sampler: x",
        "Lora hashes: a, Steps: 1, Seed: 1, " + "x: 00112233, " * 4_000,
        "Steps: 1, Seed: 1, Sampler: " + "1," * 100_000,
    ],
    ids=lambda line: line[:40],
)
def test_reading_takes_time_in_proportion_to_the_text(line: str) -> None:
    with cheap():
        taken_apart(f"a fox\n{line}")
        read(f"a fox\n{line}")
        is_infotext(line)


@pytest.mark.parametrize(
    ("more", "counting"),
    [
        ("Version: v1.10.1", "a1111"),
        ("Version: f2.0.1v1.10.1-previous-659", "forge"),
        ("Version: Fooocus v2.5.5", "comfyui"),
        ("App: SD.Next, Version: 9c5ef21", "diffusers"),
        ("Model: x", "a1111"),
        ('Civitai resources: [{"type": "lora", "modelVersionId": 1}]', "a1111"),
    ],
)
def test_a_clip_skip_counts_as_its_program_does(more: str, counting: str) -> None:
    values = read(f"a\n{LINE}, Clip skip: 2, {more}").values
    assert (values["clip_skip"], values["clip_skip_as"]) == (1, counting)
    ours = read(f"a\n{LINE}, Clip skip: 2, Version: lora-studio 0.1").values
    assert "clip_skip_as" not in ours


@pytest.mark.parametrize("key", ["Hires upscale: 2", "Hires resize: 256x192", "First pass size: 64x48"])
def test_a_second_pass_is_named_and_no_initial_image_is_asked_for(key: str) -> None:
    said = read(f"a\n{LINE}, Denoising strength: 0.4, {key}")
    assert "strength" not in said.values
    assert said.ignored == ("Denoising strength", key.partition(":")[0])


def test_a_template_is_all_that_follows_up_to_the_next_one() -> None:
    template = "a {fox|owl}, Clip skip: 5; Steps=5; Seed=9; Sampler=x\nin snow, Model: ghost"
    _, _, found = taken_apart(f"a fox\n{LINE}\nTemplate: {template}\nNegative Template: rain, Seed: 9")
    assert (found.pairs["Template"], found.pairs["Negative Template"]) == (template, "rain, Seed: 9")
    assert (found.pairs["Seed"], found.scraps, found.broken) == ("7", (), {})
    assert found.pairs.keys().isdisjoint({"Clip skip", "Model"})


@pytest.mark.parametrize("value", ['"fox', "[fox", '{"fox": 1', '"fo\\x"'])
def test_a_value_that_is_not_closed_is_no_value(value: str) -> None:
    _, _, found = taken_apart(f"a fox\n{LINE}, VAE: {value}")
    assert list(found.broken) == ["VAE"]
    assert "VAE" not in found.pairs
    assert found.pairs["Seed"] == "7"


def test_a_prompt_without_settings_is_a_prompt() -> None:
    assert understood("fox.png", {"parameters": "a fox"}).draft.values == {"prompt": "a fox"}


def test_sizes_may_stand_as_two_numbers() -> None:
    said = read("a\nSteps: 8, Sampler: Euler, Seed: 5, Width: 128, Height: 96")
    assert (said.values["width"], said.values["height"], said.ignored) == (128, 96, ())


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("Steps: 20; Sampler: Euler; CFG scale: 4.5; Seed: 7; Size: 128x96", SAID),
        ("Steps: 20 | Sampler: Euler | CFG scale: 4.5 | Seed: 7 | Size: 128x96", SAID),
        (
            "Steps\uff1a20\uff0cSampler\uff1aEuler\uff0cCFG scale\uff1a4.5\uff0cSeed\uff1a7\uff0cSize\uff1a128x96",
            SAID,
        ),
        ("Steps=20, Sampler=Euler, CFG scale=4.5, Seed=7, Size=128x96", SAID),
        ("Steps: 20, Seed: 5", {"steps": 20, "seed": 5}),
        ("Steps=20; Seed=5", {"steps": 20, "seed": 5}),
        ("Steps: 20", {"steps": 20}),
        ("Steps = 20", {"steps": 20}),
        ("Steps: 20\nSeed: 5", {"steps": 20, "seed": 5}),
    ],
)
def test_settings_are_read_by_other_signs_and_where_they_are_few(
    line: str, values: dict[str, object]
) -> None:
    said = read(f"a fox; a cat | one=two\nNegative prompt: blurry\n{line}")
    assert (said.prompt, said.negative_prompt) == ("a fox; a cat | one=two", "blurry")
    assert said.values == values
    assert not told(said)


@pytest.mark.parametrize(
    "older", [LINE.replace("20", "9"), "Steps=9; Sampler=DDIM; Seed=3", "Steps: 9, Seed: 3"]
)
def test_an_older_settings_line_is_cut_out_and_named(older: str) -> None:
    said = read(f"a fox\n{older}\nNegative prompt: blurry\n{older}\n{LINE}")
    assert (said.prompt, said.negative_prompt) == ("a fox", "blurry")
    assert said.values == SAID
    assert "other settings: Steps: 9" in told(said)


def test_sdnext() -> None:
    said = read(
        "a fox <lora:old:0.8> <lora:hat:1>\nNegative prompt: blurry\nSteps: 20, Size: 128x96, Sampler: Euler a, "
        "Scheduler: EulerAncestralDiscreteScheduler, Seed: 7, CFG scale: 6, CFG rescale: 0.7, CLiP-skip: 2, "
        "App: SD.Next, Version: 9c5ef21, Pipeline: StableDiffusionXLPipeline, Operations: txt2img, "
        'Model: jugg, LoRA networks: "old, hat", '
        'LoRA hashes: "0011223344, AABBCCDDEE", Sampler order: 2'
    )
    assert said.program == "SD.Next"
    assert said.values == {
        "steps": 20, "width": 128, "height": 96, "scheduler": "Euler a", "seed": 7, "guidance_scale": 6.0,
        "guidance_rescale": 0.7, "clip_skip": 1, "clip_skip_as": "diffusers",
    }  # fmt: skip
    assert said.lora_hashes == {"old": "0011223344", "hat": "aabbccddee"}
    assert told(said) == "Sampler order"


@pytest.mark.parametrize(
    ("more", "scheduler"),
    [
        (
            "Sampler: DPM++ 2M, Scheduler: DPMSolverMultistepScheduler, Sampler sigma: karras",
            "DPM++ 2M Karras",
        ),
        ("Sampler: DPM++ 2M, Sampler sigma: exponential", "DPM++ 2M Exponential"),
        ("Scheduler: UniPCMultistepScheduler", "UniPC"),
    ],
)
def test_sdnexts_schedulers(more: str, scheduler: str) -> None:
    said = read(f"a\nSteps: 20, {more}, Seed: 7, App: SD.Next")
    assert (said.values["scheduler"], told(said)) == (scheduler, "")


def test_a_sampler_that_is_not_offered_keeps_its_name() -> None:
    said = read("a\nSteps: 20, Sampler: DPM++ SDE, Schedule type: Karras, Seed: 7")
    assert (said.values["scheduler"], told(said)) == ("DPM++ SDE Karras", "")
    assert "Sampler" in read("a\nSteps: 20, Sampler: Wobble, Seed: 7").unread


@pytest.mark.parametrize(
    "more",
    [
        "Created Date: 2025-05-14T1408:30.9Z, Civitai metadata: {}",
        "Refiner: None, User: me, Operations: txt2img",
        "pag_enabled: False, VAE: Automatic",
        "VAE: Default (model), Raw prompt: a",
        "Denoising strength: 0",
    ],
)
def test_what_says_nothing_of_the_picture_is_not_told(more: str) -> None:
    said = read(f"a\n{LINE}, {more}")
    assert (said.values, said.vae, told(said)) == (SAID, None, "")


def test_the_vae_is_read() -> None:
    assert read(f"a\n{LINE}, VAE hash: 735e4c3a44, VAE: sub/soft.safetensors").vae == "soft"


def test_resources_that_civitai_names_by_its_own_names() -> None:
    rows = [
        {"type": "checkpoint", "air": "urn:air:sdxl:checkpoint:civitai:101055@128078"},
        {"air": "urn:air:sdxl:lora:civitai:1@2", "weight": 0.5},
        {"air": "urn:air:other"},
    ]
    said = read(f"a\n{LINE}, Civitai resources: {json.dumps(rows)}")
    assert said.model == "Civitai's model version '128078'"
    assert [(one.adapter, one.weight) for one in said.loras] == [("Civitai's model version '2'", 0.5)]
    assert "Civitai resource" in told(said)


@pytest.mark.parametrize(
    "version", ["f2.0.1v1.10.1-previous-659", "neo", "classic", "f1.7.0-v1.10.1RC-latest-2230"]
)
def test_forges_offspring_count_as_forge(version: str) -> None:
    assert read(f"a\n{LINE}, Clip skip: 2, Version: {version}").values["clip_skip_as"] == "forge"


def test_a_network_of_sdnext_without_a_tag_is_told() -> None:
    said = read(f'a <lora:Fox:1>\n{LINE}, App: SD.Next, LoRA networks: "fox, hat", VAE hash: 0011223344')
    assert said.ignored == ("VAE hash", "LoRA hat")
