"""The lists that A1111's clients poll, the calls that they make beside pictures, and `lora` and `clip_skip` drawn."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

SMALL: dict[str, Any] = {"width": 32, "height": 32, "steps": 2, "seed": 7}
EMPTY = ("upscalers", "latent-upscale-modes", "prompt-styles", "hypernetworks", "face-restorers", "realesrgan-models",
         "extensions")  # fmt: skip
LISTS = (*EMPTY, "samplers", "schedulers", "sd-models", "sd-vae", "sd-modules", "loras", "script-info")


def asked(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a fox", **SMALL, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def seen(answer: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).tobytes()


@pytest.fixture(autouse=True)
def usual(client: httpx.Client) -> None:
    """The settings that another test may have changed for its later calls."""
    answer = client.post("/sdapi/v1/options", json={"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1})
    assert answer.status_code == 200, answer.text


def test_an_unknown_vae_is_refused_when_it_is_chosen(client: httpx.Client) -> None:
    answer = client.post("/sdapi/v1/options", json={"sd_vae": "nowhere"})
    assert answer.status_code == 422
    assert "unknown VAE 'nowhere'" in answer.text
    assert client.get("/sdapi/v1/options").json()["sd_vae"] == "Automatic"


@pytest.mark.parametrize("name", LISTS)
def test_every_list_is_a_list(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/sdapi/v1/{name}")
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json(), list)
    assert (answer.json() == []) == (name in EMPTY) or name in ("sd-vae", "sd-modules")


def test_lists_have_the_fields_that_clients_read(client: httpx.Client) -> None:
    def got(name: str) -> Any:
        return client.get(f"/sdapi/v1/{name}").json()

    assert {"name", "label", "aliases", "default_rho", "need_inner_model"} == set(got("schedulers")[0])
    euler = next(sampler for sampler in got("samplers") if sampler["name"] == "Euler")
    assert "k_euler" in euler["aliases"]
    assert got("scripts") == {"txt2img": ["lora studio"], "img2img": ["lora studio"]}
    assert {"name", "is_alwayson", "is_img2img", "args"} == set(got("script-info")[0])
    assert got("cmd-flags")["api"] is True
    memory = got("memory")
    assert set(memory["ram"]) == {"free", "used", "total"}
    assert memory["ram"]["free"] + memory["ram"]["used"] == memory["ram"]["total"] > 0
    assert "error" in memory["cuda"] or "system" in memory["cuda"]
    idle = got("progress")
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)


def test_embeddings_are_listed_with_their_size(running: Any, client: httpx.Client) -> None:
    folder = running.worker.home.made(running.worker.home.path / "embeddings")
    width = running.worker.model_state().width_of_text or 768
    files = {
        "good": {"emb_params": torch.zeros(3, width)},
        "other": {"emb_params": torch.zeros(2, width + 8)},
    }
    try:
        for name, tensors in files.items():
            save_file(tensors, folder / f"{name}.safetensors")
        (folder / "broken.safetensors").write_bytes(b"nothing")
        told = client.get("/sdapi/v1/embeddings").json()
    finally:
        for file in folder.glob("*.safetensors"):
            file.unlink()
    assert set(told) == {"loaded", "skipped"}
    assert (told["loaded"]["good"]["shape"], told["loaded"]["good"]["vectors"]) == (width, 3)
    assert told["skipped"]["broken"]["vectors"] == 0
    assert "broken" not in told["loaded"]


@pytest.mark.parametrize(
    "name", ["refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings", "skip", "unload-checkpoint",
             "reload-checkpoint", "interrupt"]
)  # fmt: skip
def test_calls_that_change_no_picture(client: httpx.Client, name: str) -> None:
    for more in ({}, {"json": {}}):
        answer = client.post(f"/sdapi/v1/{name}", **more)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "name", ["server-kill", "server-restart", "server-stop", "extra-single-image", "interrogate"]
)
def test_calls_that_are_refused_by_name(client: httpx.Client, name: str) -> None:
    answer = client.post(f"/sdapi/v1/{name}", json={})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"{name}: ")


def test_loras_of_the_list_are_drawn_as_tags_are(client: httpx.Client) -> None:
    tagged = asked(client, {"prompt": "a fox <lora:fox:0.75> <lora:hat:1>"})
    path = next(lora["path"] for lora in client.get("/sdapi/v1/loras").json() if lora["name"] == "fox")
    entries = [
        {"path": path, "multiplier": 0.5},
        {"path": "hat.safetensors"},
        {"path": path, "multiplier": "0.25"},
    ]
    listed = asked(client, {"lora": entries})
    assert seen(listed) == seen(tagged)
    assert "fox" in json.loads(listed["info"])["infotexts"][0]


@pytest.mark.parametrize(
    "path", ["foxx", "/etc/passwd", "../../secret.safetensors", "../fox", "C:\\fox.safetensors"]
)
def test_a_lora_that_is_not_in_the_library_is_refused(client: httpx.Client, path: str) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a", **SMALL, "lora": [{"path": path}]})
    assert answer.status_code == 422
    assert "LoRA" in answer.json()["detail"] or "does not exist" in answer.json()["detail"]


def test_clip_skip_is_drawn_and_told(client: httpx.Client) -> None:
    by_field, by_setting = (
        asked(client, body)
        for body in ({"clip_skip": "2"}, {"override_settings": {"CLIP_stop_at_last_layers": 2}})
    )
    assert seen(by_field) == seen(by_setting)
    assert json.loads(by_field["info"])["clip_skip"] == 2
    assert client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": "2"}).status_code == 200
    assert json.loads(asked(client, {})["info"])["clip_skip"] == 2
    assert json.loads(asked(client, {"clip_skip": 1})["info"])["clip_skip"] == 1
    assert client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 1}).status_code == 200


def test_a_client_may_send_all_settings_back(running: Any, client: httpx.Client) -> None:
    """As Open WebUI does, which changes one of them."""
    told = client.get("/sdapi/v1/options").json()
    assert {"sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers", "samples_format"} <= set(told)
    assert (
        client.post("/sdapi/v1/options", json={**told, "sd_model_checkpoint": running.model}).status_code
        == 200
    )
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == running.model
