"""A session's texts: each distinct one encoded once, the next pictures' ahead of them, and no picture changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from composers.plan import Prompt, Use
from pipelines import Request, StudioPipeline
from pipelines.errors import PromptError
from pipelines.events import Event, Failed, Finished
from pipelines.model import Model
from pipelines.preparation import LOOK_AHEAD
from pipelines.session import Session
from pipelines.texts import Texts


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    pipe.load_lora_weights(make_lora(sdxl_folder, "a", seed=1), adapter_name="a")
    return pipe


@pytest.fixture
def model(pipe: StudioPipeline) -> Iterator[Model]:
    yield pipe.model
    pipe.model.row_limit = None


@pytest.fixture
def encoded(model: Model) -> Iterator[list[int]]:
    """The rows of every call of the first text encoder."""
    found: list[int] = []

    def count(module: object, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].shape[0])

    hook = model.checkpoint.text_encoders["text_encoder"].register_forward_pre_hook(count)
    yield found
    hook.remove()


def ask(prompt: str, seed: int = 1, **settings: object) -> Request:
    return Request(prompt, **({"seed": seed, "steps": 2, "negative_prompt": "bad"} | settings))  # type: ignore[arg-type]


def drained(model: Model, requests: list[Request]) -> tuple[list[int], list[Event]]:
    session = Session(model, output_type="latent")
    ids = [session.submit(request).id for request in requests]
    return ids, list(session.drain())


def test_a_text_of_many_pictures_is_encoded_once(model: Model, encoded: list[int]) -> None:
    model.row_limit = 4
    _, events = drained(model, [ask("a fox", seed) for seed in range(12)])
    assert sum(isinstance(event, Finished) for event in events) == 12
    assert encoded == [2]  # the prompt and the negative one


def test_texts_are_encoded_in_batches_ahead_of_their_pictures(model: Model, encoded: list[int]) -> None:
    model.row_limit = 2
    ahead = LOOK_AHEAD["cpu"]
    session = Session(model, output_type="latent")
    for place in range(3 * ahead):
        session.submit(ask(f"fox {place}", place))
    session.step()
    assert encoded == [2, ahead]
    list(session.drain())
    assert sum(encoded) == 3 * ahead + 1
    assert len(encoded) < ahead * 2  # not one by one


def test_what_was_encoded_ahead_draws_the_same_picture(model: Model) -> None:
    requests = [ask(f"fox {seed % 5}", seed, adapters={"a": 0.1 * (seed % 3)}) for seed in range(9)]
    model.row_limit = 4
    ids, events = drained(model, requests)
    found = {event.id: event.image for event in events if isinstance(event, Finished)}
    for id, request in zip(ids, requests, strict=True):
        [alone] = [event.image for event in drained(model, [request])[1] if isinstance(event, Finished)]
        assert isinstance(alone, Tensor)
        assert float((found[id] - alone).norm() / alone.norm()) < 1e-4  # type: ignore[operator]


def test_a_text_that_cannot_be_encoded_fails_alone_when_its_turn_comes(model: Model) -> None:
    model.row_limit = 2
    requests = [ask("a", 1), ask("b", 2), ask("c", 3, clip_skip=50), ask("d", 4)]
    ids, events = drained(model, requests)
    assert [event.id for event in events if isinstance(event, Failed)] == [ids[2]]
    assert [event.id for event in events if isinstance(event, Finished)] == [ids[0], ids[1], ids[3]]


def test_an_adapter_loaded_anew_under_its_name_is_encoded_anew(
    pipe: StudioPipeline, model: Model, sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    texts = Texts(model)
    request = ask("a fox", adapters={"a": 1.0}).resolved(model.facts)
    asks = texts.asks(request, request.plans())
    [before] = texts.encode([asks])
    assert texts.has(asks)
    pipe.unload_lora_weights("a")
    pipe.load_lora_weights(make_lora(sdxl_folder, "a", seed=7), adapter_name="a")
    assert not texts.has(asks)
    [after] = texts.encode([asks])
    assert not torch.equal(*(next(iter(spoken.embeddings.values())).tokens for spoken in (before, after)))
    pipe.unload_lora_weights("a")
    pipe.load_lora_weights(make_lora(sdxl_folder, "a", seed=1), adapter_name="a")


def test_an_adapter_that_goes_while_its_picture_waits_is_an_error_with_a_remedy(
    pipe: StudioPipeline, model: Model, sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    model.row_limit = 2
    session = Session(model, output_type="latent")
    good, bad = session.submit(ask("a", 1)).id, session.submit(ask("a", 2, adapters={"a": 1.0})).id
    events = session.step()
    pipe.unload_lora_weights("a")
    events += list(session.drain())
    pipe.load_lora_weights(make_lora(sdxl_folder, "a", seed=1), adapter_name="a")
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.id == bad
    assert "load it again" in str(failed.error)
    assert [event.id for event in events if isinstance(event, Finished)] == [good]


def test_the_record_says_whose_texts_shared_a_call(model: Model) -> None:
    model.row_limit = 2
    requests = [ask("a", 1), ask("a", 2), ask("b", 3), ask("c", 4)]
    ids, events = drained(model, requests)
    shared = {event.id: event.record.shared for event in events if isinstance(event, Finished)}
    assert [shared[id] for id in ids] == [False, False, True, True]


def test_what_is_kept_is_bounded(model: Model) -> None:
    requests = [ask(f"fox {place}").resolved(model.facts) for place in range(4)]
    pictures = [Texts(model).asks(request, request.plans()) for request in requests]
    one = Texts(model).encode(pictures[:1])[0]
    size = sum(
        text.tokens.nbytes + (0 if text.pooled is None else text.pooled.nbytes)
        for text in one.embeddings.values()
    )
    texts = Texts(model, kept_bytes=size)
    spoken = texts.encode(pictures)
    assert [len(own.embeddings) for own in spoken] == [2] * 4  # those asked for come back, kept or not
    assert [texts.has(asks) for asks in pictures] == [False, False, False, True]


def test_all_texts_of_a_picture_together_are_bounded(model: Model, encoded: list[int]) -> None:
    """Eleven adapters, each with its own two texts of 64 chunks, would be 1408 rows."""
    request = ask("a, " * 2300, adapters={"a": 1.0}).resolved(model.facts)
    plans = request.plans()
    [one] = {plan.lanes[0] for plan in plans}
    lanes = tuple(
        replace(one, prompt=Prompt(role, (Use("a", 0.1 * n),)))
        for n in range(1, 12)
        for role in ("positive", "negative")
    )
    with pytest.raises(PromptError, match=r"22 texts have .* chunks of tokens, more than 1024"):
        Texts(model).asks(request, [replace(plans[0], lanes=lanes)])
    assert encoded == []
