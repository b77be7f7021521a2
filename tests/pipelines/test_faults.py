"""One picture's fault is its own: whatever fails, in whatever stage, the pictures beside it come out as ever."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pipelines.session as session_module
from pipelines import Request, StudioPipeline, finishing, preparation
from pipelines.decoding import Decoder, Decoding
from pipelines.engine.residency.store import AdapterStore
from pipelines.errors import RenderError
from pipelines.events import Event, Failed, Finished
from pipelines.faults import out_of_memory, own_error
from pipelines.model import Model
from pipelines.session import Session
from pipelines.texts import Texts
from pipelines.trajectory import Trajectory

BAD = 666
"""The seed of the picture that something is wrong with."""


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    pipe.load_lora_weights(make_lora(sdxl_folder, "a", seed=1), adapter_name="a")
    return pipe


@pytest.fixture
def model(pipe: StudioPipeline) -> Iterator[Model]:
    yield pipe.model
    pipe.model.row_limit = None
    pipe.model.found_limits.clear()


def ask(seed: int, **settings: Any) -> Request:
    prompt = "a bad fox" if seed == BAD else "a fox"
    return Request(prompt, **({"seed": seed, "steps": 3, "scheduler": "Euler a"} | settings))


def drawn(model: Model, *requests: Request) -> tuple[dict[int, Any], dict[int, Failed]]:
    """(seed -> image, seed -> how it failed)"""
    session = Session(model, output_type="latent")
    seeds = {session.submit(request).id: request.seed for request in requests}
    events: list[Event] = list(session.drain())
    images = {seeds[event.id]: event.image for event in events if isinstance(event, Finished)}
    failed = {seeds[event.id]: event for event in events if isinstance(event, Failed)}
    assert session.idle
    return images, failed  # type: ignore[return-value]


class Fault(Exception):
    """Nobody foresaw it."""


def raising(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, bad: Callable[..., bool]) -> None:
    """owner.name raises Fault where `bad` of its arguments."""
    real = getattr(owner, name)

    def faulty(*args: Any, **settings: Any) -> Any:
        if bad(*args, **settings):
            raise Fault("nobody foresaw this")
        return real(*args, **settings)

    monkeypatch.setattr(owner, name, faulty)


def in_text_encoding(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(
        monkeypatch,
        model,
        "encode_text",
        lambda asks: any("bad" in (ask.text or "") for ask in asks),
    )


def in_asking_for_texts(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(monkeypatch, Texts, "asks", lambda self, request, plans: request.seed == BAD)


def in_holding_adapters(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(monkeypatch, AdapterStore, "hold", lambda self, names: "a" in tuple(names))


def in_opening(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(monkeypatch, preparation, "open_trajectory", lambda r, **_: r.seed == BAD)


def in_the_unet(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(
        monkeypatch,
        session_module,
        "evaluate",
        lambda model, rows: any(row.trajectory.request.seed == BAD and row.trajectory.calls for row in rows),
    )


def in_the_scheduler(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(monkeypatch, Trajectory, "advance", lambda self, _: self.request.seed == BAD and self.calls == 1)


def in_folding(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(
        monkeypatch,
        session_module,
        "fold",
        lambda plan, predictions, rescale: rescale > 0,
    )


def in_starting_to_decode(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    marked = mark_latents(monkeypatch)
    raising(monkeypatch, Decoder, "start", lambda self, latents: marked(latents))


def in_decoding(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    marked = mark_latents(monkeypatch)
    raising(monkeypatch, Decoding, "pictures", lambda self: any(marked(value) for value in self.values))


def in_making_the_record(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    raising(
        monkeypatch,
        finishing,
        "make_record",
        lambda request, *_: request.seed == BAD,
    )


def mark_latents(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], bool]:
    """The bad picture's last latents are all 42."""
    advance = Trajectory.advance

    def marking(self: Trajectory, prediction: Tensor) -> None:
        advance(self, prediction)
        if self.request.seed == BAD and self.done:
            self.latents = torch.full_like(self.latents, 42.0)

    monkeypatch.setattr(Trajectory, "advance", marking)
    return lambda latents: bool((latents == 42.0).flatten(1).all(dim=1).any())


STAGES = [
    in_asking_for_texts,
    in_text_encoding,
    in_holding_adapters,
    in_opening,
    in_the_unet,
    in_the_scheduler,
    in_folding,
    in_starting_to_decode,
    in_decoding,
    in_making_the_record,
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_a_fault_is_of_the_guilty_picture_alone(
    stage: Callable[..., None], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [ask(seed) for seed in (1, 2, 3)]
    expected, _ = drawn(model, *good)
    stage(monkeypatch, model)
    bad = ask(BAD, adapters={"a": 0.5}, guidance_rescale=0.5)
    images, failed = drawn(model, good[0], bad, *good[1:])
    assert list(failed) == [BAD]
    assert isinstance(failed[BAD].error, RenderError)
    assert "nobody foresaw this" in str(failed[BAD].error)
    assert "try it once more" in str(failed[BAD].error)
    assert sorted(images) == [1, 2, 3]
    for seed, image in images.items():
        assert float((image - expected[seed]).norm() / expected[seed].norm()) < 1e-4


def test_a_fault_while_texts_are_encoded_ahead_waits_for_its_own_picture(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.row_limit = 2
    in_text_encoding(monkeypatch, model)
    images, failed = drawn(model, ask(1), ask(2), ask(BAD), ask(3))
    assert sorted(images) == [1, 2, 3]
    assert list(failed) == [BAD]


def test_adapters_that_cannot_be_brought_ahead_harm_nobody(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.row_limit = 2
    raising(monkeypatch, AdapterStore, "prefetch", lambda self, names: True)
    images, failed = drawn(model, ask(1, adapters={"a": 1.0}), ask(2, adapters={"a": 1.0}))
    assert sorted(images) == [1, 2]
    assert not failed


def test_a_picture_that_failed_lets_go_of_what_it_held(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_unet(monkeypatch, model)
    session = Session(model, output_type="latent")
    session.submit(ask(BAD, adapters={"a": 1.0}))
    session.step()
    [job] = session._flying
    latents = weakref.ref(job.trajectory.latents)  # type: ignore[union-attr]
    del job
    [failed] = [event for event in session.step() if isinstance(event, Failed)]
    assert model.store.stats.held == 0
    gc.collect()
    assert latents() is None, "the error that is still here keeps the latents"
    assert isinstance(failed.error.__cause__, Fault)


def test_what_nobody_foresaw_is_logged_with_its_trace(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_unet(monkeypatch, model)
    drawn(model, ask(BAD))
    [record] = caplog.records
    assert "Traceback" in record.getMessage()
    assert "Fault: nobody foresaw this" in record.getMessage()


def in_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, preparation.Preparation, "open", lambda self, flights: len(flights) > 1)


def in_shared_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(
        monkeypatch,
        session_module,
        "evaluate",
        lambda model, rows: len({id(row.trajectory) for row in rows}) > 1,
    )


def in_decoding_together(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, Decoder, "start", lambda self, latents: len(latents) > 1)


def in_encoding_together(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, Texts, "encode", lambda self, asks: len(asks) > 1)


@pytest.mark.parametrize(
    "stage",
    [in_joining, in_shared_calls, in_decoding_together, in_encoding_together],
    ids=lambda stage: stage.__name__,
)
def test_a_fault_of_what_pictures_share_fails_none_and_is_logged(
    stage: Callable[..., None],
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage(monkeypatch)
    images, failed = drawn(model, ask(1), ask(2))
    assert (sorted(images), failed) == ([1, 2], {})
    assert caplog.records
    for record in caplog.records:
        assert "several pictures together" in record.getMessage()
        assert "Fault: nobody foresaw this" in record.getMessage()


def test_an_interruption_is_no_fault(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.session.evaluate", interrupted)
    session = Session(model)
    session.submit(ask(1))
    with pytest.raises(KeyboardInterrupt):
        session.step()


CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "274877906944 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(CPU_ALLOCATOR)],
    ids=["cuda", "python", "cpu"],
)
def test_memory_that_runs_out_is_known_on_every_device(
    error: Exception, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert out_of_memory(error)
    forward = model.unet.forward

    def small(sample: Tensor, *args: object, **settings: object) -> object:
        if sample.shape[0] > 2 or sample.shape[-1] > 16:
            raise error
        return forward(sample, *args, **settings)

    monkeypatch.setattr(model.unet, "forward", small)
    images, failed = drawn(model, ask(1), ask(2), ask(BAD, width=64))
    assert sorted(images) == [1, 2]
    assert "memory does not hold even one row" in str(failed[BAD].error)
    assert "smaller" in str(failed[BAD].error)


def test_other_errors_of_torch_are_not_taken_for_memory() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))
    assert "memory ran out" in str(own_error(MemoryError(), "a step failed"))
