"""B-LoRA in the engine: whole files confined by the method equal split files merged; refusals at admission."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from composers import BLora, Composer, Merge, Use
from pipelines import Request, StudioPipeline
from pipelines.blora.layouts import model_outline
from pipelines.blora.splitting import split_file
from pipelines.errors import RequestError
from pipelines.home import Home


@pytest.fixture(scope="module")
def files(sdxl_folder: Path, make_lora: Callable[..., Path]) -> dict[str, Path]:
    return {"cat": make_lora(sdxl_folder, "cat", seed=1), "ink": make_lora(sdxl_folder, "ink", seed=2)}


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path, files: dict[str, Path]) -> Iterator[StudioPipeline]:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    for name, file in files.items():
        pipe.load_lora_weights(file, name)
    yield pipe
    pipe.unload_lora_weights()


def latents(pipe: StudioPipeline, composer: Composer, *uses: Use) -> torch.Tensor:
    request = Request(
        "a fox",
        adapters=uses,
        composer=composer,
        seed=5,
        steps=2,
        guidance_scale=3.0,
        width=64,
        height=64,
    )
    image = pipe(request, output_type="latent").images[0]
    assert isinstance(image, torch.Tensor)
    return image


def test_the_method_equals_merging_split_files(
    pipe: StudioPipeline, files: dict[str, Path], sdxl_folder: Path, tmp_path: Path
) -> None:
    layers, blocks = model_outline(sdxl_folder, Home.resolve())
    split_file(files["cat"], {"content": tmp_path / "cat-content.safetensors"}, layers, blocks)
    split_file(files["ink"], {"style": tmp_path / "ink-style.safetensors"}, layers, blocks)
    for name in ("cat-content", "ink-style"):
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", name)
    mixed = latents(pipe, BLora(content="cat", style="ink"), Use("cat", 0.9), Use("ink", 0.7))
    merged = latents(pipe, Merge(), Use("cat-content", 0.9), Use("ink-style", 0.7))
    assert torch.allclose(mixed, merged, atol=1e-5)
    turned = latents(pipe, BLora(content="ink", style="cat"), Use("cat", 0.9), Use("ink", 0.7))
    assert not torch.allclose(mixed, turned, atol=1e-3)
    squared = latents(
        pipe,
        BLora(content="cat", style="ink", alpha_mode="square"),
        Use("cat", 0.9**0.5),
        Use("ink", 0.7**0.5),
    )
    assert torch.allclose(squared, mixed, atol=1e-5)


def test_blocks_are_the_models_own_once_admitted(pipe: StudioPipeline) -> None:
    request = Request("a", adapters={"INK": 0.7, "cat": 0.9}, composer=BLora(content="Cat"))
    resolved = request.resolved(pipe.model.facts)
    assert resolved.composer == BLora(content="cat", style="ink")
    assert {use.adapter: use.blocks for use in resolved.uses} == {
        "cat": (("up_blocks.0.attentions.0", 1.0),),
        "ink": (("up_blocks.0.attentions.1", 1.0),),
    }
    assert [use.text_weight for use in resolved.uses] == [0, 0]
    assert resolved.resolved(pipe.model.facts) == resolved
    for plan in resolved.plans():
        for lane in plan.lanes:
            assert lane.prompt.text_uses == ()
            assert {name for use in lane.uses for name, _ in use.blocks} == {
                *("up_blocks.0.attentions.0", "up_blocks.0.attentions.1")
            }


def test_the_record_tells_what_was_applied(pipe: StudioPipeline) -> None:
    request = Request("a", adapters={"cat": 0.9, "ink": 0.7}, composer=BLora(), steps=1, width=64, height=64)
    record = pipe(request).records[0]
    assert record.composer == "blora:content=cat,style=ink"
    assert [(use.text_weight, use.layers, use.blocks) for use in record.adapters] == [
        (0.0, 16, (("up_blocks.0.attentions.0", 1.0),)),
        (0.0, 16, (("up_blocks.0.attentions.1", 1.0),)),
    ]


def test_pinned_adapters_stay_whole(pipe: StudioPipeline) -> None:
    request = Request("a", adapters=[Use("ink", pinned=True), Use("cat")], composer=BLora())
    lane = request.resolved(pipe.model.facts).plans()[0].lanes[0]
    assert {use.adapter: bool(use.blocks) for use in lane.uses} == {"cat": True, "ink": False}


def test_an_adapter_without_the_blocks_is_refused(
    pipe: StudioPipeline, files: dict[str, Path], tmp_path: Path
) -> None:
    down = {key: tensor for key, tensor in load_file(files["cat"]).items() if "down_blocks.1." in key}
    save_file(down, tmp_path / "down.safetensors")
    pipe.load_lora_weights(tmp_path / "down.safetensors", "down")
    request = Request("a", adapters={"down": 1.0}, composer=BLora(style="down"))
    with pytest.raises(
        RequestError,
        match=r"nothing in the style blocks .*up_blocks\.0\.attentions\.1\); it has down_blocks\.1",
    ):
        pipe(request)
    pipe.unload_lora_weights("down")


def test_a_model_without_map_is_refused_and_a_card_gives_one(
    sd_folder: Path, make_lora: Callable[..., Path], tmp_path: Path
) -> None:
    request = Request("a", adapters={"fox": 1.0}, composer=BLora())
    fox = make_lora(sd_folder, "fox", seed=1)
    pipe = StudioPipeline.from_pretrained(sd_folder)
    pipe.load_lora_weights(fox, "fox")
    with pytest.raises(RequestError, match=r"no map of its content blocks.*SDXL.*studio\.json"):
        request.resolved(pipe.model.facts)
    folder = shutil.copytree(sd_folder, tmp_path / "carded")
    card = {"block_map": {"content": ["up_blocks.1"], "style": ["up_blocks.2", "up_blocks.3"]}}
    (folder / "studio.json").write_text(json.dumps(card))
    pipe = StudioPipeline.from_pretrained(folder)
    pipe.load_lora_weights(fox, "fox")
    assert request.resolved(pipe.model.facts).uses[0].blocks == (("up_blocks.1", 1.0),)
    (folder / "studio.json").write_text(json.dumps({"block_map": {"content": ["up_blocks.7"]}}))
    pipe = StudioPipeline.from_pretrained(folder)
    pipe.load_lora_weights(fox, "fox")
    with pytest.raises(RequestError, match=r"no block 'up_blocks\.7'"):
        request.resolved(pipe.model.facts)
