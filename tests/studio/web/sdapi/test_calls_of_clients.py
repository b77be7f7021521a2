"""What the clients of A1111's API send, read as they mean it: their payloads, and fields that ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pipelines.errors import RequestError, StudioError
from studio.drafts.draft import Draft, Wanted
from studio.web.sdapi.fields import ImageCall, read_asked
from studio.web.sdapi.lists import SPACINGS
from studio.web.sdapi.settings import CLIP_SKIP, read_settings

EXAMPLE = {  # of A1111's page for its API, which scripts are made from
    "enable_hr": False,
    "denoising_strength": 0,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2,
    "hr_upscaler": "",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "prompt": "a fox",
    "styles": [""],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 50,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "script_args": [],
    "sampler_index": "Euler",
    "script_name": "",
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}
SILLYTAVERN = {
    "url": "http://127.0.0.1:7860",
    "auth": "",
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.5,
    "hr_second_pass_steps": 0,
    "denoising_strength": 0.7,
    "override_settings": {
        "CLIP_stop_at_last_layers": 2,
        "sd_vae": "Automatic",
        "forge_additional_modules": [],
    },
    "override_settings_restore_afterwards": True,
    "clip_skip": 2,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
OPEN_WEBUI = {
    "prompt": "a fox",
    "batch_size": 1,
    "width": 512,
    "height": 512,
    "steps": 20,
    "negative_prompt": "",
    "sampler_name": "Euler a",
    "scheduler": "Automatic",
    "cfg_scale": 5.0,
}
LIBRECHAT = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "cfg_scale": 4.5,
    "steps": 22,
    "width": 1024,
    "height": 1024,
}
AUTO_PHOTOSHOP = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "steps": "20",
    "sampler_index": "Euler a",
    "width": 512,
    "height": 512,
    "denoising_strength": 0.7,
    "batch_size": 2,
    "cfg_scale": "7.5",
    "seed": "18446744073709551615",
    "mask_blur": 8,
    "restore_faces": False,
    "tiling": False,
    "clip_skip": 1,
    "original_prompt": "a fox",
    "original_negative_prompt": "blurry",
    "mode": "txt2img",
    "uniqueDocumentId": "1f0c",
    "use_sharp_mask": False,
    "use_prompt_shortcut": True,
    "prompt_shortcut_ui_dict": {"fox": "a red fox"},
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "enable_hr": None,
    "alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "model": "None"}]}},
}
KRITA = {
    "prompt": "a fox",
    "negative_prompt": "",
    "sampler_name": "DPM++ 2M Karras",
    "steps": 20,
    "cfg_scale": 7.0,
    "width": 512,
    "height": 768,
    "batch_size": 1,
    "n_iter": 1,
    "seed": "-1",
    "subseed": -1,
    "subseed_strength": "0.0",
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "tiling": "false",
    "restore_faces": "False",
    "styles": [],
    "mask": None,
    "mask_blur": 4,
    "inpainting_fill": 1,
    "inpaint_full_res": False,
    "inpaint_full_res_padding": 32,
    "inpainting_mask_invert": 0,
    "script_name": None,
    "script_args": [],
    "override_settings": {},
    "comments": None,
    "include_init_images": False,
    "init_images": [],
}
SD_CPP = {
    "prompt": "a fox",
    "seed": 7,
    "steps": 8,
    "cfg_scale": 4,
    "width": 512,
    "height": 512,
    "sampler_name": "euler_a",
    "scheduler": "discrete",
    "clip_skip": -1,
    "batch_size": 1,
    "extra_images": [],
    "lora": [
        {"path": "fox.safetensors", "multiplier": 0.5, "is_high_noise": False},
        {"path": "hat"},
        {"path": "fox", "multiplier": 0.25},
    ],
}
FORGE = {
    "prompt": "a fox",
    "sampler_name": "Euler a",
    "scheduler": "SGM Uniform",
    "distilled_cfg_scale": 3.5,
    "hr_distilled_cfg": 3.5,
    "hr_additional_modules": ["Use same choices"],
    "hr_cfg": 1.0,
    "hr_scheduler": None,
    "override_settings": {"forge_preset": "xl", "forge_additional_modules": []},
    "refiner_switch_at": 0.8,
    "infotext": None,
    "firstpass_image": None,
}
COPIED = {  # by the extension that copies the payload of A1111's own page
    "prompt": "a fox",
    "steps": 20,
    "sampler_name": "DPM++ 2M",
    "scheduler": "Automatic",
    "seed": 7,
    "alwayson_scripts": {
        "ADetailer": {"args": [False, False, {"ad_model": "face_yolov8n.pt"}]},
        "API payload": {"args": []},
        "Comments": {"args": []},
        "Extra options": {"args": []},
        "Hypertile": {"args": []},
        "ControlNet": {"args": [{"enabled": False}, {"is_enabled": "false", "weight": 1}]},
        "Dynamic Thresholding (CFG Scale Fix)": {"args": [False, 7, 100]},
        "FreeU Integrated": {"args": ["False", 1]},
        "Refiner": {"args": [False, "", 0.8]},
        "Sampler": {"args": [20, "DPM++ 2M", "Automatic"]},
        "Seed": {"args": [7, False, -1, 0, 0, 0]},
        "Style": None,
        "Wildcards": {},
    },
}


def read(body: Mapping[str, Any], **more: Any) -> ImageCall:
    return read_asked({"prompt": "a", **body, **more}, with_image="init_images" in more)


def values(body: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {name: value for name, value in read(body, **more).draft.values.items() if name != "seed"}


def test_sillytavern() -> None:
    asked = read(SILLYTAVERN)
    assert values(SILLYTAVERN) == {
        "prompt": "a fox",
        "negative_prompt": "blurry",
        "scheduler": "DPM++ 2M Karras",
        "steps": 20,
        "guidance_scale": 7,
        "width": 512,
        "height": 512,
        "clip_skip": 1,
        "clip_skip_as": "a1111",
    }
    assert (asked.save_images, asked.send_images) == (True, True)


@pytest.mark.parametrize(
    ("sampler", "drawn"),
    [
        ("", "Euler"),
        ("Euler a", "Euler"),
        ("Euler a SGM Uniform", "Euler trailing"),
        ("DPM2 a Karras", "DPM2 Karras"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M Karras"),
        ("k_dpmpp_2m_ka", "DPM++ 2M Karras"),
        ("DDIM", "DDIM"),
        ("LCM", "LCM"),
    ],
)
def test_the_example_of_a1111s_page_asks_for_no_noise(sampler: str, drawn: str) -> None:
    assert values(EXAMPLE, sampler_name=sampler)["scheduler"] == drawn
    assert values({**EXAMPLE, "eta": "0.0"}, sampler_name=sampler)["scheduler"] == drawn


def test_open_webui_and_librechat() -> None:
    assert values(OPEN_WEBUI)["scheduler"] == "Euler a"
    assert "negative_prompt" not in values(OPEN_WEBUI)
    assert values(LIBRECHAT) == {
        "prompt": "a fox",
        "negative_prompt": "blurry",
        "guidance_scale": 4.5,
        "steps": 22,
        "width": 1024,
        "height": 1024,
    }


def test_auto_photoshop() -> None:
    with pytest.raises(RequestError, match="seed=18446744073709551615: the last of 2 seeds would lie beyond"):
        read(AUTO_PHOTOSHOP).drafts({})
    asked = read({**AUTO_PHOTOSHOP, "seed": "18446744073709551614"})
    assert [draft.values["seed"] for draft in asked.drafts({})] == [2**64 - 2, 2**64 - 1]
    said = asked.draft.values
    assert (said["scheduler"], said["steps"], said["guidance_scale"]) == ("Euler a", 20, 7.5)
    assert "clip_skip" not in said


def test_clients_like_krita() -> None:
    asked = read(KRITA)
    assert 0 <= asked.draft.values["seed"] < 2**32
    assert asked.draft.values["scheduler"] == "DPM++ 2M Karras"


def test_stable_diffusion_cpp() -> None:
    asked = read(SD_CPP)
    assert asked.draft.wanted == (Wanted("fox", 0.75, named=True), Wanted("hat", 1.0, named=True))
    assert all(wanted.named for wanted in asked.draft.wanted)
    assert (asked.draft.values["scheduler"], "clip_skip" in asked.draft.values) == ("Euler a", False)


def test_fields_that_stable_diffusion_cpps_clients_write_into_the_prompt() -> None:
    held = (
        '{"lora": [{"path": "fox", "multiplier": "0.5"}], "seed": 7, "vae_tiling_params": {"enabled": false}}'
    )
    asked = read({"prompt": f"a fox <sd_cpp_extra_args>{held}</sd_cpp_extra_args>"})
    assert (asked.draft.values["prompt"], asked.draft.values["seed"]) == ("a fox", 7)
    assert asked.draft.wanted == (Wanted("fox", 0.5, named=True),)
    for wrong in (
        '{"sample_params": {"sample_steps": 5}}',
        "{",
        "[]",
        '{"prompt": "b"}',
        '{"a": 1} <sd_cpp_extra_args>',
    ):
        with pytest.raises(StudioError, match=r"sample_params|sd_cpp_extra_args|'a'"):
            read({"prompt": f"a fox <sd_cpp_extra_args>{wrong}</sd_cpp_extra_args>"})
    with pytest.raises(StudioError, match="must stand once"):
        read({"prompt": "a <sd_cpp_extra_args>{}"})


def test_forge() -> None:
    assert values(FORGE) == {"prompt": "a fox", "scheduler": "Euler a trailing"}
    chosen = read({"override_settings": {"forge_additional_modules": ["vae/odd.safetensors"]}})
    assert chosen.override == {"sd_vae": "vae/odd.safetensors"}
    with pytest.raises(RequestError, match=r"forge_additional_modules=.*: one VAE can be chosen"):
        read({"override_settings": {"forge_additional_modules": ["a", "b"]}})


def test_a_copied_payload() -> None:
    assert values(COPIED) == {"prompt": "a fox", "steps": 20, "scheduler": "DPM++ 2M Karras"}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ADetailer", [True, False, {"ad_model": "face_yolov8n.pt"}]),
        ("ADetailer", [{"ad_model": "face_yolov8n.pt"}]),
        ("ADetailer", [True, True, {"ad_model": "None"}, {"ad_model": "hand.pt", "ad_tab_enable": True}]),
        ("ControlNet", [{}]),
        ("ControlNet", [{"enabled": False}, {"enabled": True, "image": "x"}]),
        ("Refiner", [True, "other", 0.8]),
        ("Sampler", [20, "DDIM", "Automatic"]),
        ("Seed", [8, False, -1, 0, 0, 0]),
        ("Seed", [7, True, -1, 0.5, 0, 0]),
        ("Tiled VAE", ["True", 1536]),
        ("other", "text"),
    ],
)
def test_a_script_that_is_on_is_refused_by_name(name: str, args: Any) -> None:
    body = {"steps": 20, "sampler_name": "DPM++ 2M", "scheduler": "Automatic", "seed": 7}
    with pytest.raises(RequestError, match=f"the script '{name}' is not here"):
        read(body, alwayson_scripts={name: {"args": args}})


@pytest.mark.parametrize(
    "args",
    [
        [True, True, {"ad_model": "None"}],
        [{"ad_model": "x.pt", "ad_tab_enable": False}],
        [None],
        [],
        None,
        [False],
        ["false", 5],
    ],
    ids=str,
)
def test_a_script_that_is_off_is_passed_over(args: Any) -> None:
    assert values({"alwayson_scripts": {"ADetailer": {"args": args}}}) == {"prompt": "a"}


@pytest.mark.parametrize(
    "field",
    [
        {"some_module": None},
        {"some_module": []},
        {"some_module": {}},
        {"some_module": "None"},
        {"some_module": False},
        {"some_module": {"enabled": False, "weight": 2}},
        {"some_module": [{"enabled": "false"}, None]},
        {"controlnet_units": []},
        {"teacache": 0},
        {"refiner_checkpoint": "none"},
        {"styles": [""]},
        {"mask": ""},
        {"eta": "1.0"},
        {"s_noise": "1"},
        {"subseed_strength": "0"},
        {"tiling": 0},
        {"enable_hr": "false"},
        {"enable_hr": "no"},
        {"override_settings": None},
        {"alwayson_scripts": None},
        {"sampler_name": None, "scheduler": None},
        {"steps": None, "width": "", "cfg_scale": None, "seed": ""},
        {"script_name": "None"},
        {"batch_size": None, "n_iter": None},
        {"send_images": None},
        {"lora": None},
        {"lora": []},
        {"clip_skip": None},
        {"clip_skip": 0},
        {"clip_skip": 1},
        {"clip_skip": "1"},
        {"resize_mode": 2},
        {"init_images": None},
        {
            "override_settings": {
                "samples_format": "png",
                "eta_noise_seed_delta": 0,
                "sd_vae": None,
                "sd_model_checkpoint": None,
                "CLIP_stop_at_last_layers": 1,
                "live_previews_enable": True,
                "outdir_samples": "/x",
                "return_grid": False,
            }
        },
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_passed_over(field: dict[str, Any]) -> None:
    assert values(field) == {"prompt": "a"}


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"some_module": {"enabled": True}}, "unknown field 'some_module'={'enabled': True}"),
        ({"some_module": "x" * 1000}, "unknown field 'some_module'='xxxx"),
        ({"stepps": 0}, "did you mean 'steps'"),
        ({f"field{n}": None for n in range(600)}, "fields are more than a call has"),
        (
            {"alwayson_scripts": {"Soft Inpainting": {"args": [{"Soft inpainting": True}]}}},
            "'Soft Inpainting' is not here",
        ),
        ({"restore_faces": "true"}, "restore_faces='true': not offered here"),
        ({"subseed_strength": "0.5"}, "variation seeds"),
        ({"batch_count": 4}, "n_iter"),
        ({"extra_images": ["x"]}, "reference pictures"),
        ({"override_settings": {"samples_format": "jpg"}}, "'samples_format' cannot be changed"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "'eta_noise_seed_delta' cannot be changed"),
        (
            {"clip_skip": 2, "override_settings": {CLIP_SKIP: 1}},
            "clip_skip=2 and CLIP_stop_at_last_layers=1 differ",
        ),
        ({"clip_skip": "two"}, "clip_skip='two' must be a whole number above 0"),
        ({"clip_skip": -2}, "clip_skip=-2 must be a whole number above 0"),
        ({"clip_skip": True}, "clip_skip=True must be a whole number above 0"),
        ({"send_images": "perhaps"}, "send_images='perhaps' must be true or false"),
        ({"batch_size": "1.5"}, "batch_size=1.5 must be a whole number"),
        ({"seed": "seven"}, "seed='seven' must be a whole number"),
        ({"lora": "fox"}, "lora must be a list of objects"),
        ({"lora": [5]}, "lora must be a list of objects"),
        ({"lora": [{"multiplier": 1}]}, "lora[0]: path must name a LoRA"),
        ({"lora": [{"path": "fox", "multiplier": "much"}]}, "lora[0]: multiplier='much' must be a number"),
        ({"lora": [{"path": "fox", "multiplier": True}]}, "lora[0]: multiplier=True must be a number"),
        ({"lora": [{"path": "fox", "is_high_noise": True}]}, "is_high_noise"),
        ({"lora": [{"path": "fox", "weight": 2}]}, "lora[0]: unknown field 'weight'"),
        ({"sampler_name": "Euler a", "scheduler": "Karras"}, "'Euler a Karras' is not offered"),
        ({"sampler_name": "Restart"}, "Heun is the nearest"),
        ({"scheduler": "Beta"}, "'Euler Beta' is not offered"),
    ],
    ids=str,
)
def test_what_changes_the_picture_and_is_not_done_is_refused_by_name(
    field: dict[str, Any], said: str
) -> None:
    with pytest.raises(StudioError) as error:
        read(field)
    assert said in str(error.value)
    assert len(str(error.value)) < 1000


def test_numbers_as_text() -> None:
    said = values(
        {
            "steps": " 20 ",
            "width": 512.0,
            "height": "768.0",
            "cfg_scale": ".5",
            "batch_size": "2",
            "n_iter": "1",
        }
    )
    assert said == {"prompt": "a", "steps": 20, "width": 512, "height": 768, "guidance_scale": 0.5}
    assert all(isinstance(said[name], int) for name in ("steps", "width", "height"))
    strength = read_asked({"prompt": "a", "init_images": ["x"], "denoising_strength": "0.5"}, with_image=True)
    assert strength.draft.values["strength"] == 0.5
    assert read({"seed": str(2**53 + 1)}).draft.values["seed"] == 2**53 + 1
    assert read({"save_images": "true", "send_images": 0}).save_images


def test_clip_skip_is_a1111s_count_by_whichever_field() -> None:
    for body in ({"clip_skip": 3}, {"clip_skip": "3"}, {"override_settings": {CLIP_SKIP: "3"}}):
        asked = read(body)
        assert (asked.draft.values["clip_skip"], asked.draft.values["clip_skip_as"]) == (2, "a1111")
        assert asked.override == {CLIP_SKIP: 3}


def test_a_lora_beside_those_of_script_and_tag() -> None:
    script = {"LoRA Studio": {"args": [{"adapters": {"owl": 1.5}}]}}
    asked = read(
        {"prompt": "a <lora:hat:0.5>", "lora": [{"path": "sub\\fox.safetensors"}]}, alwayson_scripts=script
    )
    assert [wanted.adapter for wanted in asked.draft.wanted] == ["owl", "sub/fox", "hat"]


def test_settings_that_clients_send_back_are_taken() -> None:
    assert read_settings(
        {
            "sd_model_checkpoint": "m",
            "sd_checkpoint_hash": "0a",
            "sd_vae": "Automatic",
            CLIP_SKIP: 1,
            "samples_format": "png",
            "eta_noise_seed_delta": 0,
        }
    ) == {"sd_model_checkpoint": "m", "sd_vae": "Automatic", CLIP_SKIP: 1}


@pytest.mark.parametrize("spacing", [*SPACINGS, *SPACINGS.values()])
def test_every_listed_spacing_can_be_asked_for(spacing: str) -> None:
    assert isinstance(read({"sampler_name": "DPM++ 2M", "scheduler": spacing}).draft, Draft)


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        ({"sampler_name": "DPM++ 2M"}, "DPM++ 2M Karras"),
        ({"sampler_name": "DPM++ 2M SDE", "scheduler": "Automatic"}, "DPM++ 2M SDE Exponential"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "automatic"}, "DPM++ 2M Karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "normal"}, "DPM++ 2M"),
        ({"sampler_name": "Euler a"}, "Euler a"),
    ],
)
def test_automatic_is_what_a1111_takes_for_it(said: dict[str, str], drawn: str) -> None:
    assert read(said).draft.values["scheduler"] == drawn


def test_a_refused_sampler_is_told_as_it_was_sent() -> None:
    with pytest.raises(RequestError, match="scheduler 'LMS' is not offered"):
        read({"sampler_name": "LMS"})
    with pytest.raises(RequestError, match="unknown scheduler 'fox'"):
        read({"sampler_name": "fox", "scheduler": "normal"})
    with pytest.raises(RequestError, match="scheduler 'LMS Karras' is not offered"):
        read({"sampler_name": "LMS", "scheduler": "Karras"})


@pytest.mark.parametrize(
    "said",
    [
        {"eta": "0.5"},
        {"s_noise": 0},
        {"s_noise": 0, "eta": 0},
        {"sampler_name": "DPM++ 3M SDE", "eta": 0},
        {"sampler_name": "DDIM", "eta": 1.0},
    ],
)
def test_noise_in_another_measure_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"noise|eta"):
        read({"sampler_name": "Euler a", **said})


@pytest.mark.parametrize(
    "said",
    [
        {"sampler_name": "Euler", "eta": 0, "s_tmax": 999, "s_noise": "1.0"},
        {"sampler_name": "Euler a", "eta": 1},
        {"override_settings": {"randn_source": "GPU", "emphasis": "Original"}},
        {"override_settings": {"k_sched_type": "Automatic", "s_noise": 1.0, "samples_save": True}},
        {"override_settings": {"forge_inference_memory": 10240, "forge_async_loading": "Queue"}},
        {"alwayson_scripts": {"Seed": {"args": [-1, False, -1, 0, 0, 0]}}},
        {"alwayson_scripts": {"Soft Inpainting": {"args": [{"Soft inpainting": False, "Schedule bias": 1}]}}},
        {"alwayson_scripts": {"FreeU Integrated": {"args": {"0": False, "1": 1.01}}}},
    ],
)
def test_further_neutral_values_pass(said: dict[str, Any]) -> None:
    read(said)


MASKED = {"prompt": "a", "init_images": ["x"], "mask": "y"}


def test_a_mask_without_more_means_what_a1111_means_by_it() -> None:
    said = read_asked(MASKED, with_image=True)
    assert (said.mask, said.inverted) == ("y", False)
    values = {name: value for name, value in said.draft.values.items() if name.startswith("mask")}
    assert values == {
        "mask_blur": 4, "mask_content": "fill", "mask_area": "only masked", "mask_padding": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "name", "value"),
    [
        ({"inpainting_fill": 1}, "mask_content", "original"),
        ({"inpainting_fill": "2"}, "mask_content", "noise"),
        ({"inpainting_fill": 3}, "mask_content", "nothing"),
        ({"inpaint_full_res": 0}, "mask_area", "whole picture"),
        ({"inpaint_full_res": "false"}, "mask_area", "whole picture"),
        ({"inpaint_full_res_padding": 32}, "mask_padding", 32),
        ({"mask_blur": 0, "mask_blur_x": 0, "mask_blur_y": None}, "mask_blur", 0),
    ],
)
def test_the_fields_of_a_mask(body: Any, name: str, value: Any) -> None:
    assert read_asked({**MASKED, **body}, with_image=True).draft.values[name] == value


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"mask": ["y"]}, "mask must be one picture"),
        ({"inpainting_fill": 4}, r"0 \(fill\), 1 \(original\), 2 \(noise\), 3 \(nothing\)"),
        ({"mask_blur": 2, "mask_blur_x": 4}, "send mask_blur"),
        ({"mask_expansion": 8}, "not offered here"),
        ({"latent_mask": "y"}, "send mask"),
        ({"mask_image": "y"}, "A1111's is mask"),
    ],
)
def test_what_a_mask_cannot_do_is_refused(body: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_asked({**MASKED, **body}, with_image=True)


def test_without_a_mask_its_fields_say_nothing() -> None:
    body = {"prompt": "a", "mask": None, "mask_blur": 9, "inpainting_fill": 7, "inpaint_full_res": True}
    assert not [name for name in read_asked(body, with_image=False).draft.values if name.startswith("mask")]
    with pytest.raises(RequestError, match="mask belongs to /sdapi/v1/img2img"):
        read_asked({**body, "mask": "y"}, with_image=False)
