"""Pictures of SwarmUI, Fooocus, InvokeAI, NovelAI, Draw Things, Easy Diffusion and Civitai, in PNG, JPEG and WebP: what
they say is read with its types checked, and whatever is left is named."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.errors import RequestError
from studio.drafts import picture_file
from studio.pictures.invokeai import weighted as invokeai_weighted
from studio.pictures.metadata import Remembered, read_picture
from studio.pictures.novelai import weighted as novelai_weighted
from studio.pictures.texts import read_texts

from ...budget import cheap

A1111 = "a fox é 狐\nNegative prompt: blurry\nSteps: 8, Sampler: Euler, CFG scale: 4.5, Seed: 5, Size: 128x96"
SWARM = {
    "sui_image_params": {
        "prompt": "a fox <lora:nilo-fox:0.7>", "negativeprompt": "blurry", "seed": 5, "steps": 8, "cfgscale": 4.5,
        "width": 128, "height": 128, "sampler": "dpmpp_2m", "scheduler": "karras", "loras": ["nilo-fox"],
        "loraweights": ["0.7"],
    }
}  # fmt: skip
FOOOCUS = {
    "metadata_scheme": "fooocus", "full_prompt": ["a fox"], "full_negative_prompt": ["blurry"], "prompt": "a fox",
    "negative_prompt": "blurry", "resolution": "(128, 128)", "loras": [["nilo-fox", 0.5, "0011223344"]], "steps": 8,
    "seed": "42", "sampler": "euler", "scheduler": "karras", "clip_skip": 2, "guidance_scale": 4.5, "sharpness": 2.0,
    "base_model": "some-model", "base_model_hash": "0123456789", "lora_combined_1": "nilo-fox : 0.5",
    "version": "Fooocus v2.5.5",
}  # fmt: skip


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (16, 12)).save(path / "a.png", pnginfo=info)
    return path / "a.png"


def exif(tags: Mapping[int, Any], *, within: bool) -> bytes:
    found = Image.Exif()
    for tag, value in tags.items():
        (found.get_ifd(0x8769) if within else found)[tag] = value
    return found.tobytes()


def saved(path: Path, kind: str, *, within: bool = True, xmp: bytes = b"", **tags: Any) -> Path:
    """A picture with EXIF tags, named by their numbers as in x9286."""
    file = path / f"a.{kind.lower()}"
    numbers = {int(name[1:], 16): value for name, value in tags.items()}
    more = {"xmp": xmp} if xmp else {}
    Image.new("RGB", (16, 12)).save(file, format=kind, exif=exif(numbers, within=within), **more)
    return file


def mix(said: Remembered) -> list[tuple[str, float | None, float | None]]:
    return [(one.adapter, one.weight, one.text_weight) for one in said.draft.wanted]


def some(said: Remembered, *names: str) -> tuple[Any, ...]:
    return tuple(said.draft.values.get(name) for name in names)


# -- where the texts lie ---------------------------------------------------------------------------------

CODED = {
    "UTF-16BE": b"UNICODE\0" + A1111.encode("utf-16-be"),
    "UTF-16LE": b"UNICODE\0" + A1111.encode("utf-16-le"),
    "a mark, LE": b"UNICODE\0" + A1111.encode("utf-16"),
    "a mark, BE": b"UNICODE\0\xfe\xff" + A1111.encode("utf-16-be"),
    "UTF-8 said to be wide": b"UNICODE\0" + A1111.encode().replace("é 狐".encode(), b"e"),
    "ASCII": b"ASCII\0\0\0" + A1111.encode(),
    "a mark, UTF-8": b"ASCII\0\0\0\xef\xbb\xbf" + A1111.encode(),
    "unsaid": bytes(8) + A1111.encode(),
    "unsaid, wide": bytes(8) + A1111.encode("utf-16-le"),
    "no head": A1111.encode(),
    "charset": b'charset="Unicode" ' + A1111.encode(),
    "ends in zeros": b"ASCII\0\0\0" + A1111.encode() + bytes(4),
    "JIS": b"JIS\0\0\0\0\0" + A1111.replace("é ", "").encode("iso2022_jp"),
}


@pytest.mark.parametrize("coded", CODED)
@pytest.mark.parametrize("within", [True, False], ids=["Exif directory", "first directory"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF", "AVIF"])
def test_a_text_in_a_user_comment_is_read_as_in_a_png(
    tmp_path: Path, kind: str, within: bool, coded: str
) -> None:
    said = read_picture(saved(tmp_path, kind, within=within, x9286=CODED[coded]))
    assert some(said, "negative_prompt", "steps", "seed", "width", "height") == ("blurry", 8, 5, 128, 96)
    assert said.draft.values["prompt"][:5] == "a fox"
    if "JIS" not in coded and "said to be" not in coded:
        assert said.draft.values["prompt"] == "a fox é 狐"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_of_comfyui_prompt_and_workflow_lie_in_make_and_model(tmp_path: Path, kind: str) -> None:
    file = saved(tmp_path, kind, within=False, x0110='prompt:{"3": {}}', x010F='Workflow: {"nodes": []}')
    assert read_texts(file) == {"prompt": '{"3": {}}', "workflow": '{"nodes": []}'}
    file = saved(tmp_path, kind, within=False, x010E='Workflow: {"nodes": []}', x010F='Prompt: {"3": {}}')
    assert read_texts(file) == {"prompt": '{"3": {}}', "workflow": '{"nodes": []}'}


def test_comfyuis_graph_in_a_user_comment_is_the_graph(tmp_path: Path) -> None:
    graph = json.dumps({"3": {"class_type": "KSampler", "inputs": {}}})
    assert read_texts(saved(tmp_path, "JPEG", x9286=b"ASCII\0\0\0" + graph.encode()))["prompt"] == graph


@pytest.mark.parametrize("packed", [False, True])
def test_comfyuis_graphs_in_one_object_of_a_user_comment(tmp_path: Path, packed: bool) -> None:
    graph = {"3": {"class_type": "KSampler", "inputs": {}}}
    said = {"prompt": json.dumps(graph) if packed else graph, "workflow": {"nodes": []}}
    texts = read_texts(saved(tmp_path, "JPEG", x9286=b"ASCII\0\0\0" + json.dumps(said).encode()))
    assert (json.loads(texts["prompt"]), json.loads(texts["workflow"])) == (graph, {"nodes": []})
    assert "parameters" not in texts


XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/">
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description>
<xmp:CreatorTool>Draw Things</xmp:CreatorTool>
<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{comment}</rdf:li></rdf:Alt></exif:UserComment>
</rdf:Description></rdf:RDF></x:xmpmeta>"""
DRAW_THINGS = {
    "c": "a fox & an owl", "uc": "blurry", "model": "sd_xl_base.ckpt", "sampler": "DPM++ 2M Karras", "scale": 4.5,
    "seed": 4279116933, "size": "128x96", "steps": 8, "strength": 1, "seed_mode": "Scale Alike",
    "v2": {"loras": [{"file": "nilo-fox_lora_f16.ckpt", "weight": 0.8, "mode": "all"}], "width": 128, "height": 96},
}  # fmt: skip


def xmp(comment: str, description: str = "", *, escaped: bool = True) -> str:
    if escaped:
        comment = comment.replace("&", "&amp;").replace("<", "&lt;")
    return XMP.replace("{comment}", comment).replace("{description}", description)


@pytest.mark.parametrize("escaped", [True, False], ids=["well formed", "not well formed"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_draw_things_writes_xmp(tmp_path: Path, kind: str, escaped: bool) -> None:
    text = xmp(json.dumps(DRAW_THINGS), "a fox&#xA;-blurry&#xA;Steps: 8, Sampler: DPM++ 2M", escaped=escaped)
    file = (
        png(tmp_path, **{"XML:com.adobe.xmp": text})
        if kind == "PNG"
        else saved(tmp_path, kind, xmp=text.encode())
    )
    said = read_picture(file)
    assert said.program == "Draw Things"
    assert some(said, "prompt", "negative_prompt", "steps", "seed", "guidance_scale", "width", "height") == (
        "a fox & an owl", "blurry", 8, 4279116933, 4.5, 128, 96,
    )  # fmt: skip
    assert some(said, "scheduler") == ("DPM++ 2M Karras",)
    assert (said.model, mix(said)) == ("sd_xl_base", [("nilo-fox_lora_f16", 0.8, None)])
    assert "not taken over: seed_mode" in said.notes


def test_a1111s_text_in_xmp_alone_is_read(tmp_path: Path) -> None:
    text = xmp("", A1111.replace("\n", "&#xA;"))
    said = read_picture(png(tmp_path, **{"XML:com.adobe.xmp": text}))
    assert some(said, "prompt", "negative_prompt", "seed") == ("a fox é 狐", "blurry", 5)


def test_xmp_may_be_in_utf16() -> None:
    text = xmp(A1111).replace("<?xpacket", '<?xml version="1.0" encoding="utf-16"?><?xpacket', 1)
    assert picture_file.xmp_texts.texts(text.encode("utf-16"))["UserComment"] == A1111


@pytest.mark.parametrize("said", ["Screenshot", "OLYMPUS DIGITAL CAMERA", "", "Steps: to heaven", "{", "{}"])
def test_what_cameras_write_is_no_prompt(tmp_path: Path, said: str) -> None:
    file = saved(tmp_path, "JPEG", x9286=b"ASCII\0\0\0" + said.encode(), x010E=said)
    with pytest.raises(RequestError, match=r"does not say how it was made|JSON"):
        read_picture(file)


def test_hostile_exif_and_xmp_are_read_soon(tmp_path: Path) -> None:
    many = b"".join(struct.pack(">HHII", 0x9286, 7, 2**31, 8) for _ in range(60_000))
    entries = struct.pack(">H", 60_000) + many
    tiff = b"MM\0*\0\0\0\x08" + entries
    circle = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHII", 0x8769, 4, 1, 8)
    for data in (tiff, circle, b"MM\0*\xff\xff\xff\xff", b"II*\0", b"MM\0*", b"", b"Exif\0\0" + tiff):
        assert isinstance(picture_file.exif_texts.texts(data, 1000), dict)
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
        "<x><exif:UserComment>&b;&b;</exif:UserComment></x>"
    )
    for text in (bomb, "<a>" * 100_000, "<exif:UserComment>" * 50_000, "<", "<x " + "a='b' " * 9, "\0<x/>"):
        found = picture_file.xmp_texts.texts(text)
        assert sum(map(len, found.values())) <= len(text)


# -- SwarmUI ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_swarmui(tmp_path: Path, kind: str) -> None:
    text = json.dumps(SWARM, indent=2)
    file = (
        png(tmp_path, parameters=text)
        if kind == "PNG"
        else saved(tmp_path, kind, x9286=b"UNICODE\0" + text.encode("utf-16-be"))
    )
    said = read_picture(file)
    assert said.program == "SwarmUI"
    assert some(said, "prompt", "negative_prompt", "steps", "seed", "guidance_scale", "width", "height") == (
        "a fox", "blurry", 8, 5, 4.5, 128, 128,
    )  # fmt: skip
    assert some(said, "scheduler") == ("DPM++ 2M Karras",)
    assert mix(said) == [("nilo-fox", 0.7, None)]
    assert len(said.notes) == 1  # that noise differs


def swarm(path: Path, **params: Any) -> Remembered:
    whole = {"sui_image_params": {**SWARM["sui_image_params"], "prompt": "a fox", **params}}
    return read_picture(png(path, parameters=json.dumps({**whole, **params.pop("beside", {})})))


def test_swarmuis_other_forms(tmp_path: Path) -> None:
    said = swarm(
        tmp_path,
        seed="18446744073709551615", steps="8", cfgscale="4.5", width="128", sampler=None, scheduler=None,
        comfyuisampler="euler_ancestral", loras="sub/nilo-fox, hat", loraweights="0.7,1", loratencweights="0.5,1",
        lorasectionconfinement=["0", "10"], model="Official/sd_xl_base_1.0", refinercontrolpercentage=0.2,
        swarm_version="0.9.7", aspectratio="1:1", clipstopatlayer=-2,
    )  # fmt: skip
    assert some(said, "seed", "steps", "guidance_scale", "width", "scheduler", "clip_skip") == (
        2**64 - 1, 8, 4.5, 128, "Euler a", 1,
    )  # fmt: skip
    assert mix(said) == [("nilo-fox", 0.7, 0.5), ("hat", 1.0, None)]
    assert said.model == "sd_xl_base_1.0"
    assert "not taken over: lorasectionconfinement, refinercontrolpercentage" in said.notes


def test_swarmuis_files_have_hashes(tmp_path: Path) -> None:
    whole = {
        **SWARM,
        "sui_extra_data": {"date": "2025-01-01", "original_prompt": "a <random:fox,owl>"},
        "sui_models": [
            {"name": "nilo-fox.safetensors", "param": "loras", "hash": "0x" + "ab" * 32},
            {"name": "base.safetensors", "param": "model", "hash": "0x" + "cd" * 32},
        ],
    }
    said = read_picture(png(tmp_path, parameters=json.dumps(whole)))
    assert said.known["nilo-fox"].digest == "ab" * 32
    assert said.model_hash == "cd" * 32


@pytest.mark.parametrize(
    ("prompt", "read_as", "tags", "named"),
    [
        ("a <lora:hat:0.5:0.8> fox", "a fox", ("hat", 0.5, 0.8), ""),
        ("a fox [red], x", "a fox \\[red\\], x", None, ""),
        ("a <fromto[0.4]:fox,owl>", "a [fox:owl:0.4]", None, ""),
        ("a <alternate:fox||owl>", "a [fox|owl]", None, ""),
        ("a fox<break>in snow", "a foxBREAKin snow", None, ""),
        ("a fox <segment:face> a smile", "a fox", None, "<segment:face> a smile"),
        ("a <wildcard:animal>, red", "a , red", None, "<wildcard:animal>"),
        ("a fox <embed:bad-hands>", "a fox embedding:bad-hands", None, ""),
    ],
)
def test_swarmuis_tags(
    tmp_path: Path, prompt: str, read_as: str, tags: tuple[str, float, float] | None, named: str
) -> None:
    said = swarm(tmp_path, prompt=prompt, loras=None, loraweights=None)
    assert said.draft.values["prompt"] == read_as
    assert mix(said) == ([] if tags is None else [tags])
    assert not named or f"left out of the prompt: {named}" in said.notes


@pytest.mark.parametrize(
    ("confined", "told"), [(["0"], False), (["-1"], False), (["5"], False), (["1"], True), ("10", True)]
)
def test_a_section_is_told_where_swarmuis_lora_acts_in_a_part(
    tmp_path: Path, confined: Any, told: bool
) -> None:
    said = swarm(tmp_path, loras=["fox"], loraweights=["0.7"], lorasectionconfinement=confined)
    assert mix(said) == [("fox", 0.7, None)]
    assert ("not taken over: lorasectionconfinement" in said.notes) == told


def test_swarmuis_words_for_the_base_alone_are_words_of_the_picture(tmp_path: Path) -> None:
    said = swarm(
        tmp_path, prompt="a fox <base//cid=5>in snow <refiner//cid=1>sharp", loras=None, loraweights=None
    )
    assert said.draft.values["prompt"] == "a fox in snow"
    assert "left out of the prompt: <refiner//cid=1>sharp" in said.notes


def test_a_variation_of_no_strength_is_none(tmp_path: Path) -> None:
    assert len(swarm(tmp_path, variationseed=-1, variationseedstrength=0).notes) == 1
    assert "variationseed" in swarm(tmp_path, variationseed=7, variationseedstrength=0.2).notes[1]


@pytest.mark.parametrize("odd", [["a fox"], {"a": "fox"}, 5, True])
def test_what_is_no_text_is_no_prompt(tmp_path: Path, odd: Any) -> None:
    for said in (
        swarm(tmp_path, prompt=odd),
        read_picture(
            png(tmp_path, parameters=json.dumps(FOOOCUS | {"full_prompt": {"x": 1}, "prompt": odd}))
        ),
        read_picture(png(tmp_path, invokeai_metadata=json.dumps(INVOKE | {"positive_prompt": odd}))),
    ):
        assert said.draft.values["prompt"] == ""
        assert any("prompt not taken over" in note and "must be text" in note for note in said.notes)


# -- Fooocus ---------------------------------------------------------------------------------------------


def test_fooocus(tmp_path: Path) -> None:
    for file in (
        png(tmp_path, parameters=json.dumps(FOOOCUS), fooocus_scheme="fooocus"),
        saved(
            tmp_path, "JPEG", within=False, x9286=json.dumps(FOOOCUS), x927C="fooocus", x0131="Fooocus v2.5"
        ),
    ):
        said = read_picture(file)
        assert said.program == "Fooocus"
        assert some(said, "prompt", "negative_prompt", "steps", "seed", "width", "height") == (
            "a fox", "blurry", 8, 42, 128, 128,
        )  # fmt: skip
        assert some(said, "scheduler", "clip_skip", "guidance_scale") == ("Euler Karras", 1, 4.5)
        assert mix(said) == [("nilo-fox", 0.5, None)]
        assert said.known["nilo-fox"].digest == "0011223344"
        assert (said.model, said.model_hash) == ("some-model", "0123456789")
        assert "not taken over: sharpness" in said.notes


def test_fooocus_other_scheme_is_a1111s_text(tmp_path: Path) -> None:
    text = (
        "a fox, cinematic\nNegative prompt: blurry\nSteps: 8, Sampler: DPM++ 2M SDE Karras, Seed: 42, Size: 128x96, "
        'CFG scale: 4.0, Sharpness: 2.0, ADM Guidance: "(1.5, 0.8, 0.3)", Model: some, Model hash: 0123456789, '
        'Performance: Speed, Scheduler: karras, VAE: Default (model), Raw prompt: a fox, Lora hashes: "fox: '
        '0011223344", Lora weights: "fox: 0.5", Version: Fooocus v2.5.5'
    )
    said = read_picture(png(tmp_path, parameters=text, fooocus_scheme="a1111"))
    assert some(said, "prompt", "steps", "scheduler", "height") == (
        "a fox, cinematic",
        8,
        "DPM++ 2M SDE Karras",
        96,
    )
    assert (said.program, mix(said), said.known["fox"].digest) == (
        "Fooocus",
        [("fox", 0.5, None)],
        "0011223344",
    )


def test_fooocus_of_before(tmp_path: Path) -> None:
    log = {
        "Prompt": "a fox", "Negative Prompt": "blurry", "Styles": "['Fooocus V2']", "Performance": "Speed",
        "Resolution": "(128, 96)", "Guidance Scale": 4.0, "Base Model": "some.safetensors", "Sampler": "euler",
        "Scheduler": "karras", "Seed": 42, "LoRA 1": "fox.safetensors : 0.5", "LoRA [hat.safetensors] weight": 0.25,
        "Version": "v2.1.8 Fooocus",
    }  # fmt: skip
    said = read_picture(png(tmp_path, parameters=json.dumps(log)))
    assert some(said, "prompt", "steps", "width", "height", "seed", "scheduler") == (
        "a fox", 30, 128, 96, 42, "Euler Karras",
    )  # fmt: skip
    assert mix(said) == [("fox", 0.5, None), ("hat", 0.25, None)]
    assert "not taken over: Styles" in said.notes


@pytest.mark.parametrize(
    "loras",
    [[["BFA3BB4FBE", "0.5 - moi\\fox.safetensors"]], "Loras:<fox.safetensors:0.5>"],
    ids=["new", "old"],
)
def test_ruinedfooocus(tmp_path: Path, loras: Any) -> None:
    text = {
        "Prompt": "a fox", "Negative": "ugly", "steps": 24, "cfg": 4.5, "width": 128, "height": 96, "seed": 7,
        "sampler_name": "dpmpp_2m_sde_gpu", "scheduler": "karras", "base_model_name": "some.safetensors",
        "base_model_hash": "be9edd61", "loras": loras, "start_step": 0, "denoise": None, "clip_skip": 1,
        "software": "RuinedFooocus",
    }  # fmt: skip
    for whole in (text, json.dumps(text)):  # or packed twice
        said = read_picture(png(tmp_path, parameters=json.dumps(whole)))
        assert (said.program, said.model, said.model_hash) == ("RuinedFooocus", "some", "be9edd61")
        assert some(said, "prompt", "negative_prompt", "steps", "guidance_scale", "clip_skip") == (
            "a fox", "ugly", 24, 4.5, 0,
        )  # fmt: skip
        assert mix(said) == [("fox", 0.5, None)]
        assert len(said.notes) == 1


# -- InvokeAI --------------------------------------------------------------------------------------------

INVOKE = {
    "app_version": "5.0.0", "generation_mode": "sdxl_txt2img", "positive_prompt": "a (red fox)1.3 in (snow)",
    "negative_prompt": "blurry", "positive_style_prompt": "", "width": 128, "height": 96, "seed": 2**53 + 1,
    "cfg_scale": 6.5, "cfg_rescale_multiplier": 0.7, "steps": 30, "scheduler": "euler_a", "clip_skip": 0,
    "model": {"key": "k", "hash": "blake3:0123456789", "name": "base", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"name": "hat", "hash": "blake3:ab"}, "weight": 0.65}], "hrf_enabled": True,
}  # fmt: skip


def test_invokeai(tmp_path: Path) -> None:
    said = read_picture(png(tmp_path, invokeai_metadata=json.dumps(INVOKE)))
    assert some(said, "prompt", "seed", "steps", "guidance_scale", "guidance_rescale", "width", "height") == (
        "a (red fox:1.3) in snow", 2**53 + 1, 30, 6.5, 0.7, 128, 96,
    )  # fmt: skip
    assert (said.model, mix(said)) == ("base", [("hat", 0.65, None)])
    assert "not taken over: hrf_enabled" in said.notes
    older = INVOKE | {
        "model": {"model_name": "base", "base_model": "sdxl", "model_type": "main"},
        "loras": [{"lora": {"model_name": "hat", "base_model": "sdxl"}, "weight": 0.65}],
        "generation_mode": "img2img", "init_image": "x.png", "strength": 0.5,
    }  # fmt: skip
    said = read_picture(png(tmp_path, invokeai_metadata=json.dumps(older)))
    assert (said.model, mix(said), some(said, "strength")) == ("base", [("hat", 0.65, None)], (0.5,))
    assert said.init_image is not None


def test_invokeai_of_before(tmp_path: Path) -> None:
    old = {
        "model": "stable diffusion", "model_weights": "stable-diffusion-1.5", "model_hash": "cc" * 32,
        "app_id": "invoke-ai/InvokeAI", "app_version": "2.2.4",
        "image": {
            "prompt": [{"prompt": "a fox, red [blurry, bad]", "weight": 1}], "steps": 8, "cfg_scale": 7.5,
            "threshold": 0, "width": 128, "height": 96, "seed": 7, "type": "txt2img", "sampler": "k_euler_a",
            "seamless": False, "perlin": 0.1,
        },
    }  # fmt: skip
    said = read_picture(png(tmp_path, **{"sd-metadata": json.dumps(old)}))
    assert some(said, "prompt", "negative_prompt", "steps", "seed", "scheduler", "width") == (
        "a fox, red", "blurry, bad", 8, 7, "Euler a", 128,
    )  # fmt: skip
    assert (said.model, said.model_hash) == ("stable-diffusion-1.5", "cc" * 32)
    assert any(note.startswith("not taken over: ") and "perlin" in note for note in said.notes)
    line = '"a fox, "red" [blurry]" -s 20 -S 18446744073709551615 -W 128 -H 96 -C 7.5 -A k_euler -f 0.5 -I x.png -G 0.8'
    said = read_picture(png(tmp_path, Dream=line))
    assert some(said, "prompt", "negative_prompt", "steps", "seed", "width", "height", "guidance_scale") == (
        'a fox, "red"', "blurry", 20, 2**64 - 1, 128, 96, 7.5,
    )  # fmt: skip
    assert (some(said, "scheduler", "strength"), said.init_image) == (("Euler", 0.5), {})
    assert "not taken over: -G" in said.notes
    said = read_picture(png(tmp_path, Dream='"a fox" -s20 -S7 -W128 -H96 -C7.5 -mk_lms -ft gfpgan'))
    assert some(said, "steps", "seed", "width", "height", "guidance_scale") == (20, 7, 128, 96, 7.5)
    assert "not taken over: -ft" in said.notes
    for texts in ({"Dream": '"a fox"'}, {"sd-metadata": "[]"}, {"invokeai_metadata": "{"}):
        with pytest.raises(RequestError, match=r"of InvokeAI cannot be understood; set it up by hand"):
            read_picture(png(tmp_path, **texts))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("a fox++ in snow", "a (fox:1.21) in snow"),
        ("(a fox)1.3", "(a fox:1.3)"),
        ("(a fox)++, (snow)-", "(a fox:1.21), (snow:0.9)"),
        ("((red fox)1.2 in snow)0.5", "((red fox:1.2) in snow:0.5)"),
        ("(plain)", "plain"),
        ("a [b] \\(c\\)", "a \\[b\\] \\(c\\)"),
        ("open (fox", "open \\(fox"),
        ("a <bad-hands>", "a embedding:bad-hands"),
        ("close) fox", "close\\) fox"),
        ("well-known, 1girl", "well-known, 1girl"),
    ],
)
def test_invokeais_weights(said: str, meant: str) -> None:
    assert invokeai_weighted(said) == meant


# -- NovelAI, Easy Diffusion, Civitai, others ------------------------------------------------------------

NOVEL = {
    "steps": 28, "sampler": "k_euler_ancestral", "seed": 2**53 + 1, "scale": 5.0, "uc": "{blurry}", "height": 96,
    "width": 128, "noise_schedule": "native", "cfg_rescale": 0.2, "sm": True, "request_type": "PromptGenerateRequest",
}  # fmt: skip


def test_novelai(tmp_path: Path) -> None:
    texts = {
        "Title": "AI generated image", "Software": "NovelAI", "Description": "a {fox}, [snow] (deep)",
        "Source": "Stable Diffusion XL 1D44365E", "Comment": json.dumps(NOVEL),
    }  # fmt: skip
    newer = texts | {"Comment": json.dumps({"prompt": texts["Description"], **NOVEL})}
    for file in (
        lambda: png(tmp_path, **texts),
        lambda: png(tmp_path, **newer),
        lambda: saved(tmp_path, "WEBP", x9286=b"UNICODE\0" + json.dumps(texts).encode("utf-16-be")),
    ):
        said = read_picture(file())
        assert (said.program, said.model, said.model_hash) == ("NovelAI", "Stable Diffusion XL", "1D44365E")
        assert some(said, "prompt", "negative_prompt", "seed", "guidance_scale", "guidance_rescale") == (
            "a (fox:1.05), (snow:0.9524) \\(deep\\)", "(blurry:1.05)", 2**53 + 1, 5.0, 0.2,
        )  # fmt: skip
        assert some(said, "scheduler", "width") == ("Euler a", 128)
        assert "not taken over: sm" in said.notes


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("{{fox}}", "((fox:1.05):1.05)"),
        ("1.3::fox, owl:: red", "(fox, owl:1.3) red"),
        ("-1::fox::", "(fox:-1)"),
        ("{fox", "{fox"),
        ("fox] [", "fox\\] \\["),
    ],
)
def test_novelais_weights(said: str, meant: str) -> None:
    assert novelai_weighted(said) == meant


def test_easy_diffusion(tmp_path: Path) -> None:
    said = {
        "prompt": "a fox", "negative_prompt": "blurry", "seed": 7, "use_stable_diffusion_model": "some-model",
        "clip_skip": True, "use_vae_model": "soft", "sampler_name": "dpmpp_2m", "width": 128, "height": 96,
        "num_inference_steps": 8, "guidance_scale": 4.5, "use_lora_model": ["fox", "hat"], "lora_alpha": [0.5, 0.25],
        "tiling": None,
    }  # fmt: skip
    texts = {key: str(value) for key, value in said.items()}
    for file in (
        png(tmp_path, **texts),
        saved(tmp_path, "JPEG", x9286=b"UNICODE\0" + json.dumps(said).encode("utf-16-be")),
    ):
        found = read_picture(file)
        assert (found.program, found.model) == ("Easy Diffusion", "some-model")
        assert some(found, "prompt", "steps", "seed", "width", "scheduler", "clip_skip") == (
            "a fox", 8, 7, 128, "DPM++ 2M", 1,
        )  # fmt: skip
        assert mix(found) == [("fox", 0.5, None), ("hat", 0.25, None)]
        assert "not taken over: use_vae_model" in found.notes


def test_civitais_generator(tmp_path: Path) -> None:
    extra = {
        "prompt": "a fox", "negativePrompt": "blurry", "steps": 8, "cfgScale": 4.5, "sampler": "euler_ancestral",
        "seed": 7, "width": 128, "height": 96, "workflowId": "txt2img",
        "resources": [{"modelVersionId": 12, "strength": 0.8}, {"modelVersionId": 13}],
    }  # fmt: skip
    whole = {"6": {"class_type": "CLIPTextEncode", "inputs": {}}, "extraMetadata": json.dumps(extra)}
    said = read_picture(saved(tmp_path, "JPEG", x9286=b"UNICODE\0" + json.dumps(whole).encode("utf-16-be")))
    assert some(said, "prompt", "negative_prompt", "steps", "seed", "scheduler") == (
        "a fox",
        "blurry",
        8,
        7,
        "Euler a",
    )
    assert mix(said) == [("Civitai's model version 12", 0.8, None)]


@pytest.mark.parametrize(
    "said", [{"a": 1}, [1, 2], {"prompt": "a fox"}, {"sui_image_params": 5}, {"prompt": ["x"], "steps": 5}]
)
def test_json_of_nobody_is_refused_and_never_a_prompt(tmp_path: Path, said: Any) -> None:
    with pytest.raises(RequestError, match="JSON of no program that is known; set it up by hand"):
        read_picture(png(tmp_path, parameters=json.dumps(said)))
    with pytest.raises(RequestError, match="damaged JSON"):
        read_picture(png(tmp_path, parameters='{"sui_image_params": {"prompt": "a fox", '))


def test_settings_that_speak_for_themselves_are_read_whatever_wrote_them(tmp_path: Path) -> None:
    said = read_picture(
        png(
            tmp_path,
            parameters=json.dumps(
                {
                    "prompt": "a fox", "Negative Prompt": "blurry", "seed": "7", "resolution": "128 x 96", "use": 5,
                    "guidance_scale": "x", "num_inference_steps": 8, "loras": {"fox": 0.5}, "Sampler": "Euler",
                }
            ),
        )
    )  # fmt: skip
    assert some(said, "prompt", "negative_prompt", "seed", "width", "height", "steps") == (
        "a fox", "blurry", 7, 128, 96, 8,
    )  # fmt: skip
    assert mix(said) == [("fox", 0.5, None)]
    assert said.notes[1:] == ("not taken over: use", "guidance_scale not taken over: 'x' must be a number")


@pytest.mark.parametrize("seed", [-1, 2**64, "99999999999999999999999", 1.5, "x"])
def test_a_seed_that_no_request_takes_is_left_out_and_told(tmp_path: Path, seed: Any) -> None:
    for said in (swarm(tmp_path, seed=seed),):
        assert "seed" not in said.draft.values
        assert any(note.startswith("seed not taken over: ") for note in said.notes)


@pytest.mark.parametrize("nothing", [0, "0", 0.0])
@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        ("parameters", FOOOCUS),
        ("parameters", SWARM),
        ("parameters", {"prompt": "a fox", "steps": 8, "cfg_scale": 1, "denoising_strength": 1}),
        ("invokeai_metadata", {"positive_prompt": "a fox", "steps": 8}),
    ],
    ids=["Fooocus", "SwarmUI", "another program", "InvokeAI"],
)
def test_a_seed_and_a_guidance_of_0_are_kept(tmp_path: Path, chunk: str, said: Any, nothing: Any) -> None:
    inner = said.get("sui_image_params", said)
    names = {"cfg_scale", "cfgscale", "guidance_scale"} & inner.keys() or {"cfg_scale"}
    changed = inner | {"seed": nothing, **dict.fromkeys(names, nothing)}
    whole = {"sui_image_params": changed} if inner is not said else changed
    found = read_picture(png(tmp_path, **{chunk: json.dumps(whole)}))
    assert some(found, "seed", "guidance_scale") == (0, 0)


def test_a_strength_of_0_without_a_picture_says_nothing(tmp_path: Path) -> None:
    said = {"prompt": "a fox", "steps": 8, "seed": 5, "denoising_strength": 0, "eta": 0}
    found = read_picture(png(tmp_path, parameters=json.dumps(said)))
    assert (found.init_image, some(found, "strength"), found.notes[1:]) == (None, (None,), ())


@pytest.mark.parametrize("row", ["None", ["None", 1.0], ["none", 0.5, ""], "None : 1.0"])
def test_a_place_for_a_lora_that_holds_none_is_no_loss(tmp_path: Path, row: Any) -> None:
    found = read_picture(png(tmp_path, parameters=json.dumps(FOOOCUS | {"loras": [row, ["nilo-fox", 0.5]]})))
    assert mix(found) == [("nilo-fox", 0.5, None)]
    assert not any("LoRA" in note for note in found.notes)


def test_files_are_opened_as_bytes_too() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif({0x9286: CODED["UTF-16BE"]}, within=True))
    assert read_texts(file, "it")["parameters"] == A1111


def test_tensorart(tmp_path: Path) -> None:
    said = {
        "models": [
            {"label": "Fox v1", "type": "LORA", "modelFileName": "fox_v1", "weight": 0.6, "hash": "0011223344"},
            {"type": "CONTROLNET", "modelFileName": "canny"},
        ],
        "prompt": "a fox", "negativePrompt": "blurry", "width": 128, "height": 96, "samplerName": "DPM++ 2M Karras",
        "steps": 8, "cfgScale": 4.5, "seed": "18446744073709551615", "clipSkip": 2,
        "baseModel": {"label": "Base", "type": "BASE_MODEL", "modelFileName": "base_v2", "hash": "aa"},
    }  # fmt: skip
    found = read_picture(png(tmp_path, generation_data=json.dumps(said) + "\0"))
    assert some(found, "prompt", "negative_prompt", "seed", "scheduler", "clip_skip") == (
        "a fox", "blurry", 2**64 - 1, "DPM++ 2M Karras", 1,
    )  # fmt: skip
    assert (found.model, mix(found)) == ("base_v2", [("fox_v1", 0.6, None)])
    assert "not taken over: model 'canny'" in found.notes


def test_draw_things_description_alone_is_read(tmp_path: Path) -> None:
    text = xmp(
        "",
        "a fox&#xA;-blurry&#xA;Steps: 8, Sampler: DPM++ 2M Karras, Guidance Scale: 4.5, Seed: 5, Strength: 1.0",
    )
    said = read_picture(png(tmp_path, **{"XML:com.adobe.xmp": text}))
    assert some(said, "prompt", "negative_prompt", "guidance_scale") == ("a fox", "blurry", 4.5)
    assert (said.init_image, "not taken over: Strength" in said.notes) == (None, True)


def test_numbers_of_no_size_are_left_out_and_told(tmp_path: Path) -> None:
    said = swarm(tmp_path, width="9" * 90, steps=10**300, cfgscale=1e300)
    assert some(said, "width", "steps", "guidance_scale", "seed") == (None, None, None, 5)
    assert sum("not taken over: " in note for note in said.notes) == 3


def test_swarmuis_creativity_tells_a_picture_that_it_leaves_out(tmp_path: Path) -> None:
    said = swarm(tmp_path, initimagecreativity=0.6, vae="OfficialStableDiffusion/sdxl_vae.safetensors")
    assert said.draft.values["strength"] == 0.6
    assert said.init_image is not None
    assert said.setup.vae == "sdxl_vae"


def test_invokeais_vae(tmp_path: Path) -> None:
    text = json.dumps({"positive_prompt": "a fox", "steps": 8, "seed": 5, "vae": {"name": "sdxl-vae"}})
    assert read_picture(png(tmp_path, invokeai_metadata=text)).setup.vae == "sdxl-vae"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ('("a fox", "a cat").blend(0.7, 0.3)', '\\("a fox", "a cat"\\).blend\\(0.7, 0.3\\)'),
        ('("a fox", "a cat").and()', '\\("a fox", "a cat"\\).and\\(\\)'),
        ("a cat.swap(a dog) [x]", "a cat.swap\\(a dog\\) \\[x\\]"),
    ],
)
def test_invokeais_calls_stay_as_written_and_are_told(tmp_path: Path, said: str, meant: str) -> None:
    text = json.dumps({"positive_prompt": said, "steps": 8, "seed": 5})
    found = read_picture(png(tmp_path, invokeai_metadata=text))
    assert found.draft.values["prompt"] == meant
    assert any(".blend()" in note for note in found.notes)


def test_a_dict_of_python_is_refused_and_never_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="set it up by hand"):
        read_picture(png(tmp_path, parameters="{'prompt': 'a fox', 'steps': 8}"))


def test_what_only_the_graph_of_civitais_generator_tells(tmp_path: Path) -> None:
    from .comfy_graphs import BASE, node

    lora = node(
        "LoraLoader",
        lora_name="urn:air:sdxl:lora:civitai:1@2",
        strength_model=1,
        model=["4", 0],
        clip=["4", 1],
    )
    model = node("CheckpointLoaderSimple", ckpt_name="urn:air:sdxl:checkpoint:civitai:101055@128078")
    extra = {
        "prompt": "a fox", "negativePrompt": "blurry", "steps": 8, "cfgScale": 4.5, "sampler": "euler_ancestral",
        "workflowId": "txt2img", "remixOfId": 1,
        "resources": [{"modelVersionId": 128078, "strength": 1}, {"modelVersionId": 2, "strength": 0.8}],
    }  # fmt: skip
    whole = {**BASE, "4": model, "20": lora, "extraMetadata": json.dumps(extra)}
    said = read_picture(saved(tmp_path, "JPEG", x9286=b"UNICODE\0" + json.dumps(whole).encode("utf-16-be")))
    assert said.program == "Civitai"
    assert some(said, "prompt", "seed", "steps", "width", "height") == ("a fox", 11, 8, 640, 512)
    assert (said.model, mix(said)) == (
        "Civitai's model version 128078",
        [("Civitai's model version 2", 0.8, None)],
    )
    assert len(said.notes) == 1


def test_the_fork_mre_of_fooocus(tmp_path: Path) -> None:
    text = {
        "prompt": "a fox", "negative_prompt": "blurry", "style": "cinematic", "real_prompt": ["a fox, film"],
        "real_negative_prompt": ["blurry, x"], "seed": 5, "width": 128, "height": 96, "sampler": "dpmpp_2m",
        "scheduler": "karras", "performance": "Speed", "steps": 30, "switch": 20, "cfg": 7.0, "base_model": "some",
        "refiner_model": "None", "l1": "fox.safetensors", "w1": 0.5, "l2": "None", "w2": 0.5, "l3": "None", "w3": 0.5,
        "software": "Fooocus 1.0.64 (MRE)", "version": "Fooocus 1.0.64",
    }  # fmt: skip
    said = read_picture(png(tmp_path, parameters=json.dumps(text)))
    assert some(said, "prompt", "negative_prompt") == ("a fox, film", "blurry, x")
    assert (mix(said), len(said.notes)) == ([("fox", 0.5, None)], 1)


def test_a_vae_of_fooocus(tmp_path: Path) -> None:
    for name, read_as in (("Default (model)", None), ("soft.safetensors", "soft")):
        said = read_picture(png(tmp_path, parameters=json.dumps(FOOOCUS | {"vae": name})))
        assert said.setup.vae == read_as
        assert not any("vae" in note for note in said.notes)


def test_the_model_of_tensorart_and_what_says_nothing(tmp_path: Path) -> None:
    text = {
        "models": [{"label": "x", "type": "LORA", "weight": 0.7, "modelFileName": "nilo-fox"}], "prompt": "a fox",
        "negativePrompt": "blurry", "width": 128, "height": 96, "imageCount": 1, "samplerName": "Euler a", "steps": 8,
        "cfgScale": 7, "seed": "12345", "clipSkip": 2, "workEngine": "TAMS_V1",
        "baseModel": {"label": "Grand", "type": "BASE_MODEL", "modelFileId": "8", "hash": "ABCDEF0123"},
    }  # fmt: skip
    said = read_picture(png(tmp_path, generation_data=json.dumps(text) + "\0"))
    assert (said.model, mix(said), len(said.notes)) == ("Grand", [("nilo-fox", 0.7, None)], 1)


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": json.dumps({"sui_image_params": {"prompt": "<a[b]:c" * 400_000}})},
        {"invokeai_metadata": json.dumps({"positive_prompt": "(" * 1_500_000})},
        {"Software": "NovelAI", "Comment": json.dumps({"prompt": "{1::" * 600_000, "uc": ""})},
    ],
    ids=["SwarmUI", "InvokeAI", "NovelAI"],
)
def test_a_prompt_that_is_too_long_is_refused_before_it_is_translated(
    tmp_path: Path, texts: dict[str, str]
) -> None:
    file = png(tmp_path, **texts)
    with cheap(), pytest.raises(RequestError, match=r"^a\.png: prompt has \d+ characters, more than 200000"):
        read_picture(file)
