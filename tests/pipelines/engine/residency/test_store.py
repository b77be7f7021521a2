"""The adapter store: what is kept where, what it costs, and that no picture knows the difference."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from composers import Composite, Merge, Switch
from pipelines import Request, Session, StudioPipeline
from pipelines.adapters import Hadamard, LowRank, read_adapter, write_lora
from pipelines.adapters.pinned import ALIGNMENT, pack
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.residency.limits import Limits
from pipelines.engine.residency.store import AdapterStore
from pipelines.errors import AdapterError, AdapterFileError
from pipelines.events import Failed, Finished
from pipelines.model import Model

from ...lanes import relative

COUNT = 12
HOST, DEVICE = 1_000_000, 500_000
"""Bytes: of the dozen, about half and a quarter."""


@pytest.fixture
def files(sdxl_folder: Path, make_lora: Callable[..., Path]) -> dict[str, Path]:
    """A dozen adapters of mixed rank and reach; every third reaches the text encoders too."""
    return {
        f"a{number}": make_lora(
            sdxl_folder, f"a{number}", seed=number, rank=1 + number % 5, where="attn", text=number % 3 == 0
        )
        for number in range(COUNT)
    }


@pytest.fixture
def model(sdxl_folder: Path) -> Model:
    return Model(load_checkpoint(sdxl_folder))


def loaded(model: Model, files: dict[str, Path]) -> Model:
    for name, file in files.items():
        model.load_adapter(file, name)
    return model


def size(model: Model, name: str) -> int:
    return model.store.known[name].numbers * model.dtype.itemsize


# -- one block -------------------------------------------------------------------------------------------


def test_packing_changes_no_number(model: Model, files: dict[str, Path], tmp_path: Path) -> None:
    """LoRA and FLoRA in one file, in two dtypes: the views are the tensors, in the block and in a copy of it."""
    shapes = {name: target.shape for name, target in model.layers.components["unet"].items()}
    query, key = [name for name in shapes if name.endswith("attn1.to_q")][:2]
    layers = {
        f"unet.{query}": LowRank(
            torch.randn(3, shapes[query][1]).bfloat16(), torch.randn(shapes[query][0], 3).bfloat16(), 0.5
        ),
        f"unet.{key}": Hadamard(torch.randn(1, shapes[key][1]), torch.randn(shapes[key][0], 1)),
    }
    write_lora(tmp_path / "both.safetensors", layers)
    for file in (tmp_path / "both.safetensors", files["a3"]):
        adapter = read_adapter(file, model.layers, "x")
        packed = pack(adapter)
        assert packed.bytes >= adapter.bytes
        assert all(place.start % ALIGNMENT == 0 for place in packed.places)
        for found in (packed.adapter.layers, packed.factors_in(packed.block.clone())):
            assert found.keys() == adapter.layers.keys()
            for name, factors in adapter.layers.items():
                assert type(found[name]) is type(factors)
                assert found[name].scale == factors.scale
                for half in ("down", "up") if isinstance(factors, LowRank) else ("inner", "outer"):
                    assert torch.equal(getattr(found[name], half), getattr(factors, half))
        inside = packed.block.untyped_storage().data_ptr()
        assert all(
            factors.down.untyped_storage().data_ptr() == inside
            for factors in packed.adapter.layers.values()
            if isinstance(factors, LowRank)
        )


# -- the levels ------------------------------------------------------------------------------------------


def test_loading_fills_the_device_as_far_as_there_is_room(model: Model, files: dict[str, Path]) -> None:
    model.store.limits = Limits(device=DEVICE)
    loaded(model, files)
    stats = model.store.stats
    assert stats.known == COUNT == stats.host.adapters == stats.host.misses
    assert 0 < stats.device.adapters < COUNT
    assert stats.device.bytes <= DEVICE
    assert stats.device.evictions == 0
    assert list(model.bank.adapters) == [name for name in files if name in model.bank.adapters]
    assert model.facts.adapters == tuple(files)
    assert "misses" in str(stats)


def test_hits_misses_and_evictions_are_counted(model: Model, files: dict[str, Path]) -> None:
    loaded(model, files)
    store = model.store
    store.limits = Limits(device=size(model, "a0") + size(model, "a1"))
    before = store.stats
    assert before.device.adapters <= 2 < before.device.evictions
    for name in ("a0", "a1", "a0", "a1"):
        with store.holding([name]):
            assert name in model.bank.adapters
    with store.holding(["a5"]):  # as large as a0, which was used longest ago
        assert set(model.bank.adapters) == {"a1", "a5"}
    after = store.stats
    assert after.device.hits - before.device.hits == 2
    assert after.device.misses - before.device.misses == 3
    assert after.device.evictions - before.device.evictions == before.device.adapters + 1
    assert after.host.misses == before.host.misses  # all came from the host
    assert after.device.bytes <= store.limits.device  # type: ignore[operator]


def test_the_host_is_bounded_too_and_files_are_read_again(model: Model, files: dict[str, Path]) -> None:
    store = model.store
    store.limits = Limits(host=HOST, device=DEVICE)
    loaded(model, files)
    stats = store.stats
    assert stats.host.bytes <= HOST
    assert stats.host.evictions == COUNT - stats.host.adapters > 0
    assert stats.host.misses == COUNT
    gone = next(name for name in files if name not in model.bank.adapters)
    for name in files:
        with store.holding([name]):
            assert store.stats.host.bytes <= HOST
            assert store.stats.device.bytes <= DEVICE
    assert store.stats.host.misses > COUNT
    read = store.read(gone)
    exact = read_adapter(files[gone], model.layers, gone)
    assert all(torch.equal(read.delta(layer), exact.delta(layer)) for layer in exact.layers)


def test_what_is_held_stays_whatever_else_is_asked_for(model: Model, files: dict[str, Path]) -> None:
    loaded(model, files)
    store = model.store
    hold = store.hold(["a1", "a2"])
    store.limits = Limits(host=0, device=0)
    assert set(model.bank.adapters) == {"a1", "a2"}
    assert store.stats.host.adapters == 2  # what is on the device is on the host
    assert store.fits(["a1"])
    assert not store.fits(["a1", "a3"])
    other = store.hold(["a2", "a3"])  # over the limit: one picture's adapters always have room
    with pytest.raises(AdapterError, match="'a2' is in use"):
        store.unload("a2")
    hold.release()
    hold.release()
    store.limits = Limits(host=0, device=0)
    assert set(model.bank.adapters) == {"a2", "a3"}
    del other
    gc.collect()
    store.limits = Limits(host=0, device=0)
    assert not model.bank.adapters
    assert store.stats.held == 0
    assert store.fits(files)


def test_asks_are_portioned_by_what_fits(model: Model, files: dict[str, Path]) -> None:
    loaded(model, files)
    store = model.store
    store.limits = Limits(device=size(model, "a0") + size(model, "a1"))
    assert store.portions([["a0"], ["a1"], ["a0"], [], ["a5"], ["a0"]]) == [range(4), range(4, 6)]
    assert store.portions([list(files), [], ["a0"]]) == [range(3)]
    assert store.portions([["a3", "a4"], ["a9", "a8"]]) == [range(1), range(1, 2)]
    assert store.portions([]) == []


def test_a_changed_file_is_not_taken_for_the_old_one(
    model: Model, files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(files["a1"].read_bytes())
    model.load_adapter(file, "mine")
    model.store.limits = Limits(host=0, device=0)
    file.write_bytes(files["a2"].read_bytes())
    with pytest.raises(AdapterFileError, match="another file than when 'mine' was loaded"):
        model.store.hold(["mine"])
    assert model.store.stats.held == 0
    model.store.unload("mine")
    model.load_adapter(file, "mine")
    file.unlink()
    model.store.limits = Limits(host=0, device=0)
    session = Session(model, output_type="latent")
    bad = session.submit(Request("a fox", adapters={"mine": 1.0}, steps=1, width=32, height=32, seed=1)).id
    good = session.submit(Request("a fox", steps=1, width=32, height=32, seed=1)).id
    ended = {event.id: event for event in session.drain() if isinstance(event, Finished | Failed)}
    assert isinstance(ended[bad], Failed)
    assert "no such file" in str(ended[bad].error)
    assert isinstance(ended[good], Finished)


def test_files_that_were_added_are_read_when_asked_for(model: Model, files: dict[str, Path]) -> None:
    model.store.add(files)
    assert model.facts.adapters == ()
    model.store.ensure(["A3", "nobody"])
    assert model.facts.adapters == ("a3",)
    assert not model.bank.adapters
    with model.store.holding(["A3"]):
        assert list(model.bank.adapters) == ["a3"]


def test_what_is_asked_for_soon_is_brought_ahead(
    model: Model, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device whose copies run beside its work: what is held stays, and what was unloaded is left alone."""
    monkeypatch.setattr(AdapterStore, "_overlaps", True)
    store = loaded(model, files).store
    store.limits = Limits(device=size(model, "a0") + size(model, "a1") + size(model, "a5"))
    hold = store.hold(["a0"])
    store.unload("a7")
    store.prefetch(["a1", "a7", "nobody", "a5", "a2"])
    before = store.stats.device
    assert before.adapters == 3  # a0, and a1 and a5 on their way; a2 has no room beside them
    assert before.bytes <= before.limit
    assert "a7" not in store.known
    assert list(model.bank.adapters) == ["a0"]
    with store.holding(["a1", "a5"]):
        assert set(model.bank.adapters) == {"a0", "a1", "a5"}
    assert store.stats.device.hits == before.hits + 2
    assert store.stats.device.misses == before.misses
    hold.release()


# -- pictures --------------------------------------------------------------------------------------------


def requests(files: dict[str, Path]) -> list[Request]:
    """Eighteen pictures over all adapters: mixes of one to three, three methods."""
    names = list(files)
    composers = (Merge(), Switch(interval=1), Composite())
    found = []
    for number in range(18):
        mix = {names[(5 * number + 3 * j) % COUNT]: 0.5 + 0.1 * j for j in range(1 + number % 3)}
        settings = {"steps": 2, "width": 32, "height": 32, "seed": number}
        found.append(Request("a fox", adapters=mix, composer=composers[number % 3], **settings))  # type: ignore[arg-type]
    return found


def test_pictures_equal_those_made_without_paging(sdxl_folder: Path, files: dict[str, Path]) -> None:
    images, stats = {}, {}
    for kind, limits in (("all", Limits()), ("paged", Limits(host=HOST, device=DEVICE))):
        pipe = StudioPipeline.from_pretrained(sdxl_folder)
        pipe.store.limits = limits
        for name, file in files.items():
            pipe.load_lora_weights(file, name)
        images[kind] = pipe(requests(files), output_type="latent").images
        stats[kind] = pipe.store.stats
        assert pipe.store.stats.held == 0
    assert stats["all"].device.evictions == 0
    assert stats["paged"].device.evictions > COUNT
    assert stats["paged"].host.misses > COUNT
    assert stats["paged"].device.bytes <= DEVICE
    for own, other in zip(images["all"], images["paged"], strict=True):
        assert relative(other, own) < 1e-5


@pytest.mark.slow
def test_two_hundred_adapters_under_a_tenth_of_their_memory(
    sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    files = {
        f"n{number}": make_lora(sdxl_folder, f"n{number}", seed=number, rank=1 + number % 16, where="attn1")
        for number in range(200)
    }
    names = list(files)
    asked = [
        Request(
            "a fox",
            adapters={names[(7 * number + 61 * j) % 200]: 0.5 for j in range(3)},
            seed=number,
            steps=2,
            width=32,
            height=32,
        )
        for number in range(60)
    ]
    every, images = 0, []
    for paged in (False, True):
        pipe = StudioPipeline.from_pretrained(sdxl_folder)
        if paged:
            pipe.store.limits = Limits(host=every // 4, device=every // 10)
        for name, file in files.items():
            pipe.load_lora_weights(file, name)
        if not paged:
            every = pipe.store.stats.device.bytes
        images.append(pipe(asked, output_type="latent").images)
    stats = pipe.store.stats
    assert stats.device.bytes <= every // 10
    assert stats.host.bytes <= every // 4
    assert stats.device.evictions > 100
    for own, other in zip(*images, strict=True):
        assert relative(other, own) < 1e-5


def test_the_device_never_holds_more_than_its_limit_and_one_picture(
    model: Model, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = loaded(model, files).store
    largest = max(
        sum(size(model, use.adapter) for use in request.resolved(model.facts).uses)
        for request in requests(files)
    )
    store.limits = Limits(device=largest)
    seen: list[int] = []
    active = model.bank.active

    def watched(*args: object) -> object:
        seen.append(store.stats.device.bytes)
        return active(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(model.bank, "active", watched)
    session = Session(model, output_type="latent")
    for request in requests(files):
        session.submit(request)
    assert sum(isinstance(event, Finished) for event in session.drain()) == 18
    assert 0 < max(seen) <= largest
    assert store.stats.held == 0


def test_a_cancelled_or_abandoned_picture_lets_go(model: Model, files: dict[str, Path]) -> None:
    store = loaded(model, files).store
    session = Session(model, output_type="latent")
    ids = [session.submit(request).id for request in requests(files)[:4]]
    session.step()
    assert store.stats.held > 0
    for id in ids:
        session.cancel(id)
    assert store.stats.held == 0
    session = Session(model, output_type="latent")
    session.submit(requests(files)[0])
    session.step()
    assert store.stats.held > 0
    del session
    gc.collect()
    assert store.stats.held == 0


def living_bytes() -> int:
    gc.collect()
    plain = (Tensor, torch.nn.Parameter)  # and not what compiling leaves, which has no data
    tensors = {item.untyped_storage().data_ptr(): item for item in gc.get_objects() if type(item) in plain}
    return sum(item.untyped_storage().nbytes() for item in tensors.values())


def test_fifty_loads_and_pages_leave_memory_flat(model: Model, files: dict[str, Path]) -> None:
    loaded(model, files)
    store = model.store
    store.limits = Limits(host=HOST, device=DEVICE)
    names = list(files)

    def around() -> None:
        for name in names:
            with store.holding([name]):
                pass
        store.unload("a0")
        model.load_adapter(files["a0"], "a0")

    around()
    alive = living_bytes()
    for _ in range(4):  # of twelve adapters, and one load
        around()
    assert living_bytes() <= alive + 2 * DEVICE  # which of them stand on the device differs
    assert store.stats.host.bytes <= HOST
    assert store.stats.device.evictions > 45
    for name in names:
        store.unload(name)
    assert store.stats.device.bytes == store.stats.host.bytes == store.stats.known == 0
    assert living_bytes() < alive


def test_moving_the_model_moves_what_comes_later(model: Model, files: dict[str, Path]) -> None:
    loaded(model, files)
    store = model.store
    before = store.stats.device.bytes
    model.to("cpu", torch.bfloat16)
    assert store.stats.device.bytes == before // 2
    store.limits = Limits(device=0)
    with store.holding(["a1"]):
        assert store.stats.device.bytes == size(model, "a1")
        assert "a1" in model.bank.adapters
        assert {pool.rows.dtype for pool in model.bank.pools.values()} == {torch.bfloat16}
