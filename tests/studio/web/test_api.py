"""The functions for programs, by gradio_client against a running server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from studio.drafts.fields import BY_NAME, FIELDS
from studio.jobs import Trainings
from studio.web.app import build

SMALL: dict[str, Any] = {"width": 32, "height": 32, "steps": 2}

EXPECTED = {
    "/compose": [
        "prompt", "loras", "negative_prompt", "method", "seed", "steps", "guidance_scale", "width", "height",
        "sampler", "count", "model", "wait_seconds",
    ],
    "/compare": [
        "prompt", "loras", "methods", "negative_prompt", "seed", "steps", "guidance_scale", "width", "height",
        "sampler", "model", "wait_seconds",
    ],
    "/job": ["id", "wait_seconds", "first"],
    "/cancel": ["id"],
    "/library": ["search", "model", "fitting_only"],
    "/inspect": ["name"],
    "/picture_info": ["picture"],
    "/models": [],
    "/methods": [],
}  # fmt: skip
"""What programs rely on: names are added, never changed."""
OF_A_REQUEST = {"/compose", "/compare"}
"""They take every field of a request (`test_request_fields`): those that are not named above come last."""


@pytest.fixture(scope="module")
def program(running: Any) -> Client:
    return Client(running.address, verbose=False)


def test_names_and_parameters_stay_as_they_are(program: Client) -> None:
    told = program.view_api(return_format="dict", print_info=False)
    found = {
        name: [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        for name, endpoint in told["named_endpoints"].items()
    }
    for name in OF_A_REQUEST:
        rest = {field.argument for field in FIELDS} - {"method"} | set(EXPECTED[name])
        assert set(found[name]) == rest, name
        found[name] = found[name][: len(EXPECTED[name])]
    assert found == EXPECTED
    assert told["unnamed_endpoints"] == {}


def test_the_pages_keep_their_own_events_to_themselves(running: Any) -> None:
    trainings = Trainings(running.worker.home)
    told = build(running.worker, trainings).get_api_info()
    trainings.close()
    assert set(told["named_endpoints"]) == set(EXPECTED)
    assert told["unnamed_endpoints"] == {}


def test_a_mix_is_composed_and_its_picture_fetched(
    running: Any, program: Client, client: httpx.Client, tmp_path: Path
) -> None:
    job = program.predict(
        "a fox", ["fox=0.5", "hat"], method="composite", seed=7, count=2, **SMALL, api_name="/compose"
    )
    assert (job["state"], [p["seed"] for p in job["pictures"]]) == ("done", [7, 8])
    assert job["pictures"][0]["record"]["composer"] == "composite"
    answer = client.get(job["pictures"][0]["url"])
    assert answer.status_code == 200
    file = tmp_path / "fox.png"
    file.write_bytes(answer.content)
    told = program.predict(handle_file(str(file)), api_name="/picture_info")
    assert told["program"] == "LoRA Studio"
    assert [row["adapter"] for row in told["settings"]["adapters"]] == ["fox", "hat"]
    assert (told["model"], told["missing"]) == (running.model, [])


def test_a_jpeg_of_another_program_is_understood(program: Client, tmp_path: Path) -> None:
    text = (
        "a fox <lora:fox:0.5>\nSteps: 8, Sampler: Euler, Seed: 18446744073709551615, Size: 32x48, Odd: {x, y}"
    )
    notes = Image.Exif()
    notes[0x9286] = b"UNICODE\0\xff\xfe" + text.encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.jpg", exif=notes.tobytes())
    told = program.predict(handle_file(str(tmp_path / "fox.jpg")), api_name="/picture_info")
    assert (told["settings"]["prompt"], told["settings"]["steps"]) == ("a fox", 8)
    assert told["settings"]["seed"] == 2**64 - 1
    assert [row["adapter"] for row in told["settings"]["adapters"]] == ["fox"]
    assert any(note == "not taken over: Odd" for note in told["notes"])


def test_a_picture_starts_from_an_uploaded_one(program: Client, client: httpx.Client, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(file)
    said = {"init_image": handle_file(str(file)), "strength": 0.5, "crop": [0, 64], "text_mode": "first"}
    job = program.predict("a fox", ["fox", "hat"], **{**SMALL, "steps": 4}, **said, api_name="/compose")
    assert job["state"] == "done", job["error"]
    record = job["pictures"][0]["record"]
    assert (record["strength"], record["executed_steps"]) == (0.5, 2)
    assert (record["crop"], record["text_mode"]) == ([0, 64], "first")
    for path in ("/etc/passwd", str(file)):
        for other in ({}, {"meta": {"_type": "gradio.FileData"}}):
            body = {"prompt": "a fox", "init_image": {"path": path, **other}, "wait_seconds": 0}
            event = client.post("/gradio_api/call/v2/compose", json=body).json()["event_id"]
            told = client.get(f"/gradio_api/call/compose/{event}").text
            assert "event: error" in told
            assert "is not yours" in told


def test_the_last_of_a_list_of_arguments_may_be_left_out(client: httpx.Client) -> None:
    """Whoever wrote all arguments of an older server need not write those that came since."""
    older = ["a fox", ["fox"], "", "merge", 7, 2, -1, 32, 32, "", 1, "", 30]
    [job] = client.post("/gradio_api/run/compose", json={"data": older}).json()["data"]
    assert (job["state"], job["pictures"][0]["seed"]) == ("done", 7)
    refused = client.post("/gradio_api/run/compose", json={"data": []})
    assert refused.status_code == 500
    assert "prompt=None must be text" in refused.json()["error"]


def test_the_readmes_example_runs(running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(from gradio_client.*?)^```", readme, re.MULTILINE | re.DOTALL)
    here = {"http://127.0.0.1:7860": running.address, "nilo-fox=0.8": "fox=0.8", '"kimono"': '"hat"'}
    for said, meant in here.items():
        assert said in code
        code = code.replace(said, meant)
    exec(re.sub(r'method="switch",', 'method="switch", width=32, height=32, steps=12,', code))
    assert capsys.readouterr().out.splitlines()[-1].startswith("done ")


def test_methods_are_compared_in_shared_passes(program: Client) -> None:
    names = ["merge", "switch:interval=1", "composite"]
    job = program.predict("a fox", ["fox", "hat"], names, **SMALL, api_name="/compare")
    assert [picture["label"] for picture in job["pictures"]] == names
    assert len({picture["seed"] for picture in job["pictures"]}) == 1
    assert all(picture["record"]["shared"] for picture in job["pictures"])


def test_a_job_is_queued_looked_at_and_stopped(program: Client) -> None:
    job = program.predict("a fox", width=32, height=32, steps=900, wait_seconds=0, api_name="/compose")
    assert job["state"] in ("queued", "running")
    assert program.predict(job["id"], api_name="/cancel") is True
    assert program.predict(job["id"], wait_seconds=30, api_name="/job")["state"] == "cancelled"
    assert program.predict(job["id"], api_name="/cancel") is False


def test_a_large_job_is_told_in_parts(program: Client) -> None:
    job = program.predict("a fox", seed=7, count=3, **SMALL, api_name="/compose")
    rest = program.predict(job["id"], first=3, api_name="/job")
    assert [picture["seed"] for picture in rest["pictures"]] == [9]
    assert rest["message"] == "3 of 3 pictures done"
    assert program.predict(job["id"], first=2**60, api_name="/job")["pictures"] == []


def test_what_is_there(running: Any, program: Client) -> None:
    cards = program.predict("fox", fitting_only=True, api_name="/library")
    assert [card["name"] for card in cards] == ["fox"]
    kimono = program.predict("kimono", api_name="/library")[0]
    assert "made for tiny-sdxl" in kimono["misfit"]
    assert program.predict("fox", api_name="/inspect")["kinds"] == ["LoRA"]
    assert any(m["name"] == running.model and m["default"] for m in program.predict(api_name="/models"))
    assert "cmlora" in [method["name"] for method in program.predict(api_name="/methods")]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"prompt": "a", "loras": ["foxx"], "api_name": "/compose"}, "did you mean 'fox'"),
        ({"prompt": "a", "method": "merg", "api_name": "/compose"}, "did you mean 'merge'"),
        ({"prompt": "a", "steps": 5000, "api_name": "/compose"}, "steps=5000"),
        ({"id": "nothing", "api_name": "/job"}, "you have no job"),
        ({"name": "../../etc/passwd", "api_name": "/inspect"}, "does not exist"),
    ],
)
def test_errors_are_for_people(program: Client, call: Any, said: str) -> None:
    with pytest.raises(AppError, match=said):
        program.predict(**call)


def test_mcp_clients_are_offered_the_same_functions(client: httpx.Client) -> None:
    schema = client.get("/gradio_api/mcp/schema").json()
    assert {f"/{tool['name']}" for tool in schema} == set(EXPECTED)
    [compose] = [tool for tool in schema if tool["name"] == "compose"]
    assert "mix of LoRAs" in compose["description"]
    properties = compose["inputSchema"]["properties"]
    assert {field.argument for field in FIELDS} <= set(properties)
    assert properties["reuse"]["description"].startswith(f"{BY_NAME['reuse'].knob.help} 0: off")
    assert properties["cut"]["enum"] == ["", *BY_NAME["cut"].knob.choices]
    assert compose["inputSchema"]["required"] == ["prompt"]
