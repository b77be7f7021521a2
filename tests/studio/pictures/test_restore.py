"""Settings restored from pictures: ours, A1111's, ComfyUI's, InvokeAI's; what is missing is named."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from composers import BLora
from pipelines.errors import RequestError
from pipelines.home import Home
from pipelines.text.tags import sift_tags
from studio.drafts.entries import plain_draft
from studio.library.hashes import short_hash
from studio.library.scan import Library
from studio.pictures.restore import Restored, restore

from ...budget import cheap

A1111 = """a fox on a hill <lora:fox:0.6> <lora:gone:1>
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6, Seed: 7, Size: 512x768, Model hash: 0123456789,
Model: some-checkpoint, Lora hashes: "fox: {fox}, gone: 00112233aabb", Version: v1.9.4"""

COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 11, "steps": 25, "cfg": 5.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1,
            "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sub/random-sdxl.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a hat on a hill", "clip": ["11", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["11", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "styles\\\\hat.safetensors", "strength_model": 0.8, "strength_clip": 0.4,
            "model": ["4", 0], "clip": ["4", 1],
        },
    },
    "11": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "foxx.safetensors", "strength_model": 1.0, "strength_clip": 1.0,
            "model": ["10", 0], "clip": ["10", 1],
        },
    },
}  # fmt: skip

INVOKE = {
    "app_version": "5.0.0", "generation_mode": "sdxl_txt2img", "positive_prompt": "a fox", "negative_prompt": "blurry",
    "width": 1024, "height": 1024, "seed": 5, "cfg_scale": 6.5, "steps": 30, "scheduler": "euler_a",
    "model": {"key": "k", "hash": "blake3:1", "name": "random-sdxl", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"key": "l", "name": "hat", "base": "sdxl", "type": "lora"}, "weight": 0.65}],
}  # fmt: skip


@pytest.fixture
def own(home: Path, loras: Path, sdxl_folder: Path) -> Home:
    return Home.resolve(home, model_dirs=[sdxl_folder.parent])


def read(own: Home, folder: Path, **texts: str) -> Restored:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    file = folder / "picture.png"
    Image.new("RGB", (16, 16)).save(file, pnginfo=info)
    return restore(file, own, Library(lambda: own))


def test_a1111(own: Home, loras: Path, tmp_path: Path) -> None:
    (loras / "fox.safetensors").rename(loras / "renamed.safetensors")
    size_unknown = A1111.replace("{fox}", short_hash(loras / "renamed.safetensors")).replace(
        ",\nModel:", ", Model:"
    )
    found = read(own, tmp_path, parameters=size_unknown)
    values = found.draft.values
    assert (found.program, values["prompt"], values["negative_prompt"]) == (
        "A1111",
        "a fox on a hill",
        "blurry",
    )
    assert (values["steps"], values["seed"], values["width"], values["height"]) == (20, 7, 512, 768)
    assert values["scheduler"] == "DPM++ 2M Karras"
    missing = {(one.kind, one.name): one for one in found.missing}
    assert missing["model", "some-checkpoint"].hash == "0123456789"
    assert missing["LoRA", "gone"].hash == "00112233aabb"
    assert "is not here" in str(missing["LoRA", "gone"])


def test_a_renamed_lora_is_found_by_the_hash_its_header_states(
    own: Home, loras: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.zeros(2, 64), f"{key}.lora_up.weight": torch.zeros(32, 2)}
    save_file(tensors, loras / "new-name.safetensors", metadata={"sshs_model_hash": "ab" * 32})
    text = (
        A1111.replace("gone", "old-name").replace("00112233aabb", "ab" * 6).replace(",\nModel:", ", Model:")
    )
    found = read(own, tmp_path, parameters=text.replace("{fox}", short_hash(loras / "fox.safetensors")))
    assert [(row.adapter, row.weight) for row in found.draft.wanted] == [("fox", 0.6), ("new-name", 1.0)]
    assert "LoRA 'old-name' was found by its hash: it is called 'new-name' here" in found.notes


def test_comfyui(own: Home, tmp_path: Path) -> None:
    found = read(own, tmp_path, prompt=json.dumps(COMFY))
    values = found.draft.values
    assert "ComfyUI" in found.program
    assert (values["prompt"], values["negative_prompt"]) == ("a hat on a hill", "blurry")
    assert (values["steps"], values["seed"], values["guidance_scale"]) == (25, 11, 5.5)
    assert values["scheduler"] == "DPM++ 2M Karras"
    assert found.model == "random-sdxl"
    assert [(row.adapter, row.weight, row.text_weight) for row in found.draft.wanted] == [("hat", 0.8, 0.4)]
    assert (values["width"], values["height"]) == (640, 512)
    [gone] = found.missing
    assert (gone.name, gone.near[0]) == ("foxx", "fox")


def test_comfyui_writes_numbers_that_are_none(own: Home, tmp_path: Path) -> None:
    nodes = COMFY | {"12": {"class_type": "X", "inputs": {}, "is_changed": [float("nan")]}}
    assert read(own, tmp_path, prompt=json.dumps(nodes)).draft.values["steps"] == 25


def test_invokeai(own: Home, tmp_path: Path) -> None:
    found = read(own, tmp_path, invokeai_metadata=json.dumps(INVOKE))
    assert "Invoke" in found.program
    assert found.draft.values["prompt"] == "a fox"
    assert (found.draft.values["steps"], found.draft.values["seed"]) == (30, 5)
    assert [(row.adapter, row.weight) for row in found.draft.wanted] == [("hat", 0.65)]
    assert found.model == "random-sdxl"


LINE = "\nSteps: 20, Sampler: Euler, Seed: 7"


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ("<hypernet:old:0.5>", "<hypernet:old:0.5>: hypernetworks are not supported"),
        ("<lora:hat:1:1:dyn=4>", "<lora:hat:1:1:dyn=4>: a dynamic rank"),
        ("<lora:hat:much>", "<lora:hat:much>"),
        ("<lora:hat:1:lbw=1,R,1>", "<lora:hat:1:lbw=1,R,1>"),
        ("<lora:hat", "'<lora:hat"),
        ("<lora:hat:1e200:lbw=1e200,1,1>", "<lora:hat:1e200:lbw=1e200,1,1>"),
    ],
)
@pytest.mark.parametrize("program", ["A1111", "ComfyUI"])
def test_a_tag_that_cannot_be_read_is_left_out_and_named(
    own: Home, tmp_path: Path, program: str, tag: str, why: str
) -> None:
    prompt = f"a <lora:fox> on {tag}, a hill"
    nodes = COMFY | {"6": node("CLIPTextEncode", text=prompt, clip=["11", 1])}
    texts = {"parameters": prompt + LINE} if program == "A1111" else {"prompt": json.dumps(nodes)}
    found = read(own, tmp_path, **texts)
    assert found.draft.values["prompt"] == "a on, a hill"
    assert ("fox", None) in [(row.adapter, row.weight) for row in found.draft.wanted]
    [told] = [note for note in found.notes if why in note]
    assert told.startswith("left out of the prompt: ")


def test_tags_that_say_more_than_strengths_become_adapters_too(own: Home, tmp_path: Path) -> None:
    found = read(own, tmp_path, parameters="a <lora:fox:0.5:lbw=OUTALL:start=0.5>" + LINE)
    [row] = found.draft.wanted
    assert (found.draft.values["prompt"], row.adapter, row.blocks) == ("a", "fox", (("@OUTALL", 1.0),))
    assert row.schedule is not None


def test_of_a_lora_that_stands_twice_the_first_counts(own: Home, tmp_path: Path) -> None:
    found = read(own, tmp_path, parameters="a <lora:fox:0.5> <lora:Fox:0.7> <lora:hat:1>" + LINE)
    assert [(row.adapter, row.weight) for row in found.draft.wanted] == [("fox", 0.5), ("hat", 1.0)]
    assert "asked for more than once, of which the first counts: Fox" in found.notes


@pytest.mark.parametrize(
    "prompt",
    [
        "<lo<lora:fox:1>ra:hat:1>",
        "<lo<lora:fox:1>ra:hat:much>",
        "<lora:" * 3000,
        "<lora:a:1>" * 1900,
        "x<lora:a:b>" * 1800,
        " ".join(f"<lora:a{n}:1>" for n in range(1000)),
        "<lora:" + "\\" * 10_000,
        "<" + " " * 19_000,
    ],
    ids=lambda prompt: prompt[:30],
)
def test_no_prompt_makes_a_picture_unreadable(own: Home, tmp_path: Path, prompt: str) -> None:
    with cheap():
        found = read(own, tmp_path, parameters=prompt + LINE)
    assert found.draft.values["seed"] == 7
    assert sift_tags(found.draft.values["prompt"])[1:] == ((), ()), "what is left of the prompt holds no tag"
    assert len(found.draft.wanted) + len(found.missing) <= 100
    assert sum(map(len, found.notes)) < 50_000


def test_no_tag_forms_of_what_was_around_another(own: Home, tmp_path: Path) -> None:
    found = read(own, tmp_path, parameters="<lo<lora:fox:1>ra:hat:1> a hill" + LINE)
    assert [row.adapter for row in found.draft.wanted] == ["fox"]
    assert found.missing == ()
    assert found.draft.values["prompt"] == "lora:hat:1> a hill"


def test_a_value_that_no_request_may_have_is_told_and_left_out(own: Home, tmp_path: Path) -> None:
    nodes = json.loads(json.dumps(COMFY))
    nodes["3"]["inputs"] |= {"steps": 5000, "sampler_name": "strange"}
    found = read(own, tmp_path, prompt=json.dumps(nodes))
    assert {"steps", "scheduler"}.isdisjoint(found.draft.values)
    assert found.draft.values["seed"] == 11
    assert any("steps=5000" in note for note in found.notes)
    assert any("strange" in note for note in found.notes)
    found = read(own, tmp_path, parameters="a\nSteps: 5000, Sampler: strange, Seed: 11")
    assert found.draft.values == {"prompt": "a", "seed": 11}
    assert [note.partition(" not taken over")[0] for note in found.notes[1:]] == ["Steps", "Sampler"]


@pytest.mark.parametrize("odd", [":500", ":0.5:lbw=mid_block@1e9", f":lbw={'b' * 2000}@1"])
def test_a_lora_that_no_request_may_have_is_told_and_left_out(own: Home, tmp_path: Path, odd: str) -> None:
    found = read(own, tmp_path, parameters=f"a <lora:fox{odd}> <lora:hat:0.5>{LINE}")
    assert [(row.adapter, row.weight) for row in found.draft.wanted] == [("hat", 0.5)]
    assert any(note.startswith("LoRA 'fox' is left out: ") and len(note) < 1000 for note in found.notes)


@pytest.mark.parametrize(
    "odd",
    [
        {"original_size": 5, "target_size": [1.5, 2], "crop": "a", "cut": 3, "reuse": "x"},
        {"steps": 0, "width": -8, "height": 1e30, "scheduler": 7, "strength": True, "seed": -2},
        {"text_mode": "odd", "clip_skip": 1000, "guidance_scale": "much", "guidance_rescale": [1, 2]},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_odd_values_of_a_picture_of_ours_are_told(own: Home, tmp_path: Path, odd: dict[str, object]) -> None:
    said = {
        "version": 1,
        "request": {"prompt": "a", "negative_prompt": "", **odd},
        "adapters": {},
        "setup": {"vae": None, "low_memory": False},
        "record": {"model": "random-sdxl", "model_hash": "h", "family": ["sdxl"], "model_source": 5},
    }
    found = read(own, tmp_path, **{"lora-studio": json.dumps(said)})
    assert found.draft.values == {"prompt": "a", "negative_prompt": ""}
    assert all(any(note.startswith(name) for note in found.notes) for name in odd)
    assert found.model == "random-sdxl"


def test_a_method_that_names_a_lora_names_it_as_it_is_called_here(
    own: Home, loras: Path, tmp_path: Path
) -> None:
    digest = short_hash(loras / "fox.safetensors")
    (loras / "fox.safetensors").rename(loras / "vulpes.safetensors")
    line = f'{LINE}, Composition: "blora:content=FOX,style=hat", Lora hashes: "fox: {digest}"'
    file = tmp_path / "picture.png"
    read(own, tmp_path, parameters="a <lora:fox:1> <lora:hat:1>" + line)
    found = restore(file, own)  # every file may be read
    assert [row.adapter for row in found.draft.wanted] == ["vulpes", "hat"]
    assert found.draft.values["composer"] == BLora(content="vulpes", style="hat")
    assert found.notes[1:] == ("LoRA 'fox' was found by its hash: it is called 'vulpes' here",)


def test_of_two_names_for_one_file_here_the_first_is_kept_and_the_other_named(
    own: Home, loras: Path, tmp_path: Path
) -> None:
    digest = short_hash(loras / "fox.safetensors")
    line = f'{LINE}, Lora hashes: "fox: {digest}, old fox: {digest}"'
    file = tmp_path / "picture.png"
    read(own, tmp_path, parameters="a <lora:fox:0.4> <lora:old fox:0.9> <lora:hat:1>" + line)
    found = restore(file, own)
    assert [(row.adapter, row.weight) for row in found.draft.wanted] == [("fox", 0.4), ("hat", 1.0)]
    assert "LoRA 'old fox' is left out: it is 'fox' here, which is in the mix already" in found.notes
    assert found.missing == ()


def of_ours(**changed: object) -> str:
    said: dict[str, object] = {
        "version": 1,
        "request": {"prompt": "a"},
        "adapters": {},
        "setup": {"vae": None, "low_memory": False},
        "record": {"model": "random-sdxl", "model_hash": "h", "family": "sdxl", "model_source": ""},
    }
    return json.dumps(said | changed)


def test_the_setup_of_a_picture_comes_back(own: Home, tmp_path: Path) -> None:
    text = of_ours(setup={"vae": "soft", "low_memory": True})
    found = read(own, tmp_path, **{"lora-studio": text})
    assert (found.said.setup.vae, found.said.setup.low_memory) == ("soft", True)
    assert found.vae is None
    assert [(one.kind, one.name) for one in found.missing] == [("VAE", "soft")]
    assert not read(own, tmp_path, **{"lora-studio": of_ours()}).said.setup.low_memory


@pytest.mark.parametrize(
    ("model", "source", "name", "hub"),
    [
        ("ghost", "someone/ghost", "", "someone/ghost"),  # the hub has it
        ("random-sdxl", "someone/random-sdxl", "random-sdxl", ""),  # it is here
        ("ghost", "random-sdxl", "random-sdxl", ""),  # it is here by its second name
        ("ghost", "", "", ""),
        ("ghost", "{path}", "", ""),  # no path of this computer is told
    ],
)
def test_a_model_from_the_hub_is_named_where_it_is_not_here(
    own: Home, tmp_path: Path, model: str, source: str, name: str, hub: str
) -> None:
    record = {
        "model": model,
        "model_hash": "h",
        "family": "sdxl",
        "model_source": source.format(path=tmp_path),
    }
    found = read(own, tmp_path, **{"lora-studio": of_ours(record=record)})
    assert (found.model, found.hub) == (name, hub)
    assert [one.name for one in found.missing] == ([] if name else [model])


def test_a_picture_that_began_with_another_says_so(own: Home, tmp_path: Path) -> None:
    told = "it was made from another picture, which is not stored in it: choose that one again"
    request = {"prompt": "a", "strength": 0.5, "init_image": {"sha256": "ab" * 32, "size": [8, 8]}}
    found = read(own, tmp_path, **{"lora-studio": of_ours(request=request)})
    assert found.notes == (told,)
    assert found.said.init_image == request["init_image"]
    assert found.draft.values["strength"] == 0.5
    assert told in read(own, tmp_path, parameters=f"a{LINE}, Denoising strength: 0.5").notes
    for text in (f"a{LINE}", f"a{LINE}, Denoising strength: 0.5, Hires upscale: 2"):
        assert told not in read(own, tmp_path, parameters=text).notes


@pytest.mark.parametrize("texts", [{}, {"prompt": "{"}, {"prompt": "[]"}, {"workflow": "{}"}])
def test_a_picture_that_says_nothing_is_refused(own: Home, tmp_path: Path, texts: dict[str, str]) -> None:
    with pytest.raises(RequestError):
        read(own, tmp_path, **texts)


def test_what_is_no_picture_is_refused(own: Home, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_text("no picture")
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        restore(file, own, Library(lambda: own))


def node(kind: str, **inputs: object) -> dict[str, object]:
    return {"class_type": kind, "inputs": inputs}


DEEP = {str(n): node("X", model=[str(n + 1), 0], positive=[str(n + 1), 0]) for n in range(3000)}
MANY = {
    str(n): node("KSampler", sampler_name="a", steps=1, cfg=1, positive=[str(n - 1), 0]) for n in range(3000)
}
WIDE = {
    "s": node("WanVideoSampler", positive=["0", 0]),
    **{str(n): node("X", text="t", next=[str(n + 1), 0]) for n in range(4000)},
}


@pytest.mark.parametrize(
    "texts",
    [
        {
            "prompt": json.dumps(
                {"0": node("KSampler", sampler_name="a", steps=1, cfg=1, positive=["1", 0])} | DEEP
            )
        },
        {"prompt": json.dumps(MANY)},
        {"prompt": json.dumps(WIDE)},
        {"prompt": "[" * 100_000},
        {"prompt": json.dumps(COMFY), "workflow": "[" * 100_000},
        {"prompt": json.dumps(COMFY), "workflow": json.dumps({"links": [[1, 2, 3, 4, 5, [6]]] * 1000})},
        {
            "prompt": json.dumps(COMFY),
            "workflow": json.dumps({"links": [[0, n, 0, n + 1, 0, "M"] for n in range(90_000)]}),
        },
        {"prompt": json.dumps({"3": node("KSampler", sampler_name=["a"], steps="9" * 5000, cfg=10**400)})},
        {"prompt": json.dumps({str(n): node("LoraLoader", lora_name=f"a{n}") for n in range(2000)} | COMFY)},
        {"parameters": "{" + "Hashes:{" * 50_000},
        {"Dream": '"a"' + " " * 100_000},
        {"Dream": '"' + "[" * 100_000 + '"'},
        {"Comment": json.dumps({"sampler": 5}), "Description": "a", "Source": "a" + " " * 100_000},
        {"invokeai_metadata": json.dumps(INVOKE | {"loras": 5})},
        {
            "invokeai_metadata": json.dumps(
                INVOKE | {"seed": 10**400, "steps": "1e999", "positive_prompt": ["a"]}
            )
        },
        {"invokeai_metadata": json.dumps(INVOKE | {"positive_prompt": "\ud800"})},
        {"invokeai_metadata": json.dumps(INVOKE | {"positive_prompt": "a" * 50_000})},
        {"invokeai_metadata": "[" * 100_000},
        {"sd-metadata": json.dumps({"image": {"prompt": "a" + " " * 100_000 + "b", "steps": 9}})},
        {"Software": "NovelAI", "Comment": json.dumps({"prompt": "1" * 100_000, "uc": "", "steps": 9})},
        {"parameters": f"{A1111}, AddNet Enabled: True, AddNet Model 1: a{' ' * 100_000}b"},
        {"invokeai_metadata": "5"},
    ],
    ids=lambda texts: " ".join(text[:40] for text in texts.values()),
)
def test_what_a_hostile_picture_says_is_read_or_refused_in_good_time(
    own: Home, tmp_path: Path, texts: dict[str, str]
) -> None:
    with cheap(), suppress(RequestError):
        found = read(own, tmp_path, **texts)
        assert len(found.draft.wanted) <= 100
        json.dumps(plain_draft(found.draft), allow_nan=False).encode()


@pytest.fixture
def stated(loras: Path) -> Path:
    """A LoRA of a size at which A1111's first hash is of something, whose header states no hash."""
    import torch
    from safetensors.torch import save_file

    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.ones(8000, 64), f"{key}.lora_up.weight": torch.ones(32, 8000)}
    save_file(tensors, loras / "new.safetensors", metadata={"ss_output_name": "once"})
    return loras / "new.safetensors"


def hashes(file: Path) -> dict[str, str]:
    import hashlib

    data = file.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    whole, after = hashlib.sha256(data).hexdigest(), hashlib.sha256(body).hexdigest()
    return {
        "SHA256": whole,
        "AutoV2": whole[:10].upper(),
        "AutoV3": after[:12],
        "SwarmUI's": f"0x{after}",
        "AutoV1": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }


@pytest.mark.parametrize("kind", ["SHA256", "AutoV2", "AutoV3", "SwarmUI's", "AutoV1"])
@pytest.mark.parametrize("library", [False, True], ids=["command line", "web"])
def test_a_renamed_lora_is_found_by_every_kind_of_hash(
    own: Home, stated: Path, tmp_path: Path, kind: str, library: bool
) -> None:
    line = f'{LINE}, Lora hashes: "old: {hashes(stated)[kind]}"'
    file = tmp_path / "picture.png"
    read(own, tmp_path, parameters=f"a <lora:old:0.5>{line}")
    found = restore(file, own, Library(lambda: own) if library else None)
    assert [(row.adapter, row.weight) for row in found.draft.wanted] == [("new", 0.5)]
    assert "LoRA 'old' was found by its hash: it is called 'new' here" in found.notes
    assert found.missing == ()


@pytest.mark.parametrize("ending", ["safetensors", "sft", "ckpt", "PT", "bin"])
def test_a_model_is_found_whatever_its_files_ending_was(own: Home, tmp_path: Path, ending: str) -> None:
    found = read(own, tmp_path, prompt=json.dumps(COMFY).replace("sdxl.safetensors", f"sdxl.{ending}"))
    assert (found.model, [one for one in found.missing if one.kind == "model"]) == ("random-sdxl", [])


@pytest.mark.parametrize("library", [False, True], ids=["command line", "web"])
def test_a_hash_that_a_header_states_in_modelspecs_form_is_known(
    own: Home, loras: Path, tmp_path: Path, library: bool
) -> None:
    import torch
    from safetensors.torch import save_file

    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.ones(2, 64), f"{key}.lora_up.weight": torch.ones(32, 2)}
    save_file(tensors, loras / "new.safetensors", metadata={"modelspec.hash_sha256": f"0x{'AB' * 32}"})
    read(own, tmp_path, parameters=f'a <lora:old:0.5>{LINE}, Lora hashes: "old: {"ab" * 6}"')
    found = restore(tmp_path / "picture.png", own, Library(lambda: own) if library else None)
    assert [row.adapter for row in found.draft.wanted] == ["new"]


def test_another_line_of_settings_is_cut_out_of_a_prompt_and_told(own: Home, tmp_path: Path) -> None:
    text = f"a fox\nNegative prompt: blurry\nSteps: 3, Sampler: DDIM, Seed: 1{LINE}"
    found = read(own, tmp_path, parameters=text)
    assert (found.draft.values["steps"], found.draft.values["seed"]) == (20, 7)
    assert found.draft.values["negative_prompt"] == "blurry"
    assert any("other settings: Steps: 3" in note for note in found.notes)


def test_a_lora_that_is_here_with_another_content_is_told(own: Home, tmp_path: Path) -> None:
    found = read(own, tmp_path, parameters=f'a <lora:fox:0.5>{LINE}, Lora hashes: "fox: 0011223344"')
    assert [row.adapter for row in found.draft.wanted] == ["fox"]
    assert any(
        "LoRA 'fox' is another file than the one this picture was made with" in note for note in found.notes
    )


@pytest.mark.parametrize("hashed", [False, True], ids=["without hash", "by hash"])
@pytest.mark.parametrize("library", [False, True], ids=["command line", "web"])
def test_of_two_identical_copies_one_is_taken_and_told(
    own: Home, loras: Path, tmp_path: Path, hashed: bool, library: bool
) -> None:
    for folder in ("a", "b"):
        (loras / folder).mkdir()
        (loras / folder / "twin.safetensors").write_bytes((loras / "fox.safetensors").read_bytes())
    line = f'{LINE}, Lora hashes: "twin: {short_hash(loras / "fox.safetensors")}"' if hashed else LINE
    read(own, tmp_path, parameters=f"a <lora:twin:0.5>{line}")
    found = restore(tmp_path / "picture.png", own, Library(lambda: own) if library else None)
    assert [(row.adapter, row.weight) for row in found.draft.wanted] == [("a/twin", 0.5)]
    assert any("'twin'" in note and "a/twin" in note for note in found.notes)
    (loras / "b" / "twin.safetensors").write_bytes((loras / "hat.safetensors").read_bytes())
    read(own, tmp_path, parameters=f"a <lora:twin:0.5>{LINE}")
    found = restore(tmp_path / "picture.png", own, Library(lambda: own) if library else None)
    assert [(one.name, found.draft.wanted) for one in found.missing] == [("twin", ())]
    assert str(found.missing[0]) == "LoRA 'twin' could be any of a/twin, b/twin; choose one"
    read(own, tmp_path, parameters=f"a <lora:styles/hat:0.5>{LINE}")  # in another folder there
    found = restore(tmp_path / "picture.png", own, Library(lambda: own) if library else None)
    assert [row.adapter for row in found.draft.wanted] == ["hat"]


def test_a_strangers_picture_makes_the_studio_read_only_so_much(
    own: Home, stated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.library.known.MOST_READ", 1000)
    line = f'{LINE}, Lora hashes: "old: {hashes(stated)["AutoV2"]}"'
    found = read(own, tmp_path, parameters=f"a <lora:old:0.5>{line}")
    assert [one.name for one in found.missing] == ["old"]
    assert any(note.startswith("not all LoRAs here were compared with hash") for note in found.notes)
