"""What A1111's front ends send and expect."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from pipelines.schedulers import scheduler_names
from studio.drafts.draft import Draft
from studio.jobs import JobState
from studio.jobs.owner import PROGRAMS
from studio.jobs.store import Store

SMALL: dict[str, Any] = {"width": 32, "height": 32, "steps": 2}
FRONT_END: dict[str, Any] = {
    "prompt": "a fox <lora:fox:0.5>", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1,
    "subseed_strength": 0, "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": "Euler",
    "scheduler": "Karras", "batch_size": 2, "n_iter": 1, "steps": 2, "cfg_scale": 3.5, "width": 32, "height": 32,
    "restore_faces": False, "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False, "eta": None,
    "denoising_strength": None, "s_min_uncond": None, "s_churn": None, "s_noise": None, "override_settings": {},
    "override_settings_restore_afterwards": True, "refiner_checkpoint": None, "enable_hr": False, "hr_scale": 2,
    "hr_upscaler": "Latent", "script_name": None, "script_args": [], "send_images": True, "save_images": False,
    "alwayson_scripts": {},
}  # fmt: skip
"""Every field that a front end sends, at the values that mean nothing."""


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_txt2img_takes_all_that_front_ends_send(running: Any, client: httpx.Client) -> None:
    answer = client.post("/sdapi/v1/txt2img", json=FRONT_END)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    info = json.loads(content["info"])
    assert [picture(image).size for image in content["images"]] == [(32, 32)] * 2
    assert info["all_seeds"] == [info["seed"], info["seed"] + 1]
    assert (info["sampler_name"], info["cfg_scale"], info["steps"]) == ("Euler Karras", 3.5, 2)
    assert "<lora:fox:0.5>" in info["infotexts"][0]
    assert content["parameters"] == FRONT_END
    kinds = [view.kind for view in running.worker.heads(PROGRAMS)]
    assert "sdapi" not in kinds  # save_images was not asked for


def test_the_infotext_in_the_picture_is_read_back(client: httpx.Client) -> None:
    content = client.post(
        "/sdapi/v1/txt2img", json={"prompt": "a hat", "seed": 7, "save_images": True, **SMALL}
    ).json()
    told = client.post("/sdapi/v1/png-info", json={"image": content["images"][0]}).json()
    assert told["info"] == json.loads(content["info"])["infotexts"][0]
    assert (told["parameters"]["Seed"], told["parameters"]["Prompt"]) == ("7", "a hat")
    assert "lora-studio" in told["items"]
    again = client.post("/sdapi/v1/txt2img", json={"prompt": "a hat", "seed": 7, **SMALL}).json()
    assert picture(again["images"][0]).tobytes() == picture(content["images"][0]).tobytes()


def test_img2img(client: httpx.Client) -> None:
    red = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(red, format="PNG")
    image = "data:image/png;base64," + base64.b64encode(red.getvalue()).decode()
    body = {"prompt": "a fox", "init_images": [image], "denoising_strength": 0.6, **SMALL, "steps": 4}
    stretched = client.post("/sdapi/v1/img2img", json=body)
    assert stretched.status_code == 200, stretched.text
    assert json.loads(stretched.json()["info"])["denoising_strength"] == 0.6
    assert client.post("/sdapi/v1/img2img", json={**body, "resize_mode": 1}).status_code == 200
    for wrong in ({"init_images": []}, {"init_images": ["no picture"]}, {"mask": "x"}, {"resize_mode": 2}):
        assert client.post("/sdapi/v1/img2img", json={**body, **wrong}).status_code == 422, wrong


@pytest.mark.parametrize("inverted", [False, True])
def test_inpainting_draws_the_masked_part_alone_and_pastes_it(client: httpx.Client, inverted: bool) -> None:
    start = Image.effect_noise((96, 64), 60).convert("RGB")
    mask = Image.new("L", start.size, 255 if inverted else 0)
    mask.paste(0 if inverted else 255, (8, 8, 40, 40))
    body = {
        "prompt": "a fox", "init_images": [as_text(start)], "mask": as_text(mask), "mask_blur": 0, "inpainting_fill": 1,
        "denoising_strength": 1.0, "inpainting_mask_invert": int(inverted), "inpaint_full_res_padding": 4, "seed": 3,
        **SMALL,
    }  # fmt: skip
    answer = client.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    found = picture(content["images"][0])
    assert found.size == start.size
    box = ImageChops.difference(found, start).getbbox()
    assert box is not None
    assert (box[0] >= 8, box[1] >= 8, box[2] <= 40, box[3] <= 40) == (True,) * 4
    assert "Inpaint area: only masked" in content["info"]
    assert content["parameters"]["mask"] is None


def test_a_mask_is_inpainted_over_the_whole_picture_where_that_is_asked_for(client: httpx.Client) -> None:
    start, mask = Image.effect_noise((64, 64), 60), Image.new("L", (64, 64))
    body = {
        "prompt": "a",
        "init_images": [as_text(start)],
        "mask": as_text(mask),
        "inpaint_full_res": False,
        **SMALL,
    }
    found = picture(client.post("/sdapi/v1/img2img", json={**body, "resize_mode": 1}).json()["images"][0])
    assert found.size == (32, 32)
    empty = client.post("/sdapi/v1/img2img", json={**body, "inpaint_full_res": True, "save_images": False})
    assert empty.status_code == 422
    assert "black everywhere" in empty.json()["detail"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"enable_hr": True}, "enable_hr=True: not offered here (hires fix)"),
        ({"subseed_strength": 0.5}, "variation seeds"),
        ({"script_name": "x/y/z plot"}, "not offered here (scripts)"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{}]}}}, "the script 'ControlNet' is not here"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "'eta_noise_seed_delta' cannot be changed"),
        ({"sampler_name": "DPM++ SDE"}, "DPM++ 2M SDE is the nearest"),
        ({"stepps": 3}, "did you mean 'steps'"),
        ({"seed": "seven"}, "seed='seven' must be a whole number"),
        ({"prompt": "a <lora:foxx:1>"}, "did you mean 'fox'"),
        ({"batch_size": 10_000}, "must lie in 1"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: httpx.Client, body: Any, said: str) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a", **SMALL, **body})
    assert answer.status_code == 422
    assert said in answer.json()["detail"], answer.text


def test_our_methods_are_a_script(client: httpx.Client) -> None:
    script = {"LoRA Studio": {"args": ["switch:interval=1"]}}
    body = {"prompt": "a <lora:fox:1> <lora:hat:1>", "alwayson_scripts": script, **SMALL}
    answer = client.post("/sdapi/v1/txt2img", json=body).json()
    assert "Composition: switch:interval=1" in answer["info"].replace('\\"', "")


def test_our_script_takes_an_object_and_the_prompt_is_told_as_it_was_sent(client: httpx.Client) -> None:
    said = {"reuse": 2, "text_mode": "first", "adapters": {"hat": 0.5}, "clip_skip": 1}
    script = {"LoRA Studio": {"args": ["composite", said]}}
    prompt = "a fox <lora:fox:0.5>"
    answer = client.post(
        "/sdapi/v1/txt2img", json={"prompt": prompt, "alwayson_scripts": script, **SMALL, "save_images": True}
    )
    assert answer.status_code == 200, answer.text
    info = json.loads(answer.json()["info"])
    assert (info["prompt"], info["all_prompts"], info["clip_skip"]) == (prompt, [prompt], 2)
    told = client.post("/sdapi/v1/png-info", json={"image": answer.json()["images"][0]}).json()
    request = json.loads(told["items"]["lora-studio"])["request"]
    assert (request["reuse"], request["text_mode"], request["clip_skip"]) == (2, "first", 1)
    assert [use["adapter"] for use in request["adapters"]] == ["hat", "fox"]


def test_our_script_wins_over_an_option_that_is_set(client: httpx.Client) -> None:
    assert client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2}).status_code == 200
    script = {"LoRA Studio": {"args": [{"clip_skip": 0}]}}
    content = client.post(
        "/sdapi/v1/txt2img", json={"prompt": "a", "alwayson_scripts": script, **SMALL}
    ).json()
    assert json.loads(content["info"])["clip_skip"] == 1
    assert client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 1}).status_code == 200


def test_progress_and_interrupt(running: Any, client: httpx.Client) -> None:
    answers: list[httpx.Response] = []
    body = {"prompt": "a fox", "width": 32, "height": 32, "steps": 900}

    def ask() -> None:
        with running.client() as own:
            answers.append(own.post("/sdapi/v1/txt2img", json=body))

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(1200):
        progress = client.get("/sdapi/v1/progress").json()
        if progress["progress"] > 0 and progress["current_image"]:
            break
        time.sleep(0.05)
    assert 0 < progress["progress"] < 1
    assert progress["state"]["sampling_steps"] == 900
    assert progress["eta_relative"] > 0
    assert picture(progress["current_image"]).format == "PNG"
    assert client.post("/sdapi/v1/interrupt", json={}).status_code == 200
    thread.join(60)
    [answer] = answers
    assert answer.json()["images"] == []
    assert json.loads(answer.json()["info"])["interrupted"] is True
    assert client.get("/sdapi/v1/progress").json()["progress"] == 0


def test_progress_and_interrupt_read_no_picture(
    running: Any, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may hold thousands, and front ends ask twice a second."""
    drafts = [Draft({"prompt": "a fox", "steps": 900, "width": 32, "height": 32})] * 40
    ids = [running.worker.submit(PROGRAMS, drafts, model=running.model, kind="sdapi") for _ in range(2)]
    with monkeypatch.context() as patched:
        for read in ("slice_of", "pictures_of"):
            patched.setattr(Store, read, None)
        told = client.get("/sdapi/v1/progress").json()
        assert (told["state"]["job"], told["state"]["job_count"]) == (ids[0], 40)
        assert client.post("/sdapi/v1/interrupt", json={}).status_code == 200
        assert running.worker.unfinished(PROGRAMS) == []
    for id in ids:
        assert running.worker.view(id, PROGRAMS).state is JobState.CANCELLED
        running.worker.delete(id, PROGRAMS)


def test_what_there_is(running: Any, client: httpx.Client) -> None:
    samplers = client.get("/sdapi/v1/samplers").json()
    assert [sampler["name"] for sampler in samplers] == list(scheduler_names())
    assert set(samplers[0]) == {"name", "aliases", "options"}
    models = client.get("/sdapi/v1/sd-models").json()
    assert {"title", "model_name", "hash", "sha256", "filename", "config"} == set(models[0])
    assert running.model in [model["model_name"] for model in models]
    loras = {lora["name"]: lora for lora in client.get("/sdapi/v1/loras").json()}
    assert set(loras["fox"]) == {"name", "alias", "path", "metadata"}
    assert client.post("/sdapi/v1/refresh-loras", json={}).json() is None


def test_options_choose_the_model(running: Any, client: httpx.Client) -> None:
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == running.model
    set_to = {"sd_model_checkpoint": f"{running.model} [0123456789]", "CLIP_stop_at_last_layers": 2}
    assert client.post("/sdapi/v1/options", json=set_to).status_code == 200
    content = client.post("/sdapi/v1/txt2img", json={"prompt": "a", **SMALL}).json()
    assert json.loads(content["info"])["clip_skip"] == 2
    unknown = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nothing-like-it"})
    assert unknown.status_code == 422
    assert client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 1}).status_code == 200


GARBAGE: list[Any] = [
    True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "a\0b", "x" * 50_000, [], [1],
    [[[]]], {}, {"x": {"y": [1]}}, ["x" * 50_000] * 10, json.loads("[" * 500 + "]" * 500),
]  # fmt: skip
FIELDS = (
    "prompt", "negative_prompt", "seed", "sampler_name", "scheduler", "steps", "cfg_scale", "width", "height",
    "batch_size", "n_iter", "denoising_strength", "init_images", "resize_mode", "override_settings",
    "alwayson_scripts", "comments", "mask", "eta", "script_args", "send_images",
)  # fmt: skip


def posted(client: httpx.Client, path: str, body: str | bytes) -> httpx.Response:
    """What httpx itself would not write as JSON: NaN, half characters, anything."""
    return client.post(f"/sdapi/v1/{path}", content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize("field", FIELDS)
def test_whatever_a_field_holds_the_answer_is_a_picture_or_a_reason(client: httpx.Client, field: str) -> None:
    for value in GARBAGE:
        body = json.dumps({"prompt": "a", **SMALL, "save_images": False, field: value})
        answer = posted(client, "txt2img", body)
        assert answer.status_code in (200, 422), (value, answer.text)
        if answer.status_code == 422:
            assert len(answer.content) < 5000, value
            assert answer.json()["detail"]


@pytest.mark.parametrize("name", ["sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "other"])
def test_whatever_an_option_is_set_to_the_answer_is_a_reason(client: httpx.Client, name: str) -> None:
    for value in GARBAGE:
        for path, body in (
            ("options", {name: value}),
            ("txt2img", {"prompt": "a", **SMALL, "override_settings": {name: value}}),
        ):
            answer = posted(client, path, json.dumps(body))
            assert answer.status_code in (200, 422), (path, value, answer.text)
            assert answer.status_code == 200 or len(answer.content) < 5000
    assert client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 1}).status_code == 200


@pytest.mark.parametrize(
    "body", ["[" * 100_000, "[]", "5", "{", '{"a": ' + "9" * 5000 + "}", "\xff", '{"\\ud800": 1}']
)
def test_whatever_the_body_is_the_answer_is_a_reason(client: httpx.Client, body: str) -> None:
    for path in ("txt2img", "img2img", "options", "png-info"):
        answer = posted(client, path, body.encode("latin-1"))
        assert answer.status_code in (413, 422), answer.text
        assert len(answer.content) < 2000


def as_text(image: Image.Image, **settings: Any) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG", **settings)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    "image",
    [
        "x" * 3, "\ud800", "data:image/png;base64,", "data:" + "," * 10_000, "aaaa" * 10_000, 5, None, [], "é",
        as_text(Image.new("1", (10_000, 8_001))),
    ],
    ids=lambda image: str(image)[:20].encode("unicode-escape").decode(),
)  # fmt: skip
def test_whatever_a_picture_is_the_answer_is_a_reason(client: httpx.Client, image: object) -> None:
    for path, body in (
        ("png-info", {"image": image}),
        ("img2img", {"prompt": "a", "init_images": [image], **SMALL}),
    ):
        answer = posted(client, path, json.dumps(body))
        assert answer.status_code == 422, answer.text
        assert len(answer.content) < 2000


def test_the_infotext_of_a_jpeg_and_of_another_program_is_told_as_a1111_writes_it(
    client: httpx.Client,
) -> None:
    notes = Image.Exif()
    notes.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a\nSteps: 2, Sampler: Euler, Seed: 1"
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="JPEG", exif=notes.tobytes())
    said = {"image": base64.b64encode(file.getvalue()).decode()}
    assert client.post("/sdapi/v1/png-info", json=said).json()["parameters"]["Seed"] == "1"
    swarm = {
        "prompt": "a fox",
        "negativeprompt": "bad",
        "seed": 2**53 + 1,
        "steps": 8,
        "loras": ["x"],
        "width": 64,
    }
    info = PngInfo()
    info.add_text("parameters", json.dumps({"sui_image_params": swarm}))
    told = client.post(
        "/sdapi/v1/png-info", json={"image": as_text(Image.new("RGB", (8, 8)), pnginfo=info)}
    ).json()
    assert told["info"] == (
        "a fox <lora:x:1>\nNegative prompt: bad\nSteps: 8, Seed: 9007199254740993, Version: SwarmUI"
    )
    assert (told["parameters"]["Prompt"], told["parameters"]["Steps"]) == ("a fox <lora:x:1>", "8")
    info = PngInfo()
    info.add_text("parameters", '{"a": 1}')
    told = client.post(
        "/sdapi/v1/png-info", json={"image": as_text(Image.new("RGB", (8, 8)), pnginfo=info)}
    ).json()
    assert (told["info"], told["parameters"], told["items"]) == ("", {}, {"parameters": '{"a": 1}'})


def test_a_pictures_text_of_half_characters_can_be_answered(client: httpx.Client) -> None:
    info = PngInfo()
    info.add_text("parameters", 'a\nSteps: 2, Sampler: Euler, Seed: 1, Odd: "\\ud800"')
    answer = client.post(
        "/sdapi/v1/png-info", json={"image": as_text(Image.new("RGB", (8, 8)), pnginfo=info)}
    )
    assert answer.status_code == 200
    assert answer.json()["parameters"]["Seed"] == "1"


def test_an_initial_image_is_cropped_to_no_more_than_a_picture_may_have(client: httpx.Client) -> None:
    body = {"prompt": "a", "init_images": [as_text(Image.new("RGB", (8, 8)))], "resize_mode": 1, "steps": 2}
    answer = client.post("/sdapi/v1/img2img", json={**body, "width": 16384, "height": 16384})
    assert answer.status_code == 422
    assert "16384x16384 pixels, 268 million" in answer.json()["detail"]
