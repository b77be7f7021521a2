"""Latents into pictures: as diffusers does it, in bounded memory, and beside the rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from pipelines import Request, StudioPipeline
from pipelines.decoding import Decoder, Decoding, OutputType, tiles
from pipelines.errors import RenderError
from pipelines.events import Cancelled, Failed, Finished, Started
from pipelines.finishing import MOST_DECODINGS
from pipelines.model import Model
from pipelines.session import Session


@pytest.fixture(scope="module")
def model(sdxl_folder: Path) -> Model:
    return StudioPipeline.from_pretrained(sdxl_folder).model


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 4, 16, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def memory(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A device that holds 144 cells of latents in one call; the (rows, cells of a side) of every call."""
    calls: list[tuple[int, int]] = []
    decode = model.vae.decoder.forward

    def small(sample: Tensor, *args: object) -> Tensor:
        if sample.shape[0] * sample.shape[-1] * sample.shape[-2] > 144:
            raise torch.OutOfMemoryError("out of memory")
        calls.append((sample.shape[0], max(sample.shape[-2:])))
        result: Tensor = decode(sample, *args)
        return result

    monkeypatch.setattr(model.vae.decoder, "forward", small)
    return calls


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_pictures_are_those_of_diffusers(model: Model, latents: Tensor, output_type: OutputType) -> None:
    found = Decoder(model, output_type).start(latents).pictures()
    with torch.no_grad():
        pixels = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    expected = VaeImageProcessor().postprocess(pixels, output_type)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert type(one) is type(other)


def test_latents_come_back_as_they_are(model: Model, latents: Tensor) -> None:
    latents[1, 0, 0, 0] = torch.nan
    first, second, third = Decoder(model, "latent").start(latents).pictures()
    assert second is None
    assert torch.equal(torch.stack([first, third]), latents[[0, 2]])  # type: ignore[list-item]


def test_a_picture_that_is_not_finite_is_none(model: Model, latents: Tensor) -> None:
    latents[1, 0, 0, 0] = torch.inf
    pictures = Decoder(model).start(latents).pictures()
    assert [picture is None for picture in pictures] == [False, True, False]


def test_where_memory_runs_out_a_picture_is_decoded_tile_by_tile(
    model: Model, latents: Tensor, memory: list[tuple[int, int]]
) -> None:
    decoding = Decoder(model, "pt").start(latents)
    assert decoding.tiled
    pictures = decoding.pictures()
    assert {rows for rows, _ in memory} == {1}
    assert max(side for _, side in memory) == 8
    assert not model.vae.use_tiling  # and only then
    with tiles(model.vae, 8), torch.no_grad():
        expected = torch.cat(
            [model.vae.decode(one / model.vae.config.scaling_factor).sample for one in latents.split(1)]
        )
    for one, other in zip(pictures, (expected / 2 + 0.5).clamp(0, 1), strict=True):
        assert torch.allclose(one, other, atol=1e-5)  # type: ignore[arg-type]


def test_the_record_says_that_it_was_tiled(model: Model, memory: list[tuple[int, int]]) -> None:
    session = Session(model)
    session.submit(Request("a", seed=1, steps=1, width=32, height=32))
    [finished] = [event for event in session.drain() if isinstance(event, Finished)]
    assert ["tile by tile" in note for note in finished.record.notes] == [True]


def test_memory_too_small_for_a_tile_fails_the_picture(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model.vae.decoder, "forward", no_device)
    session = Session(model)
    id = session.submit(Request("a", seed=1, steps=1, width=32, height=32)).id
    [failed] = [event for event in session.drain() if isinstance(event, Failed)]
    assert failed.id == id
    assert isinstance(failed.error, RenderError)


class Slow:
    """Stands for a CUDA event: it has passed when the test says so, or when somebody waits for it."""

    def __init__(self) -> None:
        self.passed = self.waited = False

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        self.passed = self.waited = True


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Slow]:
    """Decodes take their time, as on a GPU; their events."""
    found: list[Slow] = []
    start = Decoder.start

    def slowly(self: Decoder, latents: Tensor) -> Decoding:
        decoding = start(self, latents)
        found.append(Slow())
        decoding.event = found[-1]  # type: ignore[assignment]
        return decoding

    monkeypatch.setattr(Decoder, "start", slowly)
    return found


def ask(seed: int, steps: int = 2) -> Request:
    return Request("a", seed=seed, steps=steps, width=32, height=32)


def test_rounds_do_not_wait_for_a_decode(model: Model, events: list[Slow]) -> None:
    session = Session(model)
    short, long = session.submit(ask(1, 1)).id, session.submit(ask(2, 5)).id
    found = [event for _ in range(3) for event in session.step()]
    assert not any(isinstance(event, Finished) for event in found)
    assert not events[0].waited
    events[0].passed = True
    assert [event.id for event in session.step() if isinstance(event, Finished)] == [short]
    last = list(session.drain())
    assert events[1].waited  # nothing else was left to do
    assert [event.id for event in last if isinstance(event, Finished)] == [long]
    assert session.idle


def test_a_picture_is_cancelled_while_it_is_decoded(model: Model, events: list[Slow]) -> None:
    session = Session(model)
    ids = [session.submit(ask(1, 1)).id, session.submit(ask(2, 1)).id, session.submit(ask(3, 3)).id]
    session.step()
    assert session.cancel(ids[0])
    assert not session.cancel(ids[0])
    found = list(session.drain())
    assert [event.id for event in found if isinstance(event, Cancelled)] == ids[:1]
    assert [event.id for event in found if isinstance(event, Finished)] == ids[1:]
    assert session.idle


def test_few_decodes_are_under_way_at_a_time(model: Model, events: list[Slow]) -> None:
    session = Session(model)
    session.submit(ask(99, steps=12))
    for seed in range(MOST_DECODINGS + 2):
        session.submit(ask(seed, steps=1))
        session.step()
    assert [event.waited for event in events] == [True] * 2 + [False] * MOST_DECODINGS


def test_a_decode_that_fails_tells_when_it_is_gathered(
    model: Model, events: list[Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "_decode", _fail)
    session = Session(model)
    id = session.submit(ask(1, 1)).id
    found = list(session.drain())
    assert [event.id for event in found if isinstance(event, Failed)] == [id]
    assert any(isinstance(event, Started) for event in found)


def _fail(self: Decoder, latents: Tensor, decoding: Decoding) -> None:
    raise RenderError("too large")


def test_a_preview_is_decoded_at_once(model: Model, events: list[Slow]) -> None:
    assert isinstance(Decoder(model).start(torch.zeros(1, 4, 8, 8)).pictures()[0], Image.Image)
    assert events[0].waited
