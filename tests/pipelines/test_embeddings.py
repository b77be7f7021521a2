"""Embeddings: the vectors of a file stand in a text as its word's tokens would."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines import Request, StudioPipeline
from pipelines.embeddings import embedding_of
from pipelines.errors import AdapterError, AdapterFileError, AdapterFormatError, AdapterMismatchError
from pipelines.families.family import SD1, SDXL
from pipelines.text.embeddings import (
    MOST_VECTORS,
    Names,
    TextualInversion,
    mentions,
    names_in,
    unknown_in,
    words_beside,
)
from pipelines.text.encoder import TextAsk


def rows_of(pipe: StudioPipeline, words: str) -> dict[str, Tensor]:
    """Component -> the model's own vectors of these words' tokens."""
    return {
        encoder.name: encoder.model.get_input_embeddings().weight[
            encoder.tokenizer(words, add_special_tokens=False).input_ids
        ].detach().clone()
        for encoder in pipe.model.text._encoders
    }  # fmt: skip


KEYS = {
    "sd": ({"text_encoder": "emb_params"}, {"text_encoder": "string_to_param.*"}, {"text_encoder": "<fox>"}),
    "sdxl": (
        {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
        {"text_encoder": "text_encoders_0", "text_encoder_2": "text_encoders_1"},
    ),
}


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(kind: str, request: pytest.FixtureRequest) -> StudioPipeline:
    return StudioPipeline.from_pretrained(request.getfixturevalue(f"{kind}_folder"))


def latents(pipe: StudioPipeline, *prompts: str, **settings: Any) -> list[Tensor]:
    requests = [Request(prompt, seed=1, steps=2, **settings) for prompt in prompts]
    return pipe(requests, output_type="latent").images


def test_an_embedding_of_the_models_own_vectors_draws_their_words(
    pipe: StudioPipeline, kind: str, tmp_path: Path
) -> None:
    vectors = rows_of(pipe, "red fox")
    for number, names in enumerate(KEYS[kind]):
        save_file({key: vectors[own] for own, key in names.items()}, tmp_path / f"my-{number}.safetensors")
        assert pipe.load_textual_inversion(tmp_path / f"my-{number}.safetensors") == f"my-{number}"
    [plain] = latents(pipe, "a red fox in (red fox:1.2) snow")
    for number in range(len(KEYS[kind])):
        [own] = latents(pipe, f"a MY-{number} in (embedding:my-{number}:1.2) snow")
        assert torch.equal(own, plain), KEYS[kind][number]
    [changed] = latents(pipe, "a my-0, my-0 in snow", negative_prompt="my-0")
    assert not torch.equal(changed, plain)


def test_each_picture_of_a_batch_has_its_own(pipe: StudioPipeline, kind: str, tmp_path: Path) -> None:
    names = KEYS[kind][0]
    for word, words in (("first", "red"), ("second", "fox hat")):
        vectors = rows_of(pipe, words)
        save_file({key: vectors[own] for own, key in names.items()}, tmp_path / f"{word}.safetensors")
        pipe.load_textual_inversion(tmp_path / f"{word}.safetensors")
    prompts = ["a first", "a second", "a third", "[first:second:1] AND a hat"]
    for prompt, own in zip(prompts, latents(pipe, *prompts), strict=True):
        [alone] = latents(pipe, prompt)
        assert (own - alone).abs().max() < 5e-5 * alone.abs().max(), prompt


def test_the_model_is_as_it_was(pipe: StudioPipeline, kind: str, tmp_path: Path) -> None:
    vectors = rows_of(pipe, "red fox")
    before = {name: rows.clone() for name, rows in vectors.items()}
    save_file({key: -vectors[own] for own, key in KEYS[kind][0].items()}, tmp_path / "other.safetensors")
    pipe.load_textual_inversion(tmp_path / "other.safetensors")
    [plain] = latents(pipe, "a red fox")
    latents(pipe, "an other")
    assert all(torch.equal(rows, before[name]) for name, rows in rows_of(pipe, "red fox").items())
    assert torch.equal(latents(pipe, "a red fox")[0], plain)


def made(name: str, length: int, sha256: str = "") -> TextualInversion:
    return TextualInversion(name, sha256 or name, {"text_encoder": torch.zeros(length, 8)})


def test_no_embedding_is_divided_over_two_chunks(pipe: StudioPipeline) -> None:
    encoder = pipe.model.text._encoders[0]
    for length in (1, 10, 40, MOST_VECTORS):
        own = made("own", length)
        for before in range(60, 80):
            chunks = encoder.chunks("a " * before + "own b own", embeddings=(own,))
            for chunk in chunks:
                inside = [token for token in chunk.ids if token < 0]
                assert len(inside) % length == 0
            assert sum(token < 0 for chunk in chunks for token in chunk.ids) == 2 * length


def test_equal_texts_with_other_embeddings_are_other_texts() -> None:
    one, other = made("x", 1, "aa"), made("x", 1, "bb")
    assert TextAsk("x", embeddings=(one,)) != TextAsk("x", embeddings=(other,))
    assert TextAsk("x", embeddings=(one,)) == TextAsk("x", embeddings=(made("x", 1, "aa"),))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a fox", ["a fox"]),
        ("a fox-style, x", ["a ", "fox-style", ", x"]),
        ("FOX-STYLE embedding:fox-style.pt", ["fox-style", " ", "fox-style"]),
        ("my fox-style-2 unfox-style", ["my fox-style-2 unfox-style"]),
        ("style", ["style"]),
    ],
)
def test_a_word_is_found_where_it_stands_alone(text: str, found: list[str]) -> None:
    parts = mentions(text, [made("style x", 1), made("fox-style", 2)])
    assert [part if isinstance(part, str) else part.name for part in parts] == found


def test_the_longest_name_wins() -> None:
    assert names_in("a fox b and a fox", Names(["fox", "fox b"])) == ("fox b", "fox")


def test_an_embedding_that_is_asked_for_by_its_mark_and_is_not_there_is_named() -> None:
    text = "embedding:one, embedding:TWO.safetensors, embedding:sub/two. embedding: three (embedding:no/four.pt:1.2)"
    assert unknown_in(text, Names(["two"])) == ("one", "three", "no/four")
    assert unknown_in("my embedding: two", Names(["two"])) == ()


def test_the_words_beside_them_are_the_rest_of_a_text() -> None:
    text = "a embedding:sub/fox.pt in (FOX:1.2) snow"
    assert words_beside(text, Names(["fox"])).split() == ["a", "in", "(", ":1.2)", "snow"]
    assert words_beside("a fox", Names([])) == "a fox"


def test_thousands_of_names_cost_a_search_nothing() -> None:
    names = Names(["fox style", "ärger", *(f"word{number} of many" for number in range(20_000)), "!!!"])
    text = "a Fox Style, !!! (ÄRGER:1.2) " + "word words " * 500 + "word7 of many"
    began = time.process_time()
    for _ in range(10):
        assert names_in(text, names) == ("fox style", "ärger", "word7 of many")
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("tensors", "error", "says"),
    [
        ({"emb_params": torch.zeros(2, 9)}, AdapterMismatchError, "another family"),
        ({"clip_l": torch.zeros(2, 8), "clip_g": torch.zeros(2, 4)}, AdapterMismatchError, "8 and 4"),
        ({"emb_params": torch.zeros(MOST_VECTORS + 1, 8)}, AdapterFormatError, "1 to 75"),
        ({"emb_params": torch.zeros(0, 8)}, AdapterFormatError, "1 to 75"),
        (
            {"emb_params": torch.zeros(2, 8, dtype=torch.int32)},
            AdapterFormatError,
            "int32 numbers, and .* 1 to 75",
        ),
        ({"emb_params": torch.full((1, 8), torch.nan)}, AdapterFormatError, "not finite"),
        ({"lora_up": torch.zeros(8), "lora_down": torch.zeros(8)}, AdapterFormatError, "no layout"),
        ({}, AdapterFormatError, "no layout"),
        (
            {"emb_params": torch.zeros(1, 8), "clip_l_out": torch.zeros(1, 8)},
            AdapterFormatError,
            "clip_l_out",
        ),
    ],
)
def test_what_is_no_embedding_for_the_model_is_refused(
    tensors: Mapping[str, Tensor], error: type[AdapterError], says: str
) -> None:
    with pytest.raises(error, match=says):
        embedding_of("x.safetensors", "x", "", tensors, SD1, {"text_encoder": 8})


def test_the_two_encoders_of_one_embedding_get_as_many_vectors() -> None:
    tensors = {"clip_l": torch.zeros(2, 8), "clip_g": torch.zeros(3, 4)}
    with pytest.raises(AdapterFormatError, match=r"\[2, 3\]"):
        embedding_of("x.safetensors", "x", "", tensors, SDXL, {"text_encoder": 8, "text_encoder_2": 4})


def test_a_pickle_is_refused(pipe: StudioPipeline, tmp_path: Path) -> None:
    torch.save({"string_to_param": {}}, tmp_path / "x.pt")
    with pytest.raises(AdapterFileError, match="pickle"):
        pipe.load_textual_inversion(tmp_path / "x.pt")


def test_an_adapter_brings_its_own_for_its_pictures_alone(
    pipe: StudioPipeline, kind: str, request: pytest.FixtureRequest, make_lora: Any, tmp_path: Path
) -> None:
    vectors = rows_of(pipe, "red fox")
    file = make_lora(request.getfixturevalue(f"{kind}_folder"), "plain", seed=4)
    with safe_open(file, "pt") as plain:
        tensors = {key: plain.get_tensor(key) for key in plain.keys()}  # noqa: SIM118
    brought = {f"bundle_emb.Own-Word.{key}": vectors[own] for own, key in KEYS[kind][0].items()}
    odd = {"bundle_emb.odd.emb_params": torch.zeros(1, 3)}
    save_file(tensors | brought | odd, tmp_path / "bundle.safetensors")
    pipe.load_lora_weights(tmp_path / "bundle.safetensors")
    try:
        asked = [
            Request(prompt, adapters=adapters, seed=1, steps=2)
            for prompt, adapters in (
                ("a red fox", {"bundle": 0.5}),
                ("an embedding:own-word", {"bundle": 0.5}),
                ("an own-word", {}),
                ("odd", {"bundle": 0.5}),
            )
        ]
        words, own, without, strange = pipe(
            [replace(asked[0], prompt="an red fox"), *asked[1:]], output_type="latent"
        ).records
        images = pipe([replace(asked[0], prompt="an red fox"), *asked[1:3]], output_type="latent").images
    finally:
        pipe.unload_lora_weights("bundle")
    assert torch.equal(images[0], images[1])
    assert own.embeddings == {"Own-Word": own.adapters[0].sha256}
    assert words.embeddings == without.embeddings == strange.embeddings == {}
    assert any("'odd' is drawn as words" in note for note in strange.notes)
    assert not any("there is no embedding" in note for note in own.notes)


def test_a_record_tells_what_was_used_and_what_was_not(
    pipe: StudioPipeline, kind: str, tmp_path: Path
) -> None:
    embeddings = pipe.model.embeddings
    vectors = rows_of(pipe, "fox")
    save_file({key: vectors[own] for own, key in KEYS[kind][0].items()}, tmp_path / "listed.safetensors")
    save_file({"emb_params": torch.zeros(1, 3)}, tmp_path / "strange.safetensors")
    embeddings.listed = lambda: {file.stem: file for file in tmp_path.glob("*.safetensors")}
    embeddings._listed_at = float("-inf")
    try:
        request = Request("listed, strange and embedding:absent", seed=1, steps=2)
        [record] = pipe([request], output_type="latent").records
    finally:
        embeddings.listed = dict
        embeddings._listed_at = float("-inf")
    assert record.embeddings.keys() == {"listed"}
    notes = "\n".join(record.notes)
    assert "'strange' is drawn as words" in notes
    assert "no embedding 'absent'" in notes
