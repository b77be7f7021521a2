"""The block probe: an injection changes the block it is meant for and no other, and scores mean what they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pipelines import Request, StudioPipeline, assets
from pipelines.blocks import within
from pipelines.blora.probe import (
    PAIRS,
    Effect,
    Pair,
    ProbeSettings,
    attention_blocks,
    injected,
    levels,
    pairs_for,
    picture_count,
    probe,
    prompt_swap,
    propose,
)
from pipelines.blora.scoring import EdgesAndText, PictureStatistics, _own_tokens, pick_scorer
from pipelines.blora.sheet import probe_sheet
from pipelines.errors import RequestError, SetupError

A, B = "a fox in the snow", "a red car"
SMALL = ProbeSettings(seeds=(1, 2), steps=2, guidance_scale=3.0, width=64, height=64)


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path) -> StudioPipeline:
    return StudioPipeline.from_pretrained(sdxl_folder)


def latents(pipe: StudioPipeline, prompt: str) -> Tensor:
    request = Request(prompt, seed=1, steps=2, guidance_scale=3.0, width=64, height=64)
    image = pipe(request, output_type="latent").images[0]
    assert isinstance(image, Tensor)
    return image


@contextmanager
def overheard(unet: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What each cross-attention reads, call by call."""
    heard: dict[str, list[Tensor]] = {}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            heard.setdefault(name, []).append(kwargs["encoder_hidden_states"].clone())

        return hook

    with ExitStack() as stack:
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                stack.callback(module.register_forward_pre_hook(listen(name), with_kwargs=True).remove)
        yield heard


def test_the_blocks_that_read_the_prompt(pipe: StudioPipeline) -> None:
    blocks = attention_blocks(pipe.model.unet)
    assert blocks[0] == "down_blocks.1.attentions.0"
    assert blocks[4] == "mid_block.attentions.0"
    assert blocks[5:7] == ("up_blocks.0.attentions.0", "up_blocks.0.attentions.1")
    assert len(blocks) == 4 + 1 + 6
    assert levels(blocks) == ("down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1")


@pytest.mark.parametrize("block", ["up_blocks.0.attentions.1", "up_blocks.0", "mid_block.attentions.0"])
def test_an_injection_reaches_that_block_alone(pipe: StudioPipeline, block: str) -> None:
    unet = pipe.model.unet
    mine, other = (embedding.tokens for embedding in pipe.model.encode_text(_asks(pipe)))
    swap = prompt_swap(pipe.model, A, B)
    with injected(unet, block, swap), overheard(unet) as heard:
        latents(pipe, A)
    assert heard.keys() == {name for name, _ in unet.named_modules() if name.endswith("attn2")}
    for name, contexts in heard.items():
        for context in contexts:  # [positive, negative]
            expected = other if within(name, block) else mine
            assert torch.allclose(context[0], expected, atol=1e-5), name
            assert not torch.allclose(context[1], mine, atol=1e-2), "the negative prompt keeps its own"
            assert not torch.allclose(context[1], other, atol=1e-2)
    with overheard(unet) as after:
        latents(pipe, A)
    assert all(torch.allclose(c[0], mine, atol=1e-5) for contexts in after.values() for c in contexts)


def _asks(pipe: StudioPipeline) -> Any:
    from pipelines.text.encoder import TextAsk

    return pipe.model.text.level([TextAsk(A), TextAsk(B)])


def test_an_injection_changes_the_picture_and_leaves_no_trace(pipe: StudioPipeline) -> None:
    plain = latents(pipe, A)
    with injected(pipe.model.unet, "up_blocks.0", prompt_swap(pipe.model, A, B)):
        assert not torch.allclose(latents(pipe, A), plain, atol=1e-4)
        with pytest.raises(RequestError):
            pipe(Request(A, width=65))
    assert torch.equal(latents(pipe, A), plain)
    with injected(pipe.model.unet, "up_blocks.0", lambda context: context):
        assert torch.equal(latents(pipe, A), plain)


def test_long_prompts_are_refused(pipe: StudioPipeline) -> None:
    with pytest.raises(RequestError, match="75 tokens"):
        prompt_swap(pipe.model, "fox " * 100, "a car")


def test_a_probe_from_end_to_end(pipe: StudioPipeline) -> None:
    pairs = (Pair("content", A, B), Pair("style", A, f"{A}, ink drawing"))
    done: list[int] = []
    found = probe(pipe, pairs, PictureStatistics(), SMALL, progress=done.append)
    assert sum(done) == picture_count(pipe, pairs, SMALL) == 2 * 2 * (2 + 11 + 4)
    assert [effect.block for effect in found.effects][:2] == [
        *("down_blocks.1.attentions.0", "down_blocks.1.attentions.1")
    ]
    assert all(effect.content is not None and effect.style is not None for effect in found.effects)
    assert found.published
    assert len(found.rows) == 4
    assert probe_sheet(found, side=32).size[0] > 17 * 32


def test_sd1_is_probed_the_same_way(sd_folder: Path) -> None:
    pipe = StudioPipeline.from_pretrained(sd_folder)
    blocks = attention_blocks(pipe.model.unet)
    assert len(blocks) == 6 + 1 + 9
    assert levels(blocks)[-1] == "up_blocks.3"
    pairs = (Pair("content", A, B), Pair("style", A, f"{A}, ink drawing"))
    few = ProbeSettings(seeds=(1,), steps=2, guidance_scale=1.0, width=32, height=32)
    found = probe(pipe, pairs, PictureStatistics(), few)
    assert not found.published
    assert len(found.effects) == 16 + 6


def test_statistics_know_edges_from_colours() -> None:
    scorer = PictureStatistics()
    left, right = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    left[..., 10:20, 10:20] = 1
    right[..., 40:50, 40:50] = 1
    red = torch.tensor([1.0, 0.2, 0.2]).view(1, 3, 1, 1)
    for moved, expected in ((left, 0.0), (right, 1.0), (right * red, 1.0)):
        assert scorer.positions(moved, left, right, ("", ""), "content") == [
            pytest.approx(expected, abs=0.02)
        ]
    for moved, expected in ((left, 0.0), (left * red, 1.0), (right * red, 1.0)):
        assert scorer.positions(moved, left, left * red, ("", ""), "style") == [
            pytest.approx(expected, abs=0.02)
        ]
    assert scorer.positions(left, left, left, ("", ""), "style") is None


def test_the_shipped_scorer_reads_the_shipped_models_words() -> None:
    """Its ids are the model's own, with zeros behind the end; it knows noir from colour."""
    tokenizer = CLIPTokenizer.from_pretrained(assets.root() / "models" / "tiny-sdxl" / "tokenizer")
    scorer = pick_scorer(None, embedded=True, tokenizer=tokenizer)
    assert isinstance(scorer, EdgesAndText)
    end = tokenizer.eos_token_id
    ids = _own_tokens(tokenizer, ["a fox", "a " * 60], 8, end)
    fox = tokenizer.convert_tokens_to_ids("fox</w>")
    assert ids[0, 2:].tolist() == [fox, end, 0, 0, 0, 0]
    assert ids[1, -1] == end
    gallery = Path(__file__).parents[3] / "assets" / "gallery" / "blora.png"
    preview = Image.open(gallery).convert("RGB").crop((4, 21, 132, 149))
    colour = torch.from_numpy(np.array(preview)).permute(2, 0, 1)[None].float() / 255
    noir = colour.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    texts = ("a bear in the garden", "a bear in the garden, noir style")
    assert scorer.positions((colour + noir) / 2, colour, noir, texts, "style") is not None


def effects(**moves: tuple[float, float]) -> list[Effect]:
    return [Effect(name.replace("_a", ".attentions."), *both) for name, both in moves.items()]


def test_the_proposal_takes_what_moves_one_kind_alone() -> None:
    clear = effects(down_a0=(0.05, 0.0), up_a0=(0.7, 0.1), up_a1=(0.2, 0.6), up_a2=(0.1, 0.1))
    assert propose(clear) == {"content": ("up.attentions.0",), "style": ("up.attentions.1",)}
    whole = [*clear, Effect("up", 0.75, 0.5)]
    assert propose(whole) == propose(clear), "a level that carries both is no answer"
    spread = effects(up_a0=(0.3, 0.0), up_a1=(0.3, 0.0), low_a0=(0.1, 0.4), low_a1=(0.1, 0.4))
    spread += [Effect("up", 0.9, 0.0), Effect("low", 0.1, 0.9)]
    assert propose(spread) == {"content": ("up",), "style": ("low",)}
    assert propose(effects(up_a0=(0.2, 0.1), up_a1=(0.1, 0.2))) == {}
    assert propose([Effect("up.attentions.0", 0.9, None)]) == {}


def test_prompts_come_from_the_models_own_words() -> None:
    assert pairs_for({}) == PAIRS
    words = {"character": ("fox", "cat", "dog", "owl"), "style": ("ink", "neon"), "background": ("snow",)}
    pairs = pairs_for({part: {word: () for word in own} for part, own in words.items()})
    assert pairs[0] == Pair("content", "a fox in the snow", "a dog in the snow")
    assert pairs[2] == Pair("style", "a fox in the snow", "a fox in the snow, neon style")


def test_a_scorer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="open_clip folder"):
        pick_scorer(tmp_path, embedded=False, tokenizer=[])
    assert isinstance(pick_scorer(None, embedded=False, tokenizer=[]), PictureStatistics)
