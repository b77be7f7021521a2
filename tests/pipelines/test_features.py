"""Deep-feature reuse: exact where nothing has changed, real where it skips, the same alone and in a batch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from composers import CMLoRA, Composer, Composite, Merge, Schedule, Step, Switch, Use
from composers.plan import Mix
from pipelines import Record, Request, StudioError, StudioPipeline
from pipelines.denoise import evaluate, rows_of
from pipelines.events import Event, Finished, Started, Stepped
from pipelines.families.unet import LEVELS, captured, cuts_of, feature_shape, shallow_pass
from pipelines.features import Passes, most_kept, passes_of, schedule
from pipelines.model import Model
from pipelines.session import Session

pytestmark = pytest.mark.usefixtures("no_faults")

NAMES = ("a", "b", "c")
MIX = {"a": 1.0, "b": 0.7, "c": 0.9}


@pytest.fixture(scope="module")
def pipes(sd_folder: Path, sdxl_folder: Path, make_lora: Callable[..., Path]) -> dict[str, StudioPipeline]:
    """A pipeline of each family, three adapters loaded."""
    found = {}
    for family, folder in (("sd", sd_folder), ("sdxl", sdxl_folder)):
        pipe = StudioPipeline.from_pretrained(folder)
        for seed, name in enumerate(NAMES):
            pipe.load_lora_weights(make_lora(folder, name, seed=seed, rank=2 + seed), adapter_name=name)
        found[family] = pipe
    return found


@pytest.fixture(params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest, pipes: dict[str, StudioPipeline]) -> Iterator[Model]:
    model = pipes[request.param].model
    yield model
    model.row_limit = model.feature_limit = None
    model.found_limits.clear()


@pytest.fixture
def sdxl(pipes: dict[str, StudioPipeline]) -> Iterator[Model]:
    model = pipes["sdxl"].model
    yield model
    model.row_limit = model.feature_limit = None
    model.found_limits.clear()


@pytest.fixture
def inner(model: Model) -> Iterator[dict[str, int]]:
    """Rows that ran the innermost and the outermost block."""
    rows = {"mid": 0, "outer": 0}

    def count(name: str) -> Callable[..., None]:
        def add(module: object, inputs: object, keywords: dict[str, Tensor], output: object) -> None:
            sample = keywords.get("hidden_states")
            rows[name] += (inputs[0] if sample is None else sample).shape[0]  # type: ignore[index]

        return add

    hooks = [
        model.unet.mid_block.register_forward_hook(count("mid"), with_kwargs=True),
        model.unet.up_blocks[-1].register_forward_hook(count("outer"), with_kwargs=True),
    ]
    yield rows
    for hook in hooks:
        hook.remove()


def ask(composer: Composer, seed: int = 1, **settings: object) -> Request:
    base: dict[str, object] = {"seed": seed, "steps": 6, "scheduler": "Euler", "adapters": MIX}
    return Request("a fox", composer=composer, **(base | settings))  # type: ignore[arg-type]


def rendered(model: Model, *requests: Request) -> list[tuple[Tensor, Record]]:
    session = Session(model, output_type="latent")
    ids = [session.submit(request).id for request in requests]
    events = list(session.drain())
    found = {event.id: (event.image, event.record) for event in events if isinstance(event, Finished)}
    return [found[id] for id in ids]  # type: ignore[misc]


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# -- the shallow pass ------------------------------------------------------------------------------------


def in_flight(model: Model, request: Request) -> Session:
    """The request at its second round, every feature of the first one remembered."""
    session = Session(model, output_type="latent")
    session.submit(request)
    session.step()
    return session


@pytest.mark.parametrize("cut", ["published", "deep"])
@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
def test_a_shallow_pass_on_unchanged_input_equals_the_full_one(
    model: Model, cut: str, size: tuple[int, int]
) -> None:
    width, height = size
    session = in_flight(model, ask(Composite(), reuse=3, cut=cut, width=width, height=height))
    [job] = session._flying
    assert job.trajectory is not None
    rows = rows_of([job.trajectory])
    assert all(row.shallow for row in rows)
    remember = [replace(row, shallow=False, kept=True) for row in rows]
    full = evaluate(model, remember)
    plain = evaluate(model, [replace(row, shallow=False) for row in rows])
    assert torch.equal(full, plain), "remembering changes nothing"
    assert distance(evaluate(model, rows), full) <= 1e-5
    shape = model.latent_shape(width, height)
    kept = job.trajectory.features.get(rows[0].lane.memory, model.device)
    assert tuple(kept.shape) == feature_shape(model.unet.config, shape, rows[0].cut or "deep")
    assert kept.nbytes == model.feature_bytes(shape, rows[0].cut or "deep")


def test_long_prompts_beside_short_ones_are_masked_in_shallow_passes(model: Model) -> None:
    long = replace(ask(Merge(), reuse=2), prompt=" ".join(["a fox wearing a crown"] * 20))
    both = rendered(model, long, ask(Merge(), 2, reuse=2))
    alone = [rendered(model, request)[0] for request in (long, ask(Merge(), 2, reuse=2))]
    for (found, _), (expected, _) in zip(both, alone, strict=True):
        assert distance(found, expected) < 1e-4


def test_the_remembered_tensor_is_what_the_outer_up_block_takes_in(model: Model) -> None:
    unet = model.unet
    taken: list[Tensor] = []
    hook = unet.up_blocks[-1].register_forward_pre_hook(
        lambda _, __, keywords: taken.append(keywords["hidden_states"]), with_kwargs=True
    )
    sample = torch.randn(1, 4, 8, 8)
    text = torch.randn(1, 77, unet.config.cross_attention_dim)
    added = None
    if unet.config.addition_embed_type:
        added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.full((1, 6), 32.0)}
    conditions = {"encoder_hidden_states": text, "added_cond_kwargs": added}
    with torch.inference_mode(), captured(unet, ["published", "deep"]) as found:
        full = unet(sample, torch.tensor([500.0]), **conditions).sample
    hook.remove()
    assert found["published"] is taken[0]
    for cut in LEVELS:
        with torch.inference_mode():
            again = shallow_pass(unet, cut, found[cut], sample, torch.tensor([500.0]), **conditions)
            moved = shallow_pass(unet, cut, found[cut], sample, torch.tensor([300.0]), **conditions)
        assert distance(again, full) <= 1e-5
        assert distance(moved, full) > 1e-4
    assert not unet.up_blocks[-2]._forward_hooks


def test_shallow_passes_do_not_run_the_inner_blocks(model: Model, inner: dict[str, int]) -> None:
    [(_, record)] = rendered(model, ask(CMLoRA(refresh="dominant_only"), steps=10))
    assert inner["mid"] == record.unet_rows
    assert inner["outer"] == record.unet_rows + record.shallow_rows == 10 * 3 * 2
    assert record.unet_rows < record.shallow_rows
    assert record.cut == ("deep" if model.checkpoint.family.name == "sdxl" else "published")


def test_the_adapters_are_live_in_shallow_passes(model: Model) -> None:
    session = in_flight(model, ask(Composite(), reuse=3))
    [job] = session._flying
    assert job.trajectory is not None
    rows = rows_of([job.trajectory])
    bare = [replace(row, lane=replace(row.lane, uses=())) for row in rows]
    for row, other in zip(rows, bare, strict=True):
        features = row.trajectory.features
        features.put(other.lane.memory, features.get(row.lane.memory, model.device))
    assert distance(evaluate(model, rows), evaluate(model, bare)) > 1e-3


# -- whole runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", ["dominant_only", "dominant_every_step", "every_step_in_turn", "all"])
def test_caching_at_interval_one_is_no_caching(model: Model, refresh: str) -> None:
    [(cached, record)] = rendered(model, ask(CMLoRA(refresh=refresh, interval=1), steps=4))
    [(plain, _)] = rendered(model, ask(CMLoRA(refresh="uncached", interval=1), steps=4))
    assert torch.equal(cached, plain)
    assert record.shallow_rows == record.feature_bytes == 0


@pytest.mark.parametrize("composer", [Merge(), Composite(), Switch(interval=2)])
def test_reuse_at_interval_one_is_no_reuse(sdxl: Model, composer: Composer) -> None:
    [(reused, _)] = rendered(sdxl, ask(composer, reuse=1))
    [(plain, _)] = rendered(sdxl, ask(composer))
    assert torch.equal(reused, plain)


@pytest.mark.parametrize(
    ("composer", "full", "shallow"),
    [(Merge(), 4, 8), (Composite(), 12, 24), (Switch(interval=2), 6, 6)],
)
def test_reuse_saves_passes_and_changes_the_picture_a_little(
    model: Model, composer: Composer, full: int, shallow: int
) -> None:
    [(reused, record)] = rendered(model, ask(composer, reuse=3))
    [(plain, _)] = rendered(model, ask(composer))
    assert (record.unet_rows, record.shallow_rows) == (full, shallow)
    assert record.reuse == 3
    assert 1e-5 < distance(reused, plain) < 1


def test_both_calls_of_a_solver_step_run_the_same_way(model: Model, inner: dict[str, int]) -> None:
    [(_, record)] = rendered(model, ask(Merge(), reuse=2, steps=4, scheduler="Heun"))
    # steps 0 and 2 in full with two calls each, step 1 shallow with two, the last one shallow with one
    assert (record.unet_calls, record.shallow_calls) == (4, 3)
    assert inner["mid"] == 8


def test_a_batch_of_mixed_methods_equals_single_renders(model: Model) -> None:
    requests = [
        ask(CMLoRA(refresh="dominant_only"), 1),
        ask(CMLoRA(refresh="all"), 2, steps=5, scheduler="Euler a"),
        ask(Composite(), 3, reuse=2, cut="published"),
        ask(Switch(interval=2), 4, reuse=2, steps=7, scheduler="DPM++ 2M SDE"),
        ask(Merge(), 5, adapters={"b": 1.0}),
        ask(CMLoRA(refresh="every_step_in_turn"), 6, guidance_scale=1.0, scheduler="Heun", cut="deep"),
    ]
    alone = [rendered(model, request)[0] for request in requests]
    together = rendered(model, *requests)
    session = Session(model, output_type="latent")
    ids = []
    events: list[Event] = []
    for request in requests:  # each joins a round later
        ids.append(session.submit(request).id)
        events += session.step()
    events += list(session.drain())
    joined = {event.id: event.image for event in events if isinstance(event, Finished)}
    for id, (expected, single), (found, record) in zip(ids, alone, together, strict=True):
        assert distance(found, expected) < 1e-4
        assert distance(joined[id], expected) < 1e-4  # type: ignore[arg-type]
        assert (single.unet_rows, single.shallow_rows) == (record.unet_rows, record.shallow_rows)


def test_one_round_is_two_calls_at_most(sdxl: Model) -> None:
    [(_, cached), (_, plain)] = rendered(
        sdxl, ask(CMLoRA(refresh="dominant_only"), steps=10), ask(Merge(), 2)
    )
    assert cached.unet_calls <= 10
    assert cached.shallow_calls <= 10
    assert plain.unet_calls == 6


def test_the_row_limit_and_half_memory_split_shallow_calls_too(model: Model) -> None:
    request = ask(CMLoRA(refresh="all"))
    [(whole, _)] = rendered(model, request)
    model.row_limit = 4
    [(split, record)] = rendered(model, request)
    assert distance(split, whole) < 1e-4
    assert record.largest_call == 3


# -- memory ----------------------------------------------------------------------------------------------


def remembered(session: Session) -> list[weakref.ref[Tensor]]:
    return [
        weakref.ref(feature)
        for job in session._flying
        if job.trajectory is not None
        for feature in job.trajectory.features._kept.values()
    ]


def test_features_go_when_the_picture_is_done_or_cancelled(sdxl: Model) -> None:
    session = Session(sdxl, output_type="latent")
    session.submit(ask(Composite(), 1, reuse=3, steps=4))
    dropped = session.submit(ask(CMLoRA(refresh="all"), 2)).id
    session.step()
    features = remembered(session)
    assert len(features) == 12
    job = session._flying[0]
    assert job.trajectory is not None
    assert job.trajectory.features.bytes == job.cost.feature_bytes > 0
    session.cancel(dropped)
    del job
    list(session.drain())
    gc.collect()
    assert not any(feature() is not None for feature in features)


def test_features_that_no_later_step_reads_are_let_go(sdxl: Model) -> None:
    session = Session(sdxl, output_type="latent")
    session.submit(ask(Switch(interval=2), reuse=2))
    counts = []
    while session._flying or session._waiting:
        session.step()
        counts.append(len(remembered(session)))
    assert counts == [2, 0, 2, 0, 2, 0]
    session.submit(ask(Merge()))
    session.step()
    assert not remembered(session), "nothing is kept where nothing is reused"


def test_a_picture_whose_features_do_not_fit_beside_others_waits(sdxl: Model) -> None:
    request = ask(CMLoRA(refresh="all", interval=3), steps=3)
    [(expected, record)] = rendered(sdxl, request)
    sdxl.feature_limit = int(1.5 * record.feature_bytes)
    session = Session(sdxl, output_type="latent")
    ids = [session.submit(replace(request, seed=seed)).id for seed in (1, 2)]
    events = list(session.drain())
    order = [(type(event), event.id) for event in events if isinstance(event, Started | Finished)]
    assert order == [(Started, ids[0]), (Finished, ids[0]), (Started, ids[1]), (Finished, ids[1])]
    [latents] = [event.image for event in events if isinstance(event, Finished) and event.id == ids[0]]
    assert torch.equal(latents, expected)  # type: ignore[arg-type]


def test_features_that_never_fit_are_kept_on_the_host(sdxl: Model) -> None:
    request = ask(CMLoRA(refresh="all", interval=3), steps=3)
    [(expected, _)] = rendered(sdxl, request)
    sdxl.feature_limit = 10
    session = Session(sdxl, output_type="latent")
    session.submit(request)
    events = session.step()
    assert session._flying[0].features.on_host
    events += list(session.drain())
    [found] = [event.image for event in events if isinstance(event, Finished)]
    assert torch.equal(found, expected)  # type: ignore[arg-type]


# -- which lane runs how ---------------------------------------------------------------------------------


def flags(
    composer: Composer, uses: tuple[Use, ...], count: int, model: Model, **settings: object
) -> list[str]:
    """One letter a lane and step: F in full, s shallow; positive lanes only."""
    request = ask(composer, adapters=uses, steps=count, guidance_scale=1.0, **settings)
    found = schedule(request.resolved(model.facts).plans())
    return ["".join("Fs"[shallow] for shallow in step.shallow) for step in found]


def test_each_turn_of_switch_starts_in_full(sdxl: Model) -> None:
    uses = (Use("a"), Use("b"))
    assert flags(Switch(interval=3), uses, 9, sdxl, reuse=2) == list("FsFFsFFsF")


def test_cmlora_refreshes_as_its_mode_says(sdxl: Model) -> None:
    uses = (Use("a"), Use("b"), Use("c"))
    found = {mode: flags(CMLoRA(refresh=mode), uses, 8, sdxl) for mode in ("dominant_only", "all")}
    # refreshes at 0, 2, 3, 6, 7: two, then three, then two
    assert found["dominant_only"] == ["FFF", "sss", "sFs", "ssF", "sss", "sss", "Fss", "sFs"]
    assert found["all"] == ["FFF", "sss", "FFF", "FFF", "sss", "sss", "FFF", "FFF"]
    assert flags(CMLoRA(refresh="every_step_in_turn"), uses, 4, sdxl) == ["FFF", "sFs", "ssF", "Fss"]
    low = (Use("a"), Use("b"), Use("c", band="low"))
    assert flags(CMLoRA(refresh="every_step_in_turn"), low, 5, sdxl) == ["FFF", "sFs", "Fss", "Fss", "sFF"]
    assert flags(CMLoRA(refresh="dominant_every_step", interval=2), uses, 4, sdxl) == [
        "FFF",
        "Fss",
        "sFs",
        "sFs",
    ]


def test_a_strength_that_moves_by_more_than_a_tenth_is_evaluated_in_full(sdxl: Model) -> None:
    still = Use("a", schedule=Schedule(((0.5, 0.95),)))
    moved = Use("a", schedule=Schedule(((0.5, 0.8),)))
    assert flags(Merge(), (still,), 6, sdxl, reuse=6) == list("Fsssss")
    assert flags(Merge(), (moved,), 6, sdxl, reuse=6) == list("FssFss")


def test_features_are_reused_up_to_the_plans_age_only() -> None:
    mix = Mix((Use("a"),))
    plans = [
        replace(plan, lanes=tuple(replace(lane, fresh=False) for lane in plan.lanes))
        for plan in (Merge().plan(Step(index, 14, 1.0), mix) for index in range(14))
    ]
    found = schedule(plans)
    assert ["Fs"[step.shallow[0]] for step in found] == list("FsssssFsssssFs")
    assert [bool(step.kept) for step in found] == [True] * 5 + [False] + [True] * 5 + [False] + [True, False]
    assert most_kept(found) == 1
    assert passes_of(plans, remembering=True) == found
    assert passes_of(plans, remembering=False) == (Passes((False,), frozenset()),) * 14
    assert schedule([]) == ()
    assert most_kept([Passes((), frozenset())]) == 0
    one, other = Passes((), frozenset([("a",)])), Passes((), frozenset([("b",)]))
    assert most_kept([one, other]) == 2, "the new ones are made while the old ones are still there"


# -- requests --------------------------------------------------------------------------------------------


def test_bands_come_from_the_user_then_the_profile_then_the_category(
    sdxl: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = sdxl.store.known["b"]
    background = replace(known, metadata=replace(known.metadata, category="Background"))
    monkeypatch.setitem(sdxl.store.known, "b", background)  # type: ignore[arg-type]
    uses = (Use("a"), Use("b"), Use("c", band="low"))

    def bands() -> list[str | None]:
        return [use.band for use in ask(CMLoRA(), adapters=uses).resolved(sdxl.facts).uses]

    assert bands() == ["high", "low", "low"]
    monkeypatch.setitem(sdxl.profiled, "a", "low")
    monkeypatch.setitem(sdxl.profiled, "b", "high")
    monkeypatch.setitem(sdxl.profiled, "c", "high")
    assert bands() == ["low", "high", "low"]
    [(_, record)] = rendered(sdxl, ask(CMLoRA(), adapters=uses, steps=1))
    assert [applied.band for applied in record.adapters] == ["low", "high", "low"]
    assert [use.band for use in ask(Merge(), adapters=uses).resolved(sdxl.facts).uses] == [None, None, "low"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reuse": 0}, "reuse=0 must be a whole number in 1"),
        ({"reuse": True}, "reuse=True must be a whole number"),
        ({"reuse": 2, "composer": CMLoRA()}, "cmlora decides by itself"),
        ({"cut": "middle"}, "published or deep"),
    ],
)
def test_senseless_reuse_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(StudioError, match=message):
        Request("a fox", **settings)  # type: ignore[arg-type]


def test_a_cut_that_leaves_nothing_out_is_refused(sdxl: Model) -> None:
    assert cuts_of({"block_out_channels": (8, 8)}, "deep") == ("published",)
    assert cuts_of({"block_out_channels": (8, 8, 8)}, "deep") == ("deep", "published")
    facts = replace(sdxl.facts, cuts=("published",))
    with pytest.raises(StudioError, match="leaves nothing out"):
        ask(CMLoRA(), cut="deep").resolved(facts)
    assert ask(CMLoRA()).resolved(facts).cut == "published"
    assert ask(Merge()).resolved(facts).cut is None


def test_steps_carry_the_latents(sdxl: Model) -> None:
    session = Session(sdxl, output_type="latent")
    session.submit(ask(Merge(), steps=2))
    events = list(session.drain())
    [final] = [event.image for event in events if isinstance(event, Finished)]
    last = [event.latents for event in events if isinstance(event, Stepped)][-1]
    assert torch.equal(last[0], final)  # type: ignore[arg-type]
