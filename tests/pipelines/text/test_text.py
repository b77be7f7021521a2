"""Text encoding on tiny random CLIPs: equal to diffusers, and each row with its own adapters."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from composers.plan import Use
from pipelines.errors import ModelError, RequestError, StudioError
from pipelines.families.family import SD1, SDXL, Family
from pipelines.text.encoder import ROWS_AT_ONCE, Embedding, NoLanes, TextAsk, TextEncoder, cut_tokens, weigh

from ...budget import cheap

COMMA = 9


def tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Letters, digits, punctuation, and two words of one token."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    merges = [("f", "o"), ("fo", "x</w>"), ("h", "a"), ("ha", "t</w>")]
    pieces = [
        *characters,
        *(f"{character}</w>" for character in characters),
        "fo",
        "fox</w>",
        "ha",
        "hat</w>",
    ]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def clip(cls: type[Any], width: int, **settings: Any) -> Any:
    tokens = len(tokenizer())
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=2,
        projection_dim=20,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return cls(config).eval()


@pytest.fixture(scope="module")
def sd1_parts() -> dict[str, Any]:
    model = clip(CLIPTextModel, 16)
    # diffusers 0.42 looks for the norm where older transformers kept it; as a submodule it would be its own
    model.__dict__["text_model"] = model
    return {"tokenizer": tokenizer(), "text_encoder": model}


@pytest.fixture(scope="module")
def sdxl_parts() -> dict[str, Any]:
    return {
        "tokenizer": tokenizer(),
        "tokenizer_2": tokenizer(pad="!"),
        "text_encoder": clip(CLIPTextModel, 16),
        "text_encoder_2": clip(CLIPTextModelWithProjection, 24, hidden_act="gelu"),
    }


def encoder_of(family: Family, parts: dict[str, Any], **settings: Any) -> TextEncoder:
    """From diffusers' components by their names."""
    tokenizers = {name: parts[name.replace("text_encoder", "tokenizer")] for name in family.text_encoders}
    return TextEncoder(family, tokenizers, parts, **settings)


@pytest.fixture(scope="module")
def sd1(sd1_parts: dict[str, Any]) -> TextEncoder:
    return encoder_of(SD1, sd1_parts)


@pytest.fixture(scope="module")
def sdxl(sdxl_parts: dict[str, Any]) -> TextEncoder:
    return encoder_of(SDXL, sdxl_parts, force_zeros_for_empty_prompt=True)


@pytest.fixture(scope="module")
def sd1_pipe(sd1_parts: dict[str, Any]) -> StableDiffusionPipeline:
    nothing = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(**sd1_parts, **nothing, requires_safety_checker=False)


@pytest.fixture(scope="module")
def sdxl_pipe(sdxl_parts: dict[str, Any]) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        **sdxl_parts, **dict.fromkeys(("vae", "unet", "scheduler")), add_watermarker=False
    )


def one(encoder: TextEncoder, text: str | None, **settings: Any) -> Embedding:
    return encoder.encode([TextAsk(text, **settings)])[0]


def same(left: Embedding, right: Embedding, tolerance: float = 2e-6) -> bool:
    pooled = left.pooled is right.pooled is None
    if left.pooled is not None and right.pooled is not None:
        pooled = torch.allclose(left.pooled, right.pooled, atol=tolerance, rtol=0)
    return pooled and torch.allclose(left.tokens, right.tokens, atol=tolerance, rtol=0)


class Recorder:
    """Stands for the engine: notes the rows, and really changes each row by its uses."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts
        self.calls: list[tuple[str, list[tuple[Use, ...]]]] = []

    @contextmanager
    def active(self, component: str, rows: Sequence[tuple[Use, ...]]) -> Iterator[None]:
        self.calls.append((component, list(rows)))
        strengths = torch.tensor([sum(use.weight * len(use.adapter) for use in uses) for uses in rows])
        model = self.parts[component]
        first = getattr(model, "text_model", model).encoder.layers[0].self_attn.out_proj

        def add(module: Any, inputs: Any, output: Tensor) -> Tensor:
            assert output.shape[0] == len(rows)
            wave = torch.sin(torch.arange(output.shape[-1], dtype=output.dtype))
            return output + strengths.to(output.dtype)[:, None, None] * wave

        hook = first.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()


PROMPTS = ["a fox", "", "A Fox, in a HAT!  2 !!", "fox's hat: 1+1=2", "a " * 75]


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("clip_skip", [None, 0, 1, 3])
def test_sd1_is_bit_equal_to_diffusers(
    sd1: TextEncoder, sd1_pipe: StableDiffusionPipeline, text: str, clip_skip: int | None
) -> None:
    positive, negative = sd1_pipe.encode_prompt(text, "cpu", 1, True, clip_skip=clip_skip)
    embedding = one(sd1, text, clip_skip=clip_skip)
    assert embedding.tokens.shape == (77, 16)
    assert torch.equal(embedding.tokens, positive[0])
    assert embedding.pooled is None
    assert torch.equal(one(sd1, None).tokens, negative[0])
    assert torch.equal(one(sd1, "").tokens, negative[0])


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("clip_skip", [None, 0, 1, 3])
def test_sdxl_is_bit_equal_to_diffusers(
    sdxl: TextEncoder, sdxl_pipe: StableDiffusionXLPipeline, text: str, clip_skip: int | None
) -> None:
    positive, _, pooled, _ = sdxl_pipe.encode_prompt(text, device="cpu", clip_skip=clip_skip)
    embedding = one(sdxl, text, clip_skip=clip_skip)
    assert embedding.tokens.shape == (77, 40)
    assert embedding.pooled is not None
    assert embedding.pooled.shape == (20,)
    assert torch.equal(embedding.tokens, positive[0])
    assert torch.equal(embedding.pooled, pooled[0])


def test_the_norm_is_found_where_transformers_keeps_it(sd1: TextEncoder) -> None:
    bare = {"tokenizer": tokenizer(), "text_encoder": clip(CLIPTextModel, 16)}
    assert torch.equal(
        one(encoder_of(SD1, bare), "a fox", clip_skip=1).tokens, one(sd1, "a fox", clip_skip=1).tokens
    )
    nested = {"tokenizer": tokenizer(), "text_encoder": clip(CLIPTextModelWithProjection, 16)}
    embedding = one(encoder_of(SD1, nested), "a fox", clip_skip=0)
    assert torch.equal(embedding.tokens, one(encoder_of(SD1, nested), "a fox").tokens)
    assert embedding.pooled is None


def test_escaped_brackets_are_the_characters(sd1: TextEncoder, sd1_pipe: StableDiffusionPipeline) -> None:
    positive, _ = sd1_pipe.encode_prompt("C++ fox:1 (2) [a]", "cpu", 1, False)
    assert torch.equal(one(sd1, r"C++ fox:1 \(2\) \[a\]").tokens, positive[0])


@pytest.mark.parametrize("force_zeros", [True, False])
@pytest.mark.parametrize("negative", [None, "", "a hat"])
def test_sdxl_negatives(
    sdxl_parts: dict[str, Any], sdxl_pipe: StableDiffusionXLPipeline, negative: str | None, force_zeros: bool
) -> None:
    sdxl_pipe.register_to_config(force_zeros_for_empty_prompt=force_zeros)
    _, tokens, _, pooled = sdxl_pipe.encode_prompt("a fox", device="cpu", negative_prompt=negative)
    encoder = encoder_of(SDXL, sdxl_parts, force_zeros_for_empty_prompt=force_zeros)
    embedding = one(encoder, negative)
    assert embedding.pooled is not None
    assert torch.equal(embedding.tokens, tokens[0])
    assert torch.equal(embedding.pooled, pooled[0])
    assert bool(embedding.tokens.any()) is not (force_zeros and negative is None)


def test_attention_mask_where_the_model_wants_one() -> None:
    parts = {"tokenizer": tokenizer(), "text_encoder": clip(CLIPTextModel, 16, use_attention_mask=True)}
    nothing = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(**parts, **nothing, requires_safety_checker=False)
    positive, _ = pipe.encode_prompt("a fox", "cpu", 1, False)
    assert torch.equal(one(encoder_of(SD1, parts), "a fox").tokens, positive[0])


def test_half_precision_is_kept(sdxl_parts: dict[str, Any]) -> None:
    parts = dict(sdxl_parts)
    parts["text_encoder"] = clip(CLIPTextModel, 16).to(torch.bfloat16)
    parts["text_encoder_2"] = clip(CLIPTextModelWithProjection, 24).to(torch.bfloat16)
    encoder = encoder_of(SDXL, parts, force_zeros_for_empty_prompt=True)
    for embedding in encoder.encode([TextAsk("a (fox:1.3)"), TextAsk(None)]):
        assert embedding.pooled is not None
        assert {embedding.tokens.dtype, embedding.pooled.dtype} == {torch.bfloat16}


def test_long_prompts_are_chunks_encoded_alone(sdxl: TextEncoder) -> None:
    first, second = "f " * 75, "a fox in a hat"
    whole = one(sdxl, first + second)
    assert whole.tokens.shape == (154, 40)
    assert same(Embedding(whole.tokens[:77], whole.pooled), one(sdxl, first))
    assert same(Embedding(whole.tokens[77:], one(sdxl, second).pooled), one(sdxl, second))


def test_break_starts_a_chunk(sdxl: TextEncoder) -> None:
    whole = one(sdxl, "a fox BREAK a hat")
    assert same(Embedding(whole.tokens[:77], whole.pooled), one(sdxl, "a fox"))
    assert torch.allclose(whole.tokens[77:], one(sdxl, "a hat").tokens, atol=2e-6)


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("", (0, 1)),
        ("a fox", (2, 1)),
        ("(a fox:1.2)", (2, 1)),
        ("f " * 75, (75, 1)),
        ("f " * 76, (76, 2)),
        ("f " * 150, (150, 2)),
        ("f BREAK a", (2, 2)),
        ("f BREAK", (1, 1)),
        ("BREAK f", (1, 2)),
        ("BREAK", (0, 1)),
        ("f BREAK BREAK a", (2, 3)),
        ("f " * 75 + "BREAK a", (76, 2)),
    ],
)
def test_token_counts(sdxl: TextEncoder, text: str, counted: tuple[int, int]) -> None:
    assert sdxl.count_tokens(text) == counted
    assert sdxl.chunks(TextAsk(text)) == counted[1]
    assert len(one(sdxl, text).tokens) == 77 * counted[1]


@pytest.mark.parametrize(
    ("commas", "length", "lengths"),
    [
        ([], 0, [0]),
        ([], 75, [75]),
        ([], 76, [75, 1]),
        ([60], 75, [75]),  # all fit
        ([60], 76, [61, 15]),
        ([55], 80, [56, 24]),  # 19 tokens after the comma move
        ([54], 80, [75, 5]),  # too far back
        ([56, 70], 80, [71, 9]),
        ([74], 80, [75, 5]),
        ([60, 75], 80, [75, 5]),  # the next token is itself a comma
        ([60, 135], 160, [61, 75, 24]),
        ([60, 130], 160, [61, 70, 29]),
    ],
)
def test_cuts_prefer_commas(commas: list[int], length: int, lengths: list[int]) -> None:
    tokens = [(COMMA if place in commas else place % 7, 1.0) for place in range(length)]
    pieces = cut_tokens(tokens, 75, COMMA)
    assert [len(piece) for piece in pieces] == lengths
    assert [pair for piece in pieces for pair in piece] == tokens


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("f " * 4801, "has 4801 tokens, 65 chunks of 77; at most 64 chunks are encoded"),
        ("\U0001f98a " * 10_000, "at most 64 chunks"),
        ("a BREAK " * 70, "more than 64 chunks"),
        ("a" * 1001, "1001 characters without a space"),
        ("\\(" * 1001, "1001 characters without a space"),
        ("(a:1)" * 1001, "1001 characters without a space"),  # words that only brackets divide become one
        ("a " * 50_000, "100000 characters, more than 20000"),
        ("a\ud800", "half a character"),
    ],
)
def test_what_is_too_long_is_refused_before_it_is_encoded(sd1: TextEncoder, text: str, said: str) -> None:
    with cheap(), pytest.raises(StudioError, match=said):
        sd1.count_tokens(text)
    with cheap(), pytest.raises(StudioError, match=said):
        sd1.level([TextAsk(text)])


def test_as_many_chunks_as_may_be_are_encoded_in_forwards_of_bounded_size(sdxl_parts: dict[str, Any]) -> None:
    lanes = Recorder(sdxl_parts)
    encoder = encoder_of(SDXL, sdxl_parts, lanes=lanes)
    chunks = [f"{one} " * 40 + f"{other} " * 35 for one in "abcdefgh" for other in "ijklmnopq"]
    asks = [TextAsk("".join(chunks[:64]), (Use("fox", 0.5),)), TextAsk("".join(chunks[8:]), clip_skip=1)]
    together = encoder.encode(asks)
    assert [len(rows) for _, rows in lanes.calls] == [ROWS_AT_ONCE, 64] * 2
    for ask, embedding in zip(asks, together, strict=True):
        assert same(embedding, encoder.encode([ask])[0])


def test_a_comma_moves_the_cut(sd1: TextEncoder) -> None:
    text = "f " * 60 + "," + "a " * 20
    assert torch.allclose(one(sd1, text).tokens[77:], one(sd1, "a " * 20).tokens, atol=2e-6)


def test_asks_of_one_picture_are_levelled(sdxl: TextEncoder) -> None:
    asks = sdxl.level([TextAsk("f " * 100), TextAsk("a hat"), TextAsk(None)])
    assert [ask.chunks for ask in asks] == [2, 2, 2]
    assert sdxl.level([]) == ()
    long, short, silent = sdxl.encode(asks)
    assert long.tokens.shape == short.tokens.shape == silent.tokens.shape == (154, 40)
    assert same(Embedding(short.tokens[:77], short.pooled), one(sdxl, "a hat"))
    assert torch.allclose(short.tokens[77:], one(sdxl, "").tokens, atol=2e-6)
    assert not silent.tokens.any()


def test_weighing_by_hand() -> None:
    states = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[1.0, 1.0], [5.0, 5.0]]])
    weights = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    # chunk 0: mean 2; weighted (1, 3), (6, 6) of mean 4: halved. chunk 1: untouched.
    expected = torch.tensor([[[0.5, 1.5], [3.0, 3.0]], [[1.0, 1.0], [5.0, 5.0]]])
    assert torch.equal(weigh(states, weights), expected)


def test_weighing_where_means_cancel_out_stays_within_the_weights() -> None:
    states = torch.tensor([[[1.0, 1.0], [-1.0, -1.001]]])
    weighed = weigh(states, torch.tensor([[1.0, 1.5]]))
    assert torch.allclose(weighed, torch.tensor([[[1.0, 1.0], [-1.5, -1.5015]]]) / 1.5)
    assert weigh(torch.zeros(1, 2, 2), torch.tensor([[1.0, 1.5]])).isfinite().all()
    assert weigh(states, torch.tensor([[1.0, 0.0]])).isfinite().all()


def test_weights_reach_their_tokens_in_each_encoder(sdxl: TextEncoder) -> None:
    plain, weighted = one(sdxl, "a fox, hat"), one(sdxl, "a (fox:1.4), [hat]")
    weights = torch.ones(1, 77)
    weights[0, 2], weights[0, 4] = 1.4, 1 / 1.1  # begin a fox , hat
    for part in (slice(0, 16), slice(16, 40)):
        expected = weigh(plain.tokens[None, :, part], weights)[0]
        assert torch.allclose(weighted.tokens[:, part], expected, atol=1e-6)
        assert not torch.allclose(weighted.tokens[:, part], plain.tokens[:, part], atol=1e-3)
    assert plain.pooled is not None
    assert weighted.pooled is not None
    assert torch.equal(plain.pooled, weighted.pooled)


def test_weights_of_one_are_no_weights(sd1: TextEncoder) -> None:
    assert torch.equal(one(sd1, "a (fox:1.0) hat").tokens, one(sd1, "a fox hat").tokens)


def test_a_batch_equals_singles(sdxl_parts: dict[str, Any]) -> None:
    lanes = Recorder(sdxl_parts)
    encoder = encoder_of(SDXL, sdxl_parts, force_zeros_for_empty_prompt=True, lanes=lanes)
    fox, hat = (Use("fox", 0.8),), (Use("hats", 0.5), Use("fox", 0.1))
    asks = [
        TextAsk("a fox", fox),
        TextAsk("a fox", hat),
        TextAsk("a fox"),
        TextAsk(None, fox),
        TextAsk("f " * 80 + "(hat:1.5)", hat),
        TextAsk("a fox", fox, clip_skip=1),
        TextAsk("a fox", fox),
        TextAsk("a (fox:1.2)", fox, chunks=2),
    ]
    batch = encoder.encode(asks)
    assert [component for component, _ in lanes.calls] == ["text_encoder", "text_encoder_2"]
    singles = [encoder.encode([ask])[0] for ask in asks]
    assert all(same(together, alone) for together, alone in zip(batch, singles, strict=True))
    assert not same(batch[0], batch[1], 1e-3)
    assert not same(batch[0], batch[2], 1e-3)
    assert not same(batch[0], batch[5], 1e-3)
    assert batch[0] is batch[6]
    backwards = encoder.encode(asks[::-1])[::-1]
    assert all(same(together, alone) for together, alone in zip(backwards, singles, strict=True))


def test_rows_are_distinct_chunks_with_their_own_adapters(
    sd1_parts: dict[str, Any], sd1: TextEncoder
) -> None:
    lanes = Recorder(sd1_parts)
    encoder = encoder_of(SD1, sd1_parts, lanes=lanes)
    fox, hat = (Use("fox", 0.8),), (Use("hat", 0.5),)
    asks = [
        TextAsk("a BREAK b", fox),
        TextAsk("a", hat),
        TextAsk("a", fox),  # the first ask's first row
        TextAsk("(a:1.3)", fox, clip_skip=1),  # again: weights and layers are applied afterwards
        TextAsk("b"),
        TextAsk("", chunks=2),  # one empty row, used twice
        TextAsk(None),  # and again
    ]
    encoder.encode(asks)
    assert lanes.calls == [("text_encoder", [fox, fox, hat, (), ()])]
    # a row without adapters is untouched by its neighbours, and nothing stays behind
    assert same(encoder.encode(asks)[4], one(sd1, "b"))
    assert same(one(encoder, "a"), one(sd1, "a"))


def test_silent_negatives_call_no_encoder(sdxl_parts: dict[str, Any]) -> None:
    lanes = Recorder(sdxl_parts)
    encoder = encoder_of(SDXL, sdxl_parts, force_zeros_for_empty_prompt=True, lanes=lanes)
    assert encoder.encode([]) == []
    assert one(encoder, None, chunks=3).tokens.shape == (231, 40)
    assert lanes.calls == []


def test_a_tokenizer_that_knows_no_length(sd1_parts: dict[str, Any], sd1: TextEncoder) -> None:
    bare = tokenizer()
    bare.model_max_length = int(1e30)
    encoder = encoder_of(SD1, {**sd1_parts, "tokenizer": bare})
    assert torch.equal(one(encoder, "f " * 80).tokens, one(sd1, "f " * 80).tokens)


def test_no_gradient_is_kept(sd1: TextEncoder) -> None:
    assert not one(sd1, "a (fox)").tokens.requires_grad


def test_adapters_without_an_engine_are_noticed() -> None:
    with pytest.raises(AssertionError, match="fox"):
        NoLanes().active("text_encoder", [(), (Use("fox"),)])


@pytest.mark.parametrize(("name", "most"), [("sd1", 4), ("sdxl", 3)])
def test_clip_skip_beyond_the_layers(name: str, most: int, request: pytest.FixtureRequest) -> None:
    encoder: TextEncoder = request.getfixturevalue(name)
    one(encoder, "a fox", clip_skip=most)
    for wrong in (most + 1, -2):
        with pytest.raises(RequestError, match=f"{wrong} layers cannot be skipped.*0 to {most}"):
            one(encoder, "a fox", clip_skip=wrong)


def test_missing_components_are_named(sdxl_parts: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="no tokenizer for its text_encoder_2"):
        encoder_of(SDXL, {**sdxl_parts, "tokenizer_2": None})
    with pytest.raises(ModelError, match="no text_encoder_2"):
        encoder_of(SDXL, {**sdxl_parts, "text_encoder_2": None})
