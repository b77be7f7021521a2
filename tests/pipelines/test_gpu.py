"""What only a CUDA device can show. Run by hand: `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from composers import CMLoRA, Composite, Merge, Switch, Use
from pipelines import Request, StudioPipeline
from pipelines.decoding import Decoder
from pipelines.engine.reference import merged
from pipelines.engine.residency.bank import FormChoice
from pipelines.engine.residency.limits import Limits
from pipelines.errors import StudioError
from pipelines.events import Failed, Finished
from pipelines.schedulers import scheduler_names
from pipelines.session import Session

from .lanes import relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def exact() -> Iterator[None]:
    """Full fp32: TF32 off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def open_pipe(
    folder: Path, make_lora: Callable[..., Path], dtype: torch.dtype, device: str
) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(folder, dtype=dtype).to(device)
    for name, rank, where in (("attention", 4, "attn"), ("wide", 3, ""), ("conv", 2, "conv")):
        pipe.load_lora_weights(make_lora(folder, name, seed=rank, rank=rank, where=where), adapter_name=name)
    return pipe


MIX = {"attention": 0.8, "wide": 0.5, "conv": 1.0}
REQUESTS = [
    Request("a fox", adapters=MIX, seed=1, steps=6),
    Request("a fox", adapters=MIX, composer=Composite(), seed=2, steps=6, scheduler="Euler a"),
    Request("a bear", adapters=MIX, composer=Switch(interval=2), seed=3, steps=7, scheduler="UniPC"),
    Request(
        "a pig",
        adapters={"wide": 1.0},
        composer=Merge(),
        seed=4,
        steps=4,
        scheduler="Heun",
        guidance_scale=1.0,
    ),
    Request("word, " * 60, seed=5, steps=5, scheduler="DPM++ 2M SDE"),
    Request("a cat", adapters=MIX, composer=CMLoRA(refresh="dominant_only"), seed=6, steps=6),
    Request("a cat", adapters=MIX, composer=Composite(), reuse=2, seed=7, steps=5, scheduler="Heun"),
]


def test_the_gpu_draws_what_the_cpu_draws(
    exact: None, model_folder: Path, make_lora: Callable[..., Path]
) -> None:
    gpu = open_pipe(model_folder, make_lora, torch.float32, "cuda")
    cpu = open_pipe(model_folder, make_lora, torch.float32, "cpu")
    together = gpu(REQUESTS, output_type="latent").images
    for request, found, expected in zip(
        REQUESTS, together, cpu(REQUESTS, output_type="latent").images, strict=True
    ):
        assert relative(found, expected) < 1e-3
        assert relative(found, gpu(request, output_type="latent").images[0]) < 1e-4


def test_features_on_the_host_draw_the_same_picture(
    model_folder: Path, make_lora: Callable[..., Path]
) -> None:
    pipe = open_pipe(model_folder, make_lora, torch.float16, "cuda")
    request = Request("a fox", adapters=MIX, composer=CMLoRA(refresh="dominant_only"), seed=1, steps=6)
    on_device = pipe(request, output_type="latent")
    pipe.model.feature_limit = 1
    on_host = pipe(request, output_type="latent")
    assert torch.equal(on_device.images[0], on_host.images[0])
    assert ["host's memory" in note for note in on_host.records[0].notes] == [True]
    assert on_device.records[0].notes == ()
    assert on_host.records[0].shallow_rows > on_host.records[0].unet_rows


@pytest.mark.parametrize("name", scheduler_names())
def test_every_scheduler_runs_on_the_gpu(
    exact: None, sdxl_folder: Path, make_lora: Callable[..., Path], name: str
) -> None:
    gpu = open_pipe(sdxl_folder, make_lora, torch.float32, "cuda")
    cpu = open_pipe(sdxl_folder, make_lora, torch.float32, "cpu")
    request = Request("a fox", seed=1, steps=5, scheduler=name, adapters={"wide": 0.5})
    found = gpu(request, output_type="latent").images[0]
    assert relative(found, cpu(request, output_type="latent").images[0]) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision_lanes_stay_within_its_own_noise(
    model_folder: Path, make_lora: Callable[..., Path], dtype: torch.dtype
) -> None:
    pipe = open_pipe(model_folder, make_lora, torch.float32, "cuda")
    model = pipe.model
    rows = [tuple(Use(name, weight) for name, weight in MIX.items()), (), (Use("conv", -1.0),)]
    inputs = {
        "sample": torch.randn(3, 4, 16, 16, device="cuda"),
        "timestep": torch.tensor([10.0, 400.0, 900.0], device="cuda"),
        "encoder_hidden_states": torch.randn(3, 77, model.unet.config.cross_attention_dim, device="cuda"),
    }
    added = {
        "text_embeds": torch.randn(3, 32, device="cuda"),
        "time_ids": torch.full((3, 6), 32.0, device="cuda"),
    }
    sized = model.checkpoint.family.size_conditioned
    references = [merged(model.unet, "unet", model.bank.adapters, uses) for uses in rows]

    def run(unet: torch.nn.Module, kind: torch.dtype, part: slice) -> Tensor:
        extra = {key: value[part].to(kind) for key, value in added.items()} if sized else None
        own = {
            key: value[part] if key == "timestep" else value[part].to(kind) for key, value in inputs.items()
        }
        predicted: Tensor = unet(**own, added_cond_kwargs=extra, return_dict=False)[0]
        return predicted

    expected = [run(unet, torch.float32, slice(row, row + 1)) for row, unet in enumerate(references)]
    pipe.to("cuda", dtype)
    with model.bank.active("unet", rows):
        together = run(model.unet, dtype, slice(0, 3))
    for row, unet in enumerate(references):
        noise = relative(run(unet.to(dtype), dtype, slice(row, row + 1)), expected[row])
        assert relative(together[row : row + 1], expected[row]) < 2 * noise + 1e-3


def test_float16_is_the_default_on_a_gpu(sdxl_folder: Path) -> None:
    pipe = StudioPipeline.from_pretrained(sdxl_folder).to("cuda")
    assert pipe.model.unet.dtype == torch.float16
    record = pipe(Request("a fox", seed=1, steps=2)).records[0]
    assert (record.dtype, record.device) == ("float16", torch.cuda.get_device_name())


def test_offloading_draws_the_same_picture_and_leaves_the_gpu(
    exact: None, model_folder: Path, make_lora: Callable[..., Path]
) -> None:
    pipe = open_pipe(model_folder, make_lora, torch.float32, "cuda")
    expected = pipe(REQUESTS[:2], output_type="pt").images
    pipe.enable_model_cpu_offload("cuda")
    found = pipe(REQUESTS[:2], output_type="pt").images
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-4
    assert {parameter.device.type for parameter in pipe.model.unet.parameters()} == {"cpu"}


def test_memory_that_runs_out_splits_the_batch(sdxl_folder: Path, make_lora: Callable[..., Path]) -> None:
    pipe = open_pipe(sdxl_folder, make_lora, torch.float32, "cuda")
    pipe.optimize(graphs=False)  # a recording holds its memory already, and would not run out
    requests = [
        Request("a fox", seed=seed, steps=2, adapters={"wide": 0.5}, width=256, height=256)
        for seed in range(16)
    ]
    pipe.row_limit = 32
    free, total = torch.cuda.mem_get_info()
    baseline = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    expected = pipe(requests, output_type="latent").images
    peak = torch.cuda.max_memory_allocated() - baseline
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * peak) / total)
    try:
        result = pipe(requests, output_type="latent")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert free > 0
    assert {record.largest_call < 32 for record in result.records} == {True}
    assert all(record.notes for record in result.records)
    for found, wanted in zip(result.images, expected, strict=True):
        assert relative(found, wanted) < 1e-2


def test_decoding_beside_the_rounds_changes_no_picture(exact: None, sdxl_folder: Path) -> None:
    model = StudioPipeline.from_pretrained(sdxl_folder, dtype=torch.float32).to("cuda").model
    assert model.side_stream is not None
    assert model.side_stream is model.side_stream
    latents = torch.randn(40, 4, 64, 64, generator=torch.Generator().manual_seed(1)).cuda()
    beside = [Decoder(model, "pt").start(latents[first : first + 8]) for first in range(0, 40, 8)]
    assert all(decoding.event is not None for decoding in beside)
    found = [picture for decoding in beside for picture in decoding.pictures()]
    torch.cuda.synchronize()
    with torch.no_grad():
        scaled = latents / model.vae.config.scaling_factor
        expected = torch.cat(
            [model.vae.decode(scaled[first : first + 8]).sample for first in range(0, 40, 8)]
        )
    for picture, pixels in zip(found, (expected / 2 + 0.5).clamp(0, 1), strict=True):
        assert isinstance(picture, Tensor)
        assert float((picture - pixels.cpu()).abs().max()) < 1e-5


def test_pictures_that_leave_one_by_one_are_those_that_leave_together(
    exact: None, sdxl_folder: Path, make_lora: Callable[..., Path]
) -> None:
    pipe = open_pipe(sdxl_folder, make_lora, torch.float32, "cuda")
    requests = [
        Request(f"fox {seed % 7}", seed=seed, steps=2 + seed % 5, adapters={"wide": 0.1 * (seed % 4)})
        for seed in range(40)
    ]
    pipe.row_limit = 8
    found = pipe(requests, output_type="np").images
    for request, image in list(zip(requests, found, strict=True))[::5]:
        assert abs(pipe(request, output_type="np").images[0] - image).max() < 1e-4


def test_paging_changes_no_picture_and_copies_from_locked_memory(
    exact: None,
    sdxl_folder: Path,
    make_lora: Callable[..., Path],
    make_flora: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Eight adapters, a FLoRA among them, with room for about two on the device and four on the host."""
    make_flora(sdxl_folder, tmp_path / "a7.safetensors", rank=2, where="attn", text=True)
    files = {f"a{n}": make_lora(sdxl_folder, f"a{n}", seed=n, rank=1 + n % 4, where="attn") for n in range(7)}
    files["a7"] = tmp_path / "a7.safetensors"
    names = list(files)
    requests = [
        Request("a fox", adapters={names[n % 8]: 0.8, names[(3 * n + 1) % 8]: 0.5}, seed=n, steps=4)
        for n in range(16)
        if n % 8 != (3 * n + 1) % 8
    ]
    images, stats = [], []
    for paged in (False, True):
        pipe = StudioPipeline.from_pretrained(sdxl_folder, dtype=torch.float32).to("cuda")
        for name, file in files.items():
            pipe.load_lora_weights(file, name)
        if paged:
            every = pipe.store.stats.device.bytes
            pipe.store.limits = Limits(host=every // 2, device=every // 3)
        images.append(pipe(requests, output_type="latent").images)
        stats.append(pipe.store.stats)
    assert stats[0].device.evictions == 0
    assert stats[1].device.evictions > 8
    assert stats[1].host.misses > 8
    assert 0 < stats[1].pinned <= stats[1].host.bytes
    assert stats[1].device.bytes <= stats[1].device.limit
    for own, other in zip(*images, strict=True):
        assert relative(other, own) < 1e-5


def test_paged_memory_stays_flat_on_the_device(sdxl_folder: Path, make_lora: Callable[..., Path]) -> None:
    pipe = StudioPipeline.from_pretrained(sdxl_folder, dtype=torch.float16).to("cuda")
    files = {f"a{n}": make_lora(sdxl_folder, f"a{n}", seed=n, rank=1 + n % 4, where="") for n in range(6)}
    for name, file in files.items():
        pipe.load_lora_weights(file, name)
    pipe.store.limits = Limits(device=pipe.store.stats.device.bytes // 3)

    def around() -> int:
        for name in files:
            pipe.store.prefetch(list(files)[:2])
            with pipe.store.holding([name]):
                pass
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    sizes = [around() for _ in range(20)]  # 120 adapters brought in
    assert sizes[-1] <= max(sizes[2:5])
    assert pipe.store.stats.device.evictions > 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flora_lanes_beside_others_equal_those_alone(
    exact: None,
    dtype: torch.dtype,
    model_folder: Path,
    make_lora: Callable[..., Path],
    make_flora: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """FLoRA, LoRA and plain pictures in one call: as near to the exact picture as each is when alone."""
    make_flora(model_folder, tmp_path / "f.safetensors", rank=3, where="", text=True)
    lora = make_lora(model_folder, "l", seed=1, rank=4, where="")

    def opened(dtype: torch.dtype) -> StudioPipeline:
        pipe = StudioPipeline.from_pretrained(model_folder, dtype=dtype).to("cuda")
        pipe.load_lora_weights(tmp_path / "f.safetensors", "f")
        pipe.load_lora_weights(lora, "l")
        return pipe

    pipe, reference = opened(dtype), opened(torch.float32)
    mixes = [{"f": 1.0}, {}, {"l": 0.8}, {"f": 0.5, "l": 0.4}]
    requests = [Request("a fox", adapters=mix, seed=3, steps=4) for mix in mixes]
    together = pipe(requests, output_type="latent").images
    for request, image in zip(requests, together, strict=True):
        alone = pipe(request, output_type="latent").images[0]
        expected = reference(request, output_type="latent").images[0]
        noise = 0.0 if dtype == torch.float32 else relative(alone, expected)
        assert relative(image, expected) < 2 * noise + 1e-4


@pytest.mark.parametrize("form", ["auto", "lane-packed", "pool", "dense"])
def test_graphs_draw_what_layers_one_by_one_draw(
    exact: None, sdxl_folder: Path, make_lora: Callable[..., Path], form: FormChoice
) -> None:
    """A recording is replayed for other mixes and strengths, and its output changes with them."""
    pipe = open_pipe(sdxl_folder, make_lora, torch.float32, "cuda")
    pipe.optimize(graphs=False)
    weights = (0.2, 0.5, 0.8, 1.1)
    asked = [
        Request("a fox", adapters={name: weight * value for name, value in MIX.items()}, seed=1, steps=12)
        for weight in weights
    ]
    expected = [pipe(request, output_type="latent").images[0] for request in asked]
    stats = pipe.model.engine.stats
    assert (stats.captures, stats.replays, stats.layer_by_layer) == (0, 0, 12 * len(weights))
    pipe.optimize(form=form)
    found = [pipe(request, output_type="latent").images[0] for request in asked]
    assert (stats.captures, stats.replays, stats.layer_by_layer) == (
        1,
        12 * len(weights) - 1,
        12 * len(weights),
    )
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-4
    assert all(relative(one, found[0]) > 1e-3 for one in found[1:])
    assert torch.equal(pipe(asked[0], output_type="latent").images[0], found[0])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("form", ["lane-packed", "pool"])
def test_a_round_never_waits_for_the_device(
    sdxl_folder: Path, make_lora: Callable[..., Path], form: FormChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a mix is new at every step, so that factors and keys of the texts are, too."""
    pipe = open_pipe(sdxl_folder, make_lora, torch.bfloat16, "cuda")
    pipe.optimize(form=form)
    asked = [
        Request("a fox", adapters=MIX, composer=composer, seed=1, steps=8, scheduler=scheduler)
        for composer in (Merge(), Switch(interval=1), Composite())
        for scheduler in ("Euler", "DPM++ 2M Karras")
    ]
    expected = [pipe(asked, output_type="latent").images for _ in range(2)][-1]
    whole_round = Session._round

    def watched(session: Session, jobs: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            whole_round(session, jobs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Session, "_round", watched)
    captures = pipe.model.engine.stats.captures
    found = pipe(asked, output_type="latent")
    assert pipe.model.engine.stats.captures == captures
    assert all(torch.equal(one, other) for one, other in zip(found.images, expected, strict=True))
    assert all(record.device_seconds > 0 for record in found.records)


def test_compiled_blocks_draw_the_same_picture(sdxl_folder: Path, make_lora: Callable[..., Path]) -> None:
    pipe = open_pipe(sdxl_folder, make_lora, torch.float32, "cuda")
    request = Request("a fox", adapters=MIX, seed=1, steps=12)
    expected = pipe(request, output_type="latent").images[0]
    pipe.optimize(compile=True)
    assert relative(pipe(request, output_type="latent").images[0], expected) < 1e-2
    compiled = pipe.model.engine.stats.recompiles
    assert compiled > 0
    for weight in (0.3, 0.6):
        pipe(Request("a bear", adapters={name: weight for name in MIX}, seed=2, steps=12))
    assert pipe.model.engine.stats.recompiles == compiled


@pytest.mark.parametrize(
    "request_",
    [
        Request("a fox", adapters=MIX, seed=5, steps=8, scheduler="Euler a"),
        Request("a fox", adapters=MIX, seed=5, steps=8, composer=CMLoRA()),
        Request("a fox", adapters=MIX, seed=5, steps=8, scheduler="DPM++ 2M SDE", reuse=3),
    ],
    ids=["merge", "cmlora", "reuse"],
)
def test_a_picture_set_aside_goes_on_as_if_nothing_had_been(
    sdxl_folder: Path, make_lora: Callable[..., Path], exact: None, request_: Request
) -> None:
    """It waits in the host's memory while the model is away, and goes on with the model loaded anew."""
    expected = open_pipe(sdxl_folder, make_lora, torch.float32, "cuda")(
        request_, output_type="latent"
    ).images[0]
    session = Session(open_pipe(sdxl_folder, make_lora, torch.float32, "cuda").model, output_type="latent")
    first = session.submit(request_).id
    for _ in range(3):
        session.step()
    aside = session.suspend()[first]
    assert session.idle
    later = Session(open_pipe(sdxl_folder, make_lora, torch.float32, "cuda").model, output_type="latent")
    later.resume(aside)
    [finished] = [event for event in later.drain() if isinstance(event, Finished)]
    assert relative(finished.image, expected) < 1e-5  # type: ignore[arg-type]


def test_a_fault_on_the_device_thread_is_one_pictures_own(
    sdxl_folder: Path, make_lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_pipe(sdxl_folder, make_lora, torch.float16, "cuda")
    session = Session(pipe.model, output_type="latent")
    ids = [session.submit(Request("a fox", seed=seed, steps=4)).id for seed in (1, 2, 3)]
    session.step()
    broken = next(job for job in session._flying if job.id == ids[1])
    assert broken.trajectory is not None

    def breaks(prediction: Tensor) -> None:
        raise RuntimeError("a fault that nobody foresaw")

    monkeypatch.setattr(broken.trajectory, "advance", breaks)
    events = list(session.drain())
    assert {event.id for event in events if isinstance(event, Failed)} == {ids[1]}
    assert {event.id for event in events if isinstance(event, Finished)} == {ids[0], ids[2]}


def test_what_the_device_could_never_hold_is_refused_before_any_work(
    sdxl_folder: Path, make_lora: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.memory.limit", lambda device: 8 * 2**30)
    session = Session(open_pipe(sdxl_folder, make_lora, torch.float16, "cuda").model)
    before = torch.cuda.memory_allocated()
    with pytest.raises(StudioError, match="16384"):
        session.submit(Request("a fox", width=16384, height=16384, steps=1))
    assert torch.cuda.memory_allocated() - before < 100 * 2**20
