"""Models, VAEs, clip skip and LoRAs in ComfyUI's graphs: what acts on the picture, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from studio.pictures.comfyui import Graphed

from .comfy_graphs import node, read

MODEL, CLIP = ["4", 0], ["4", 1]


def loras(said: Graphed) -> list[tuple[str, float | None, float | None]]:
    return [(one.adapter, one.weight, one.text_weight) for one in said.wanted]


def through(loader: dict[str, Any], *, clip: bool = True, **more: Any) -> Graphed:
    """What a graph says whose sampler gets its model from a loader, node 10, and its prompts their text encoder."""
    encoders = {}
    if clip:
        encoders = {
            "6": node("CLIPTextEncode", text="a fox", clip=["10", 1]),
            "7": node("CLIPTextEncode", text="blurry", clip=["10", 1]),
        }
    return read({"10": loader, **encoders, **more}, model=["10", 0])


def loader(kind: str, **inputs: Any) -> dict[str, Any]:
    return node(kind, model=MODEL, clip=CLIP, **inputs)


STACK = ["20", 0]
FILES = {
    "lora_name_1": "x\\a.safetensors",
    "lora_name_2": "None",
    "lora_name_3": "b.safetensors",
    "lora_name_4": "c.pt",
}
TWO = [("a", 0.5, 0.25), ("b", 1.0, None)]


@pytest.mark.parametrize(
    ("kind", "inputs", "right"),
    [
        ("LoraLoader", {"lora_name": "a.safetensors", "strength_model": 0.5, "strength_clip": 0.25}, TWO[:1]),
        (
            "LoraLoader",
            {"lora_name": "d/a.safetensors", "strength_model": 0, "strength_clip": 0.25},
            [("a", 0, 0.25)],
        ),
        ("LoraLoader", {"lora_name": "a.safetensors", "strength_model": 0, "strength_clip": 0}, []),
        ("LoraLoader", {"lora_name": "None", "strength_model": 1, "strength_clip": 1}, []),
        (
            "LoraLoader|pysssss",
            {
                "lora_name": {"content": "a.safetensors", "image": "x.png"},
                "strength_model": 0.5,
                "strength_clip": 0.25,
            },
            TWO[:1],
        ),
        ("Load Lora", {"lora_name": "a.safetensors", "strength_model": 0.5, "strength_clip": 0.25}, TWO[:1]),
        (
            "CR Load LoRA",
            {"switch": "On", "lora_name": "a.safetensors", "strength_model": 0.5, "strength_clip": 0.25},
            TWO[:1],
        ),
        (
            "CR Load LoRA",
            {"switch": "Off", "lora_name": "a.safetensors", "strength_model": 0.5, "strength_clip": 0.25},
            [],
        ),
        (
            "Power Lora Loader (rgthree)",
            {
                "PowerLoraLoaderHeaderWidget": {"type": "PowerLoraLoaderHeaderWidget"},
                "lora_1": {"on": True, "lora": "a.safetensors", "strength": 0.5, "strengthTwo": 0.25},
                "lora_2": {"on": False, "lora": "off.safetensors", "strength": 1},
                "lora_3": {"on": True, "lora": "b.safetensors", "strength": 1, "strengthTwo": None},
                "lora_4": {"on": True, "lora": "None", "strength": 1},
            },
            TWO,
        ),
        ("Power Lora Loader (rgthree)", {"PowerLoraLoaderHeaderWidget": {"type": "x"}}, []),
        (
            "Lora Loader Stack (rgthree)",
            {
                "lora_01": "a.safetensors",
                "strength_01": 0.5,
                "lora_02": "None",
                "strength_02": 1,
                "lora_03": "b.safetensors",
                "strength_03": 0,
            },
            [("a", 0.5, None)],
        ),
        (
            "Lora Loader (LoraManager)",
            {
                "text": "<lora:a:0.9>",
                "loras": [
                    {"name": "a", "strength": "0.50", "clipStrength": "0.25", "active": True},
                    {"name": "off", "strength": 1, "active": False},
                    {"name": "b", "strength": 1.0, "active": True},
                ],
            },
            TWO,
        ),
        ("Lora Loader (LoraManager)", {"text": "<lora:a:0.5:0.25> <lora:b:1>"}, TWO),
        ("Lora Loader (LoraManager)", {"text": "", "loras": {"__value__": []}}, []),
        ("LoRA Text Loader (LoraManager)", {"lora_syntax": "<lora:a:0.5:0.25>, <lora:b:1>"}, TWO),
        ("LoraTagLoader", {"text": "a fox <lora:a:0.5:0.25> <lora:b:1>"}, TWO),
        (
            "MyOwnLoraLoader",
            {
                "lora_1": "a.safetensors",
                "model_strength_1": 0.5,
                "clip_strength_1": 0.25,
                "lora_2": "b.safetensors",
                "model_strength_2": 1.0,
                "clip_strength_2": 1.0,
            },
            TWO,
        ),
    ],
)
def test_loaders(kind: str, inputs: dict[str, Any], right: list[Any]) -> None:
    said = through(loader(kind, **inputs))
    assert (loras(said), said.notes, said.model) == (right, (), "m.safetensors")


@pytest.mark.parametrize(
    ("kind", "inputs", "right"),
    [
        (
            "LoRA Stacker",
            {
                "input_mode": "advanced",
                "lora_count": 3,
                "model_str_1": 0.5,
                "clip_str_1": 0.25,
                "model_str_3": 1.0,
                "clip_str_3": 1.0,
                "lora_wt_1": 9,
                "lora_wt_3": 9,
                **FILES,
            },
            TWO,
        ),
        (
            "LoRA Stacker",
            {
                "input_mode": "simple",
                "lora_count": 1,
                "lora_wt_1": 0.5,
                "model_str_1": 9,
                "clip_str_1": 9,
                **FILES,
            },
            [("a", 0.5, None)],
        ),
        (
            "CR LoRA Stack",
            {
                "switch_1": "On",
                "switch_2": "On",
                "switch_3": "On",
                "switch_4": "Off",
                "model_weight_1": 0.5,
                "clip_weight_1": 0.25,
                "model_weight_3": 1,
                "clip_weight_3": 1,
                **FILES,
            },
            TWO,
        ),
        (
            "easy loraStack",
            {
                "toggle": True,
                "mode": "advanced",
                "num_loras": 2,
                "lora_1_name": "a.safetensors",
                "lora_1_strength": 9,
                "lora_1_model_strength": 0.5,
                "lora_1_clip_strength": 0.25,
                "lora_2_name": "b.safetensors",
                "lora_2_strength": 9,
                "lora_2_model_strength": 1,
                "lora_2_clip_strength": 1,
                "lora_3_name": "c.safetensors",
                "lora_3_strength": 1,
            },
            TWO,
        ),
        (
            "easy loraStack",
            {
                "toggle": True,
                "mode": "simple",
                "num_loras": 1,
                "lora_1_name": "a.safetensors",
                "lora_1_strength": 0.5,
                "lora_1_model_strength": 9,
                "lora_1_clip_strength": 9,
            },
            [("a", 0.5, None)],
        ),
        (
            "easy loraStack",
            {
                "toggle": False,
                "mode": "simple",
                "num_loras": 1,
                "lora_1_name": "a.safetensors",
                "lora_1_strength": 0.5,
            },
            [],
        ),
        (
            "Lora Stacker (LoraManager)",
            {
                "text": "<lora:z:1>",
                "loras": {
                    "__value__": [
                        {"name": "a", "strength": 0.5, "clipStrength": 0.25, "active": True},
                        {"name": "b", "strength": 1, "active": True},
                        {"name": "z", "strength": 1, "active": False},
                    ]
                },
            },
            TWO,
        ),
    ],
)
@pytest.mark.parametrize(
    "road", ["CR Apply LoRA Stack", "Lora Loader (LoraManager)", "Efficient Loader", "easy fullLoader"]
)
def test_stacks(kind: str, inputs: dict[str, Any], right: list[Any], road: str) -> None:
    stack = {"20": node(kind, **inputs)}
    if road == "Efficient Loader":
        made = node(
            road,
            ckpt_name="m.safetensors",
            vae_name="Baked VAE",
            clip_skip=-1,
            lora_name="None",
            positive="a fox",
            lora_model_strength=1.0,
            lora_clip_strength=1.0,
            negative="blurry",
            empty_latent_width=640,
            empty_latent_height=512,
            lora_stack=STACK,
        )
        out = [["10", slot] for slot in range(7)]
        said = read(
            {"10": made, **stack}, model=out[0], positive=out[1], negative=out[2], latent_image=out[3]
        )
    elif road == "easy fullLoader":
        made = node(
            road,
            ckpt_name="m.safetensors",
            vae_name="Baked VAE",
            clip_skip=-1,
            lora_name="None",
            positive="a fox",
            negative="blurry",
            resolution="640 x 512",
            empty_latent_width=64,
            empty_latent_height=64,
            optional_lora_stack=STACK,
        )
        sampling = node(
            "easy preSampling",
            pipe=["10", 0],
            steps=25,
            cfg=5.5,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1,
            seed=11,
        )
        sampler = node("easy kSampler", pipe=["11", 0], image_output="Hide", link_id=0, save_prefix="x")
        said = read(
            {"10": made, "11": sampling, "3": sampler, "9": node("SaveImage", images=["3", 1]), **stack}
        )
    else:
        more = {"text": "", "loras": []} if "Manager" in road else {}
        said = through(loader(road, lora_stack=STACK, **more), **stack)
    assert (loras(said), said.notes, said.model) == (right, (), "m.safetensors")
    assert (said.values["prompt"], said.values["seed"], said.values["width"]) == ("a fox", 11, 640)


def test_stacks_one_after_another() -> None:
    first = node(
        "LoRA Stacker", input_mode="simple", lora_count=1, lora_name_1="a.safetensors", lora_wt_1=0.5
    )
    second = node(
        "CR LoRA Stack",
        switch_1="On",
        lora_name_1="b.safetensors",
        model_weight_1=1.0,
        clip_weight_1=1.0,
        lora_stack=["21", 0],
    )
    own = [{"name": "c", "strength": 2, "active": True}]
    said = through(
        loader("Lora Loader (LoraManager)", text="", loras=own, lora_stack=STACK),
        **{"20": second, "21": first},
    )
    assert loras(said) == [("a", 0.5, None), ("b", 1.0, None), ("c", 2.0, None)]


def test_stacks_that_are_joined() -> None:
    stacks = {
        str(place): node(
            "LoRA Stacker",
            input_mode="simple",
            lora_count=1,
            lora_name_1=f"{name}.safetensors",
            lora_wt_1=0.5,
        )
        for place, name in ((21, "a"), (22, "b"), (23, "c"))
    }
    links = {f"lora_stack{place - 20}": [str(place), 0] for place in (21, 22, 23)}
    joined = node("Lora Stack Combiner (LoraManager)", **links)
    said = through(loader("CR Apply LoRA Stack", lora_stack=STACK), **{"20": joined}, **stacks)
    assert (loras(said), said.notes) == ([("a", 0.5, None), ("b", 0.5, None), ("c", 0.5, None)], ())


def test_the_text_encoders_strength_counts_only_where_the_prompt_went_through() -> None:
    own = {"lora_name": "a.safetensors", "strength_model": 0.5, "strength_clip": 0.25}
    assert loras(through(loader("LoraLoader", **own))) == [("a", 0.5, 0.25)]
    assert loras(through(loader("LoraLoader", **own), clip=False)) == [("a", 0.5, 0)]
    alone = node("LoraLoaderModelOnly", model=MODEL, lora_name="a.safetensors", strength_model=0.5)
    assert loras(through(alone, clip=False)) == [("a", 0.5, 0)]
    encoder = {
        "6": node("CLIPTextEncode", text="a fox", clip=["10", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["10", 1]),
    }
    assert loras(read({"10": loader("LoraLoader", **own), **encoder})) == [("a", 0, 0.25)]


def test_loaders_without_a_link_to_the_sampler_do_not_count() -> None:
    other = node(
        "LoraLoader", lora_name="z.safetensors", strength_model=1, strength_clip=1, model=MODEL, clip=CLIP
    )
    said = read({"50": other})
    assert (loras(said), said.notes) == ([], ())


def test_a_lora_that_is_loaded_twice_acts_with_the_sum() -> None:
    own = {"lora_name": "a.safetensors", "strength_model": 0.5, "strength_clip": 0.25}
    second = node("LoraLoader", model=["10", 0], clip=["10", 1], **own)
    encoders = {
        "6": node("CLIPTextEncode", text="a fox", clip=["11", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["11", 1]),
    }
    said = read({"10": loader("LoraLoader", **own), "11": second, **encoders}, model=["11", 0])
    assert loras(said) == [("a", 1.0, 0.5)]
    assert said.notes == ("LoRA 'a' is loaded more than once; its strengths are added",)


@pytest.mark.parametrize("mode", [2, 4])
def test_what_the_drawn_workflow_turns_off_does_not_count(mode: int) -> None:
    own = loader("LoraLoader", lora_name="a.safetensors", strength_model=0.5, strength_clip=0.25)
    encoder = {"6": node("CLIPTextEncode", text="a fox", clip=["10", 1])}
    drawn = {"nodes": [{"id": 10, "type": "LoraLoader", "mode": mode}], "links": []}
    said = read({"10": own, **encoder}, drawn=drawn, model=["10", 0])
    assert loras(said) == []
    assert said.notes == ("left out: the LoRAs of LoraLoader (node 10), which the drawn workflow turns off",)
    drawn["nodes"][0]["type"] = "KSampler"  # another workflow
    assert loras(read({"10": own, **encoder}, drawn=drawn, model=["10", 0])) == [("a", 0.5, 0.25)]


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("FancyLoraThing", {"config": "a.json"}),
        ("HypernetworkLoader", {"hypernetwork_name": "h.pt", "strength": 1.0}),
        ("Lora Randomizer (LoraManager)", {"loras": [{"name": "a", "strength": 1, "active": True}]}),
    ],
)
def test_a_loader_that_is_not_understood_is_told(kind: str, inputs: dict[str, Any]) -> None:
    said = through(loader(kind, **inputs))
    assert loras(said) == []
    assert f"1 LoRA loader not understood: {kind} (node 10)" in said.notes


def test_a_stack_that_is_not_understood_is_told() -> None:
    chance = node(
        "CR Random LoRA Stack",
        exclusive_mode="Off",
        switch_1="On",
        chance_1=0.5,
        lora_name_1="a.safetensors",
        model_weight_1=1.0,
        clip_weight_1=1.0,
        lora_stack=["21", 0],
    )
    odd = node("Somebody's Stack", preset="mine")
    said = through(loader("CR Apply LoRA Stack", lora_stack=STACK), **{"20": chance, "21": odd})
    assert (
        "2 LoRA loaders not understood: CR Random LoRA Stack (node 20), Somebody's Stack (node 21)"
        in said.notes
    )
    assert loras(said) == []


def test_a_strength_that_is_not_understood_is_told() -> None:
    own = loader("LoraLoader", lora_name="a.safetensors", strength_model=["30", 0], strength_clip=1.0)
    said = through(own, **{"30": node("CR Gradient Float", start_value=0.0, end_value=1.0)})
    assert loras(said) == [("a", None, None)]
    assert said.notes == ("the strength of LoRA 'a' is not understood",)


def test_strengths_by_block_are_told() -> None:
    own = {"lora_name": "a.safetensors", "strength_model": 0.5, "strength_clip": 0.5, "seed": 99}
    said = through(loader("LoraLoaderBlockWeight //Inspire", block_vector="1,0,0,1", **own))
    assert loras(said) == [("a", 0.5, None)]
    told = "the strengths by block of LoraLoaderBlockWeight //Inspire (node 10) are left out: '1,0,0,1'"
    assert said.notes == (told,)
    assert not through(loader("LoraLoaderBlockWeight //Inspire", block_vector="1,1,1.0,1", **own)).notes
    assert not loras(through(loader("LoraLoaderBlockWeight //Inspire", block_vector="1", bypass=True, **own)))


def test_what_changes_the_model_on_its_way_is_told() -> None:
    more = {
        "10": node("FreeU_V2", model=["11", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        "11": node("ModelMergeSimple", model1=["12", 0], model2=["13", 0], ratio=0.5),
        "12": node("LoraLoaderModelOnly", model=MODEL, lora_name="a.safetensors", strength_model=1.0),
        "13": node("CheckpointLoaderSimple", ckpt_name="other.safetensors"),
    }
    said = read(more, model=["10", 0])
    assert (said.model, loras(said)) == ("m.safetensors", [("a", 1.0, 0)])
    assert said.notes == ("left out: FreeU_V2 (node 10), ModelMergeSimple (node 11)",)


def test_control_nets_of_a_loader_are_told() -> None:
    made = node(
        "Efficient Loader",
        ckpt_name="m.safetensors",
        vae_name="Baked VAE",
        clip_skip=-1,
        lora_name="None",
        positive="a fox",
        negative="blurry",
        empty_latent_width=640,
        empty_latent_height=512,
        cnet_stack=["20", 0],
    )
    stack = node("CR Multi-ControlNet Stack", switch_1="On", controlnet_1="c.safetensors")
    out = [["10", slot] for slot in range(4)]
    said = read(
        {"10": made, "20": stack}, model=out[0], positive=out[1], negative=out[2], latent_image=out[3]
    )
    assert said.notes == ("left out: CR Multi-ControlNet Stack (node 20)",)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (node("UNETLoader", unet_name="u.safetensors", weight_dtype="default"), "u.safetensors"),
        (node("CheckpointLoader|pysssss", ckpt_name={"content": "d/u.safetensors"}), "d/u.safetensors"),
        (node("CheckpointLoaderSimple", ckpt_name=["41", 0]), "u.safetensors"),
        (node("DiffusersLoader", model_path="u"), "u"),
    ],
)
def test_models(source: dict[str, Any], name: str) -> None:
    said = read({"40": source, "41": node("easy ckptNames", ckpt_name="u.safetensors")}, model=["40", 0])
    assert (said.model, said.notes) == (name, ())


def test_a_model_that_is_not_understood_is_told() -> None:
    said = read({"40": node("Somebody's Model", own={"x": 1})}, model=["40", 0])
    assert said.model == ""
    assert "model not understood: KSampler (node 3) is given none that is known" in said.notes


def test_the_vae() -> None:
    decode = {"8": node("VAEDecode", samples=["3", 0], vae=["60", 0])}
    assert read(decode | {"60": node("VAELoader", vae_name="soft.safetensors")}).vae == "soft.safetensors"
    assert read().vae is None
    said = read(decode | {"60": node("Somebody's VAE", own={"x": 1})})
    assert (said.vae, said.notes) == (None, ("VAE not understood: it comes from Somebody's VAE (node 60)",))


@pytest.mark.parametrize(("layer", "skip"), [(-1, 0), (-2, 1), (-3, 2), (0, None)])
def test_clip_skip(layer: int, skip: int | None) -> None:
    more = {
        "10": node("CLIPSetLastLayer", stop_at_clip_layer=layer, clip=CLIP),
        "6": node("CLIPTextEncode", text="a fox", clip=["10", 0]),
        "7": node("CLIPTextEncode", text="blurry", clip=["10", 0]),
    }
    said = read(more)
    assert (said.values.get("clip_skip"), said.notes) == (skip, ())


def test_more_than_is_named_of_what_is_left_out_is_told() -> None:
    nodes = {
        str(n): node("Somebody's Change", own=n, model=[str(n + 1) if n < 160 else "4", 0])
        for n in range(100, 161)
    }
    (left,) = [note for note in read(nodes, model=["100", 0]).notes if note.startswith("left out: ")]
    assert (left.count("Somebody's Change"), left.endswith(", and more")) == (40, True)


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_clip_skip_of_one_prompt_alone_is_told(layer: int) -> None:
    said = read(
        {
            "10": node("CLIPSetLastLayer", stop_at_clip_layer=layer, clip=CLIP),
            "7": node("CLIPTextEncode", text="blurry", clip=["10", 0]),
        }
    )
    told = ("its prompts were encoded with different clip skips; that of the first prompt is taken",)
    assert (said.values.get("clip_skip"), said.notes) == (None, told if layer == -2 else ())


def test_a_text_of_loras_without_a_tag_is_told() -> None:
    said = through(loader("LoraTextLoader", lora_text="castle.safetensors:0.5\nkimono:0.2"))
    assert "1 LoRA loader not understood" in " ".join(said.notes)
