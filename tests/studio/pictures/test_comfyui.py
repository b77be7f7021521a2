"""ComfyUI's graphs, followed back from the saved picture to its first sampler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.errors import RequestError
from pipelines.home import Home
from studio.library.scan import Library
from studio.pictures.comfyui import Graphed, read_comfyui
from studio.pictures.restore import restore

from .comfy_graphs import BASE, node, read

BOTH = {"positive": ["6", 0], "negative": ["7", 0]}


def custom(**changed: Any) -> dict[str, Any]:
    """The graph with ComfyUI's newer sampler, whose settings lie in nodes of their own."""
    nodes = {
        "3": node("SamplerCustomAdvanced", noise=["31", 0], guider=["32", 0], sampler=["33", 0], sigmas=["34", 0],
                  latent_image=["5", 0]),
        "31": node("RandomNoise", noise_seed=2**63 + 1),
        "32": node("CFGGuider", model=["4", 0], cfg=6.5, **BOTH),
        "33": node("KSamplerSelect", sampler_name="euler_ancestral"),
        "34": node("BasicScheduler", model=["4", 0], scheduler="normal", steps=30, denoise=1.0),
    }  # fmt: skip
    return nodes | changed


def settings(said: Graphed) -> tuple[Any, ...]:
    return tuple(said.values.get(name) for name in ("seed", "steps", "guidance_scale", "scheduler"))


def test_a_plain_graph() -> None:
    said = read()
    assert said.values == {
        "prompt": "a fox", "negative_prompt": "blurry", "steps": 25, "seed": 11, "guidance_scale": 5.5,
        "scheduler": "DPM++ 2M Karras", "width": 640,
        "height": 512,
    }  # fmt: skip
    assert (said.model, said.vae, said.from_picture, said.wanted, said.notes) == (
        "m.safetensors",
        None,
        False,
        (),
        (),
    )


# -- samplers --------------------------------------------------------------------------------------------


def test_the_newer_sampler() -> None:
    said = read(custom())
    assert settings(said) == (2**63 + 1, 30, 6.5, "Euler a")
    assert (said.values["prompt"], said.values["negative_prompt"]) == ("a fox", "blurry")
    assert said.notes == ()


def test_the_newer_sampler_with_karras_own_node_and_a_solver_of_its_own() -> None:
    changed = {
        "33": node("SamplerDPMPP_2M_SDE", solver_type="midpoint", eta=1.0, s_noise=1.0, noise_device="gpu"),
        "34": node("KarrasScheduler", steps=12, sigma_max=14.6, sigma_min=0.03, rho=7.0),
    }
    assert settings(read(custom(**changed)))[1:] == (12, 6.5, "DPM++ 2M SDE Karras")


def test_a_guider_without_negative_prompt_is_no_guidance() -> None:
    said = read(custom(**{"32": node("BasicGuider", model=["4", 0], conditioning=["6", 0])}))
    assert said.values["guidance_scale"] == 1
    assert (said.values["prompt"], said.values["negative_prompt"]) == ("a fox", None)


def test_a_guider_with_two_prompts_is_told() -> None:
    guider = node("DualCFGGuider", model=["4", 0], cond1=["6", 0], cond2=["7", 0], negative=["7", 0], cfg_conds=8.0,
                  cfg_cond2_negative=2.0)  # fmt: skip
    said = read(custom(**{"32": guider}))
    assert (said.values["prompt"], said.values["guidance_scale"]) == ("a fox", 8)
    assert said.notes == ("left out: the second prompt of DualCFGGuider (node 32)",)


def test_sigmas_that_are_split_are_told() -> None:
    changed = {"35": node("BasicScheduler", model=["4", 0], scheduler="karras", steps=20, denoise=1.0),
               "34": node("SplitSigmas", sigmas=["35", 0], step=10)}  # fmt: skip
    said = read(custom(**changed))
    assert said.values["steps"] == 20
    assert said.notes[-1] == "left out: SplitSigmas (node 34)"


def test_the_advanced_sampler() -> None:
    sampler = node("KSamplerAdvanced", add_noise="enable", noise_seed=2**64 - 1, steps=20, cfg=4, sampler_name="euler",
                   scheduler="normal", start_at_step=0, end_at_step=10000, return_with_leftover_noise="disable",
                   model=["4", 0], latent_image=["5", 0], **BOTH)  # fmt: skip
    said = read({"3": sampler})
    assert settings(said) == (2**64 - 1, 20, 4, "Euler")
    assert not said.notes
    sampler["inputs"] |= {"add_noise": "disable", "end_at_step": 15}
    assert read({"3": sampler}).notes == (
        "KSamplerAdvanced (node 3) added no noise of its own, so the seed does not tell the picture",
        "KSamplerAdvanced (node 3) ended at step 15 of 20",
    )


def test_the_seeds_are_exact() -> None:
    for seed in (0, 2**53 + 1, 2**64 - 1, 2**64 + 1):
        assert read(seed=seed).values["seed"] == seed
        assert read({"40": node("PrimitiveInt", value=seed)}, seed=["40", 0]).values["seed"] == seed
        assert read({"40": node("Seed (rgthree)", seed=str(seed))}, seed=["40", 0]).values["seed"] == seed
    half = node("SimpleMath+", value="(a * 2) / 2", a=["40", 0])
    assert read({"40": node("PrimitiveInt", value=30), "41": half}, steps=["41", 0]).values["steps"] == 30
    sum_of = node("MathExpression|pysssss", expression="a * 2 + b", a=["40", 0], b=1)
    assert (
        read({"40": node("PrimitiveInt", value=2**60), "41": sum_of}, seed=["41", 0]).values["seed"]
        == 2**61 + 1
    )


@pytest.mark.parametrize(
    "source",
    [
        node("Random Number", number_type="integer", minimum=0, maximum=100, seed=4),
        node("CR Increment Integer", start_value=1, step=1, start_frame=0, current_frame=5),
        node("Seed Of My Own", text="a"),
        node("Multiplied", value=7, factor=3),
        node("PrimitiveFloat", value=1e30),
        node("Seed (rgthree)", seed=-1),
    ],
    ids=lambda source: source["class_type"],
)
def test_a_seed_that_is_not_understood_is_told(source: dict[str, Any]) -> None:
    said = read({"40": source}, seed=["40", 0])
    assert said.values["seed"] is None
    assert said.notes == (f"seed not understood: it comes from {source['class_type']} (node 40)",)


def test_solver_and_spacing_are_one_name_here() -> None:
    assert read(sampler_name="euler", scheduler="sgm_uniform").values["scheduler"] == "Euler trailing"
    for solver, spacing in (
        ("euler", "kl_optimal"),
        ("strange", "karras"),
    ):  # the way back from pictures tells why
        assert read(sampler_name=solver, scheduler=spacing).values["scheduler"] == f"{solver} {spacing}"


def test_values_from_other_nodes() -> None:
    more = {
        "40": node("PrimitiveFloat", value=3.5),
        "41": node("ImpactInt", value=33),
        "42": node("Sampler Selector (Image Saver)", sampler_name="euler_ancestral"),
        "43": node("Scheduler Selector", scheduler="normal"),
        "44": node(
            "CR Aspect Ratio",
            width=64,
            height=64,
            aspect_ratio="3:4 portrait 896x1152",
            swap_dimensions="Off",
        ),
        "5": node("EmptyLatentImage", width=["44", 0], height=["44", 1], batch_size=1),
    }
    said = read(more, cfg=["40", 0], steps=["41", 0], sampler_name=["42", 0], scheduler=["43", 0])
    assert settings(said) == (11, 33, 3.5, "Euler a")
    assert (said.values["width"], said.values["height"]) == (896, 1152)


def test_contexts() -> None:
    more = {
        "10": node("Context (rgthree)", model=["4", 0], clip=["4", 1], positive=["6", 0], seed=99),
        "11": node("Context (rgthree)", negative=["7", 0], latent=["5", 0], seed=77),
        "12": node("Context Merge (rgthree)", ctx_01=["10", 0], ctx_02=["11", 0]),
        "13": node("Context Switch (rgthree)", ctx_03=["12", 0]),
        "14": node(
            "Context Big (rgthree)", base_ctx=["13", 0], steps=["15", 0], cfg=["15", 2], sampler=["15", 3]
        ),
        "15": node(
            "KSampler Config (rgthree)",
            steps_total=33,
            refiner_step=24,
            cfg=4.5,
            sampler_name="euler_ancestral",
        ),
    }
    said = read(
        more,
        model=["14", 1],
        positive=["14", 4],
        negative=["14", 5],
        latent_image=["14", 6],
        seed=["14", 8],
        steps=["14", 9],
        cfg=["14", 11],
        sampler_name=["14", 13],
        scheduler="normal",
    )
    assert settings(said) == (77, 33, 4.5, "Euler a")
    assert (said.model, said.values["prompt"], said.values["width"], said.notes) == (
        "m.safetensors",
        "a fox",
        640,
        (),
    )


def test_a_variation_seed_is_told() -> None:
    said = read(variation_seed=3, variation_strength=0.2)
    assert said.notes == ("left out: the variation seed of KSampler (node 3)",)
    assert not read(variation_seed=3, variation_strength=0.0).notes


# -- passes ----------------------------------------------------------------------------------------------


def later(**changed: Any) -> dict[str, Any]:
    own = {"seed": 5, "steps": 10, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5,
           "model": ["4", 0], "latent_image": ["10", 0], **BOTH}  # fmt: skip
    return node("KSampler", **own | changed)


def test_of_two_passes_the_first_counts() -> None:
    upscale = node(
        "LatentUpscale", upscale_method="bicubic", width=1280, height=1024, crop="disabled", samples=["3", 0]
    )
    decode = node("VAEDecode", samples=["11", 0], vae=["4", 2])
    said = read({"10": upscale, "11": later(), "8": decode})
    assert settings(said) == settings(read())
    assert (said.values["width"], said.values["height"], said.from_picture) == (640, 512, False)
    assert said.notes == ("the first of two passes is taken; left out: KSampler (node 11)",)


def test_a_second_pass_over_the_picture() -> None:
    more = {
        "12": node("UpscaleModelLoader", model_name="4x.pth"),
        "13": node("ImageUpscaleWithModel", upscale_model=["12", 0], image=["8", 0]),
        "10": node("VAEEncode", pixels=["13", 0], vae=["4", 2]),
        "11": later(),
        "14": node("VAEDecode", samples=["11", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["14", 0]),
    }
    said = read(more)
    assert (said.values["seed"], said.from_picture) == (11, False)
    assert said.notes == (
        "the first of two passes is taken; left out: KSampler (node 11)",
        "left out: ImageUpscaleWithModel (node 13)",
    )


def test_a_detailer_is_a_later_pass() -> None:
    detailer = node("FaceDetailer", image=["8", 0], model=["4", 0], clip=["4", 1], vae=["4", 2], seed=99, steps=20,
                    cfg=8, sampler_name="euler", scheduler="normal", denoise=0.5, wildcard="", **BOTH)  # fmt: skip
    said = read({"10": detailer, "9": node("SaveImage", images=["10", 0])})
    assert said.values["seed"] == 11
    assert said.notes == ("the first of two passes is taken; left out: FaceDetailer (node 10)",)


def test_base_and_refiner() -> None:
    own = {"steps": 25, "cfg": 5, "sampler_name": "euler", "scheduler": "normal"}
    more = {
        "3": node("KSamplerAdvanced", add_noise="enable", noise_seed=7, start_at_step=0, end_at_step=20,
                  return_with_leftover_noise="enable", model=["4", 0], latent_image=["5", 0], **own, **BOTH),
        "30": node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors"),
        "31": node("CLIPTextEncodeSDXLRefiner", ascore=6, width=1024, height=1024, text="other", clip=["30", 1]),
        "32": node("KSamplerAdvanced", add_noise="disable", noise_seed=0, start_at_step=20, end_at_step=10000,
                   return_with_leftover_noise="disable", model=["30", 0], positive=["31", 0], negative=["31", 0],
                   latent_image=["3", 0], **own),
        "8": node("VAEDecode", samples=["32", 0], vae=["4", 2]),
    }  # fmt: skip
    said = read(more)
    assert (said.model, said.values["prompt"], said.values["seed"], said.values["steps"]) == (
        "m.safetensors",
        "a fox",
        7,
        25,
    )
    assert "the first of two passes is taken; left out: KSamplerAdvanced (node 32)" in said.notes


def test_the_saving_node_that_names_the_file_counts() -> None:
    other = {
        "50": later(seed=12, denoise=1, latent_image=["5", 0]),
        "51": node("VAEDecode", samples=["50", 0], vae=["4", 2]),
        "52": node("SaveImage", filename_prefix="tests/second", images=["51", 0]),
    }
    for name, seed in (("ComfyUI_00001_.png", 11), ("second_00001_.png", 12), ("renamed.png", 11)):
        said = read(other, name=name)
        assert said.values["seed"] == seed
        assert any("1 more sampler made pictures" in note for note in said.notes)


# -- what it began with ----------------------------------------------------------------------------------


LOADED = {"20": node("LoadImage", image="a.png"), "5": node("VAEEncode", pixels=["20", 0], vae=["4", 2])}


def test_made_from_another_picture() -> None:
    said = read(LOADED, denoise=0.4)
    assert (said.from_picture, said.values["strength"], said.values["steps"]) == (True, 0.4, 25)
    assert said.notes == (
        "ComfyUI runs all 25 steps at denoise 0.4; here that part of the steps runs, so 62 steps are as many",
    )
    scaled = {"21": node("ImageScale", image=["20", 0], upscale_method="area", width=768, height=320, crop="center"),
              "5": node("VAEEncode", pixels=["21", 0], vae=["4", 2])}  # fmt: skip
    said = read(LOADED | scaled, denoise=0.4)
    assert (said.values["width"], said.values["height"]) == (768, 320)


def test_steps_left_out_of_another_picture_are_its_strength() -> None:
    sampler = node("KSamplerAdvanced", add_noise="enable", noise_seed=7, steps=20, cfg=4, sampler_name="euler",
                   scheduler="normal", start_at_step=15, end_at_step=10000, return_with_leftover_noise="disable",
                   model=["4", 0], latent_image=["5", 0], **BOTH)  # fmt: skip
    said = read(LOADED | {"3": sampler})
    assert (said.from_picture, said.values["strength"], said.notes) == (True, 0.25, ())


def test_another_picture_under_full_noise_gave_its_size_alone() -> None:
    said = read(LOADED, denoise=1)
    assert (said.from_picture, "strength" in said.values) == (False, False)
    assert "it began with another picture's size, and kept nothing else of it" in said.notes


def test_inpainting_is_told() -> None:
    said = read(LOADED | {"5": node("VAEEncodeForInpaint", pixels=["20", 0], vae=["4", 2], mask=["20", 1])})
    assert said.from_picture
    assert "left out: VAEEncodeForInpaint (node 5)" in said.notes


def test_part_of_the_noise_without_a_picture_is_told() -> None:
    said = read(denoise=0.5)
    assert not said.from_picture
    assert said.notes == ("KSampler (node 3) began with denoise 0.5 and no picture, which is left out",)


# -- where the graph lies --------------------------------------------------------------------------------


def test_the_whole_road_from_a_picture(home: Home, tmp_path: Path) -> None:
    own = Home.resolve(home)
    info = PngInfo()
    more = LOADED | {
        "8": node("VAEDecode", samples=["3", 0], vae=["60", 0]),
        "60": node("VAELoader", vae_name="soft.pt"),
    }
    graph = BASE | more
    graph["3"] = node("KSampler", **BASE["3"]["inputs"] | {"denoise": 0.4})
    info.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=info)
    found = restore(tmp_path / "a.png", own, Library(lambda: own))
    assert found.program == "ComfyUI"
    assert found.draft.values["strength"] == 0.4
    assert [(one.kind, one.name) for one in found.missing] == [("model", "m"), ("VAE", "soft")]
    assert any("made from another picture, which is not stored in it" in note for note in found.notes)
    assert any(note.startswith("ComfyUI runs all 25 steps") for note in found.notes)


@pytest.mark.parametrize("marks", [("prompt:", "workflow:"), ("Prompt: ", "Workflow: ")])
def test_a_webp(home: Home, tmp_path: Path, marks: tuple[str, str]) -> None:
    notes = Image.Exif()
    notes[0x0110], notes[0x010F] = (
        marks[0] + json.dumps(BASE),
        marks[1] + json.dumps({"nodes": [], "links": []}),
    )
    Image.new("RGB", (16, 16)).save(tmp_path / "a.webp", exif=notes)
    found = restore(tmp_path / "a.webp", Home.resolve(home))
    assert (found.program, found.draft.values["seed"], found.draft.values["prompt"]) == (
        "ComfyUI",
        11,
        "a fox",
    )


def test_the_drawn_workflow_beside_the_graph_changes_nothing() -> None:
    drawn = {
        "nodes": [{"id": 3, "type": "KSampler", "mode": 0, "widgets_values": [99, "fixed", 1]}],
        "links": [],
    }
    said = read_comfyui("a.png", {"prompt": json.dumps(BASE), "workflow": json.dumps(drawn)})
    assert said == read()


def test_a_damaged_drawn_workflow_is_told() -> None:
    said = read_comfyui("a.png", {"prompt": json.dumps(BASE), "workflow": '{"nodes": ['})
    assert said is not None
    assert said.values == read().values
    assert said.notes[0].startswith("its text 'workflow' is not valid JSON")


def test_nodes_of_subgraphs_and_groups_are_nodes_like_others() -> None:
    graph = json.loads(json.dumps(BASE).replace('"3"', '"12:3"').replace('"6"', '"12:7:6"'))
    assert read_comfyui("a.png", {"prompt": json.dumps(graph)}) == read()


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"prompt": "a fox"},
        {"prompt": "{}"},
        {"workflow": "{}"},
        {"prompt": '{"a": 1}'},
        {"prompt": "{red|blue} fox"},
    ],
)
def test_what_is_no_graph_is_left_to_others(texts: dict[str, str]) -> None:
    assert read_comfyui("a.png", texts) is None


def test_a_damaged_graph_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^a.png: its text 'prompt' is not valid JSON"):
        read_comfyui("a.png", {"prompt": json.dumps(BASE)[:-5]})


def test_a_graph_without_a_sampler_is_refused() -> None:
    graph = {"1": node("LoadImage", image="a.png"), "2": node("SaveImage", images=["1", 0])}
    told = (
        r"no sampler is found in its ComfyUI workflow of 2 nodes \(LoadImage, SaveImage\); set it up by hand"
    )
    with pytest.raises(RequestError, match=told):
        read_comfyui("a.png", {"prompt": json.dumps(graph)})


def test_several_pictures_at_once_are_told() -> None:
    said = read({"5": node("EmptyLatentImage", width=640, height=512, batch_size=4)})
    assert any("made 4 pictures at once" in note for note in said.notes)
    assert not any("pictures at once" in note for note in read().notes)


def test_unusual_numbers_of_a_solver_are_told() -> None:
    nodes = {
        "3": node(
            "SamplerCustom", noise_seed=11, cfg=5.5, add_noise=True, model=["4", 0], positive=["6", 0],
            negative=["7", 0], latent_image=["5", 0], sampler=["20", 0], sigmas=["21", 0],
        ),
        "20": node("SamplerDPMPP_2M_SDE", solver_type="heun", eta=0.5, s_noise=1.0, noise_device="gpu"),
        "21": node("KarrasScheduler", steps=20, sigma_max=14.6, sigma_min=0.03, rho=7.0),
    }  # fmt: skip
    told = " ".join(read(nodes).notes)
    assert "eta=0.5 of SamplerDPMPP_2M_SDE" in told
    assert "solver_type='heun'" in told
    assert "s_noise" not in told


def test_a_guider_that_does_more_is_told() -> None:
    own = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "cfg": 5}
    more = {
        "20": node("PerpNegGuider", empty_conditioning=["7", 0], neg_scale=1.0, **own),
        "21": node("RandomNoise", noise_seed=5),
        "22": node("KSamplerSelect", sampler_name="euler"),
        "23": node("BasicScheduler", model=["4", 0], scheduler="normal", steps=20, denoise=1),
        "3": node("SamplerCustomAdvanced", noise=["21", 0], guider=["20", 0], sampler=["22", 0], sigmas=["23", 0],
                  latent_image=["5", 0]),
    }  # fmt: skip
    assert read(more).notes == ("left out: PerpNegGuider (node 20)",)
    more["20"] = node("CFGGuider", **own)
    assert read(more).notes == ()


def test_a_saving_node_that_writes_the_settings_down_is_no_pass() -> None:
    saving = node(
        "Image Saver", steps=9, cfg=1.0, sampler_name="euler", scheduler="x", seed_value=1, images=["8", 0]
    )
    said = read({"9": saving})
    assert (said.values["steps"], said.notes) == (25, ())


def test_a_size_that_is_overridden() -> None:
    own = {"resolution": "832x1216 (0.68)", "batch_size": 1}
    for over, right in (((0, 0), (832, 1216)), ((512, 0), (512, 1216)), ((512, 640), (512, 640))):
        size = node("SDXLEmptyLatentSizePicker+", width_override=over[0], height_override=over[1], **own)
        said = read({"5": size})
        assert (said.values["width"], said.values["height"]) == right
