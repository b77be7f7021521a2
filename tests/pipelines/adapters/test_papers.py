"""The types of the literature: each layer does what the paper's equation says in dense form, written here once more."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from composers import Use
from pipelines.adapters import inspect_file, read_adapter
from pipelines.adapters.kinds import APPLIED
from pipelines.adapters.kinds.papers import Paper
from pipelines.checkpoints import load_checkpoint
from pipelines.engine.reference import merged
from pipelines.errors import AdapterError, AdapterFormatError
from pipelines.model import Model as WholeModel
from tests.fuzzing import cases

from ..lanes import relative, row_of, unet_inputs

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
RESNET = "down_blocks.2.resnets.0"
LAYERS = (
    *(f"unet.{BLOCK}.{name}" for name in ("attn1.to_q", "attn2.to_k", "ff.net.2")),
    *(f"unet.{RESNET}.{name}" for name in ("conv_shortcut", "conv1")),
    *(f"text_encoder.encoder.layers.1.{name}" for name in ("self_attn.q_proj", "mlp.fc1")),
)
ALPHA = 3.0
Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A type as its paper has it.

    make: a layer's parts by (out, in, channels). pools: what all layers share. new: (base weight W [out, in] in double
    precision, parts, pools, channels) -> W'. rank: what alpha is divided by. Parts and pools come in double precision.
    """

    kind: str
    make: Callable[[int, int, int], Parts]
    new: Callable[[Tensor, Parts, Parts, int], Tensor]
    rank: int = 1
    pools: Callable[[], Parts] = dict


def svd(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, V^T) of the greatest, with the signs of our layout."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    for place in range(rank):
        if u[u[:, place].abs().argmax(), place] < 0:
            u[:, place] *= -1
            v[place] *= -1
    return u[:, :rank], torch.diag(s[:rank]), v[:rank]


def bora(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
    new = weight + ALPHA / 2 * p["up"] @ p["down"]
    taps = weight.shape[1] // channels
    columns = new.view(len(new), channels, taps).norm(dim=(0, 2)).repeat_interleave(taps)
    new = new / columns * p["in"].repeat_interleave(taps)
    return new / new.norm(dim=1, keepdim=True) * p["out"][:, None]


def edora(axis: str) -> Callable[[Tensor, Parts, Parts, int], Tensor]:
    def new(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
        u, s, v = svd(weight, 2)
        found = weight + ALPHA / 2 * u @ s @ p["core"] @ v
        if axis == "out":
            return found / found.norm(dim=1, keepdim=True) * p["length"]
        taps = weight.shape[1] // channels
        norms = found.view(len(found), channels, taps).norm(dim=(0, 2))
        return found * (p["length"].flatten() / norms).repeat_interleave(taps)

    return new


def loldu(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
    order, lower, upper = torch.linalg.lu(weight)
    pivots = upper.diagonal()
    upper = upper / pivots[:, None]
    left, right = order @ lower[:, :2], upper[:2]
    rest = weight - ALPHA / 2 * left @ torch.diag(pivots[:2]) @ right
    return rest + p["scale"] * left @ torch.diag(p["z"]) @ right


def mora(turned: bool) -> Callable[[Tensor, Parts, Parts, int], Tensor]:
    """The published code's way, on the columns of the unit matrix."""

    def new(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
        out, width = weight.shape
        square = p["turned" if turned else "shared"]
        size = len(square)
        x = torch.eye(width, dtype=weight.dtype)
        if width % size:
            x = torch.cat([x, x[:, : size - width % size]], dim=1)
        x = x.view(width, -1, size)
        if turned:
            inverse = 1.0 / 10000 ** (torch.arange(0, size, 2).double() / size)
            angles = torch.outer(torch.arange(x.shape[1]).double(), inverse)
            cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()
            x = x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1) * sin
            y = (x @ square.T).flatten(1)
        else:
            y = x.sum(dim=1) @ square.T
        y = torch.cat([y] * -(-out // y.shape[1]), dim=1)[:, :out]
        return weight + ALPHA * y.T

    return new


def melora(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
    blocks = [up @ down for up, down in zip(p["up"], p["down"], strict=True)]
    return weight + ALPHA / 2 * torch.block_diag(*blocks)


def mos(weight: Tensor, p: Parts, pools: Parts, channels: int) -> Tensor:
    rows, columns = (
        torch.stack([torch.cat([pools[half][int(n)] for n in row]) for row in p[half]])
        for half in ("down", "up")
    )
    return weight + ALPHA / 3 * columns.T @ rows


def surm(part: str) -> Callable[[Tensor, Parts, Parts, int], Tensor]:
    def new(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
        out, width = weight.shape
        numbers = p[part]
        change = torch.empty_like(weight)
        for row in range(out):
            for column in range(width):
                place = (row - column) % len(numbers) if part == "circulant" else row - column + width - 1
                change[row, column] = numbers[place]
        return weight + ALPHA * change

    return new


def smt(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
    new = weight.clone()
    for block, (row, column) in zip(p["blocks"], p["places"].long().tolist(), strict=True):
        new[4 * row : 4 * row + 4, 2 * column : 2 * column + 2] += ALPHA * block
    return new


def s2ft(weight: Tensor, p: Parts, _: Parts, channels: int) -> Tensor:
    new = weight.clone()
    for number, values in zip(p.get("rows", ()), p.get("row_values", ()), strict=True):
        new[int(number)] += ALPHA * values
    for place, number in enumerate(p.get("columns", ())):
        new[:, int(number)] += ALPHA * p["column_values"][:, place]
    return new


def half(power: float) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    def outer(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        u, s, v = svd(weight, rank)
        return u @ s**power, s ** (1 - power) @ v

    return outer


def rand(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.3


def some(count: int, most: int) -> Tensor:
    return torch.randperm(most)[:count]


CASES: Mapping[str, Case] = {
    "BoRA": Case(
        "BoRA",
        lambda out, width, channels: {
            "down": rand(2, width), "up": rand(out, 2), "in": 1 + rand(channels), "out": 1 + rand(out),
        },
        bora, 2,
    ),
    "EDoRA of the outputs": Case(
        "EDoRA", lambda out, width, channels: {"core": rand(2, 2), "length": 1 + rand(out, 1)}, edora("out"), 2
    ),
    "EDoRA of the inputs": Case(
        "EDoRA", lambda out, width, channels: {"core": rand(2, 2), "length": 1 + rand(1, channels)}, edora("in"), 2
    ),
    "LoRA-XS": Case(
        "LoRA-XS",
        lambda out, width, channels: {"core": rand(3, 3)},
        lambda w, p, _, c: w + ALPHA / 3 * (lambda u, s, v: u @ s @ p["core"] @ v)(*svd(w, 3)),
        3,
    ),
    "LoRA-XS with its frame": Case(
        "LoRA-XS",
        lambda out, width, channels: {"core": rand(3, 3), "down": rand(3, width), "up": rand(out, 3)},
        lambda w, p, _, c: w + ALPHA / 3 * p["up"] @ p["core"] @ p["down"],
        3,
    ),
    "NoRA": Case(
        "NoRA",
        lambda out, width, channels: {"inner_down": rand(2, 4), "inner_up": rand(4, 2)},
        lambda w, p, _, c: w
        + ALPHA / 2 * (lambda u, s, v: u @ s**0.5 @ p["inner_up"] @ p["inner_down"] @ s**0.5 @ v)(*svd(w, 4)),
        2,
    ),
    "LoLDU": Case("LoLDU", lambda out, width, channels: {"z": rand(2), "scale": 1 + rand(1)}, loldu, 2),
    "MoRA, sharing": Case("MoRA", lambda out, width, channels: {"shared": rand(6, 6)}, mora(False)),
    "MoRA, turning": Case("MoRA", lambda out, width, channels: {"turned": rand(6, 6)}, mora(True)),
    "MELoRA": Case(
        "MELoRA",
        lambda out, width, channels: {"down": rand(2, 2, width // 2), "up": rand(2, out // 2, 2)},
        melora, 2,
    ),
    "MoSLoRA": Case(
        "MoSLoRA",
        lambda out, width, channels: {"down": rand(2, width), "mixer": rand(2, 2), "up": rand(out, 2)},
        lambda w, p, _, c: w + ALPHA / 2 * p["up"] @ p["mixer"] @ p["down"],
        2,
    ),
    "LaMDA": Case(
        "LaMDA",
        lambda out, width, channels: {"first": rand(2, width), "core": rand(2, 2), "second": rand(out, 2)},
        lambda w, p, _, c: w + ALPHA / 2 * p["second"] @ p["core"] @ p["first"],
        2,
    ),
    "MoS": Case(
        "MoS",
        lambda out, width, channels: {
            "down": torch.randint(5, (3, width // 2)), "up": torch.randint(7, (3, out // 4)),
        },
        mos, 3,
        lambda: {"down": rand(5, 2), "up": rand(7, 4)},
    ),
    "ShareLoRA, one down": Case(
        "ShareLoRA",
        lambda out, width, channels: {"up": rand(out, 2)},
        lambda w, p, pools, c: w + ALPHA / 2 * p["up"] @ pools["down"][:, : w.shape[1]],
        2,
        lambda: {"down": rand(2, 200)},
    ),
    "ShareLoRA, one up": Case(
        "ShareLoRA",
        lambda out, width, channels: {"down": rand(2, width)},
        lambda w, p, pools, c: w + ALPHA / 2 * pools["up"][: w.shape[0]] @ p["down"],
        2,
        lambda: {"up": rand(200, 2)},
    ),
    "PMSS": Case(
        "PMSS",
        lambda out, width, channels: {"columns": some(2, width), "rows": some(3, out), "core": rand(2, 3)},
        lambda w, p, _, c: w + ALPHA / 2 * w[:, p["columns"].long()] @ p["core"] @ w[p["rows"].long()],
        2,
    ),
    "SURM, Kronecker": Case(
        "SURM",
        lambda out, width, channels: {"first": rand(2, 4), "second": rand(out // 2, width // 4)},
        lambda w, p, _, c: w + ALPHA * torch.kron(p["first"], p["second"]),
    ),
    "SURM, circulant": Case(
        "SURM", lambda out, width, channels: {"circulant": rand(max(out, width) + 1)}, surm("circulant")
    ),
    "SURM, Toeplitz": Case(
        "SURM", lambda out, width, channels: {"toeplitz": rand(out + width - 1)}, surm("toeplitz")
    ),
    "SMT": Case(
        "SMT",
        lambda out, width, channels: {"blocks": rand(2, 4, 2), "places": torch.tensor([[1, 0], [0, width // 2 - 1]])},
        smt,
    ),
    "S²FT of rows": Case(
        "S²FT", lambda out, width, channels: {"rows": some(3, out), "row_values": rand(3, width)}, s2ft
    ),
    "S²FT of both": Case(
        "S²FT",
        lambda out, width, channels: {
            "rows": some(2, out), "row_values": rand(2, width),
            "columns": some(3, width), "column_values": rand(out, 3),
        },
        s2ft,
    ),
    "DiffuseKronA": Case(
        "DiffuseKronA",
        lambda out, width, channels: {"first": rand(4, 2), "second": rand(out // 4, width // 2)},
        lambda w, p, _, c: w + ALPHA * torch.kron(p["first"], p["second"]),
    ),
    "AFLoRA": Case(
        "AFLoRA",
        lambda out, width, channels: {
            "down": rand(2, width), "up": rand(out, 2), "inner": 1 + rand(2), "outer": 1 + rand(out),
        },
        lambda w, p, _, c: w
        + ALPHA / 2 * torch.diag(p["outer"]) @ p["up"] @ torch.diag(p["inner"]) @ p["down"],
        2,
    ),
}  # fmt: skip
WORDS = {kind.name: kind.word for kind in APPLIED if isinstance(kind, Paper)}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def parts_of(case: Case, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Parts], Parts]:
    """(layer -> its parts, the pools)."""
    made = {}
    for layer, shape in shapes.items():
        made[layer] = case.make(shape[0], torch.Size(shape[1:]).numel(), shape[1])
    return made, case.pools()


def file_of(case: Case, made: Mapping[str, Parts], pools: Parts) -> dict[str, Tensor]:
    word = WORDS[case.kind]
    tensors = {f"{word}_{name}": tensor for name, tensor in pools.items()}
    for layer, parts in made.items():
        tensors |= {f"{layer}.{word}.{part}": tensor for part, tensor in parts.items()}
        tensors[f"{layer}.alpha"] = torch.tensor(ALPHA)
    return tensors


def wide(parts: Parts) -> Parts:
    return {name: tensor.double() for name, tensor in parts.items()}


def test_every_paper_has_a_case():
    assert {case.kind for case in CASES.values()} == set(WORDS)


@pytest.mark.parametrize("name", CASES)
def test_each_layer_does_what_the_paper_says(name, sdxl, save):
    case = CASES[name]
    layers = {layer: sdxl.layers.target(*layer.split(".", 1)) for layer in LAYERS}
    made, pools = parts_of(case, {layer: target.shape for layer, target in layers.items()})
    tensors = file_of(case, made, pools)
    path = save(tensors, {"lora_studio.kind": case.kind})
    adapter = read_adapter(path, sdxl.layers, "fox")
    assert set(adapter.layers) == set(LAYERS)  # every key was applied
    assert not any("left out" in note or "ignored" in note for note in adapter.report.notes)
    assert inspect_file(path).kinds == (case.kind,)
    assert not inspect_file(path).refused
    for layer, target in layers.items():
        weight = target.weight()
        base = weight.double().flatten(1)
        wanted = case.new(base.clone(), wide(made[layer]), wide(pools), target.shape[1])
        got = weight + adapter.layers[layer].change(weight)
        x = torch.randn(base.shape[1], 20)
        outputs, expected = got.flatten(1) @ x, (wanted @ x.double()).float()
        assert (expected - weight.flatten(1) @ x).norm() > 0.01 * expected.norm(), layer
        assert (outputs - expected).norm() <= 1e-5 * expected.norm(), layer


@torch.inference_mode()
def test_pictures_of_all_papers_share_a_batch(model_folder, save):
    """One picture of each type, one of several types, and one plain: each is what it is alone. At strength 0 it is the
    base model's, bit for bit."""
    model, fresh = WholeModel(load_checkpoint(model_folder)), load_checkpoint(model_folder).unet
    found: dict[object, tuple[str, tuple[int, ...]]] = {}  # a layer of each sort
    for name, module in fresh.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(n % 16 for n in module.weight.shape[:2]):
            shape = tuple(module.weight.shape)
            found.setdefault((type(module), shape[2:], "attn" in name), (f"unet.{name}", shape))
    shapes = dict(found.values())
    for name, case in CASES.items():
        made, pools = parts_of(case, shapes)
        if case.kind == "ShareLoRA":
            pools = {half: rand(2, 4000) if half == "down" else rand(4000, 2) for half in pools}
        path = save(file_of(case, made, pools), {"lora_studio.kind": case.kind})
        model.bank.load(read_adapter(path, model.layers, name))
    names = list(CASES)
    mixes = [(Use(name, 0.2),) for name in names] + [tuple(Use(name, 0.1) for name in names[::4]), ()]
    for start in range(0, len(mixes), 8):
        rows = mixes[start : start + 8]
        inputs = unet_inputs(model, len(rows))
        with model.bank.active("unet", rows):
            together = model.unet(**inputs).sample
        for row, uses in enumerate(rows):
            alone = merged(model.unet, "unet", model.bank.adapters, uses)(**row_of(inputs, row)).sample
            assert relative(together[row], alone[0]) < 5e-5, uses
        with model.bank.active("unet", [tuple(Use(use.adapter, 0.0) for use in uses) for uses in rows]):
            assert torch.equal(model.unet(**inputs).sample, fresh(**inputs).sample)


# Hostile files ------------------------------------------------------------------------------------------

LAYER = LAYERS[1]


def one_layer(name: str, sdxl) -> tuple[str, Parts, dict[str, Tensor]]:
    case = CASES[name]
    shape = sdxl.layers.target(*LAYER.split(".", 1)).shape
    made, pools = parts_of(case, {LAYER: shape})
    return f"{LAYER}.{WORDS[case.kind]}", made[LAYER], file_of(case, made, pools)


SPARE = {("LoLDU", "scale")}
"""Parts without which a layer is whole."""
FREE = {("LoLDU", "z"), ("SURM, circulant", "circulant")}
"""Parts that may be longer than they are."""


@pytest.mark.parametrize("name", CASES)
def test_a_part_that_is_missing_or_odd_is_refused(name, sdxl, save):
    stem, parts, tensors = one_layer(name, sdxl)
    for part, value in parts.items():
        odd = {
            "of three axes": torch.ones(3, 5, 7).to(value.dtype),
            "empty": value[:0],
            "long": torch.cat([value, value.flip(0)[:1]]),
            "a number": torch.tensor(1).to(value.dtype),
            "huge": torch.ones(1, 1).expand(50_000, 2).to(value.dtype),
        }
        if value.is_floating_point():
            odd |= {"NaN": value * float("nan"), "whole numbers": torch.ones_like(value).long()}
        else:
            odd |= {"below 0": value - 100, "beyond": value + 10**6, "floats": value.float()}
        if (name, part) in FREE:
            del odd["long"]
        for what, other in odd.items():
            with pytest.raises(AdapterError) as caught:
                read_adapter(save(tensors | {f"{stem}.{part}": other}), sdxl.layers, "fox")
            assert "fox.safetensors" in str(caught.value), what
        rest = {key: tensor for key, tensor in tensors.items() if key != f"{stem}.{part}"}
        if (name, part) not in SPARE:
            with pytest.raises(AdapterError):
                read_adapter(save(rest), sdxl.layers, "fox")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.pools()])
def test_a_pool_that_is_missing_or_odd_is_refused(name, sdxl, save):
    word = WORDS[CASES[name].kind]
    _, _, tensors = one_layer(name, sdxl)
    for key in [key for key in tensors if key.startswith(f"{word}_")]:
        for other in (
            torch.ones(3),
            torch.ones(3, 3),
            torch.ones(2, 2, 2),
            tensors[key] * float("nan"),
            None,
        ):
            changed = (
                tensors | {key: other}
                if other is not None
                else {k: v for k, v in tensors.items() if k != key}
            )
            with pytest.raises(AdapterError):
                read_adapter(save(changed), sdxl.layers, "fox")


@pytest.mark.parametrize(
    ("name", "part"), [("SMT", "places"), ("S²FT of rows", "rows"), ("S²FT of both", "columns")]
)
def test_a_place_that_comes_twice_is_refused(name, part, sdxl, save):
    stem, parts, tensors = one_layer(name, sdxl)
    twice = parts[part][:1].expand(parts[part].shape).clone()
    with pytest.raises(AdapterFormatError, match="twice"):
        read_adapter(save(tensors | {f"{stem}.{part}": twice}), sdxl.layers, "fox")


def test_a_header_of_another_type_is_refused(sdxl, save):
    _, _, tensors = one_layer("BoRA", sdxl)
    for said in ("EDoRA", "", "x" * 100_000, "bora"):
        path = save(tensors, {"lora_studio.kind": said})
        with pytest.raises(AdapterFormatError, match=r"lora_studio\.kind") as caught:
            read_adapter(path, sdxl.layers, "fox")
        assert len(str(caught.value)) < 300
        assert "lora_studio.kind" in inspect_file(path).refused
    for metadata in ({}, {"lora_studio.kind": "BoRA"}, {"lora_studio.kind": "EDoRA, BoRA"}):
        read_adapter(save(tensors, metadata), sdxl.layers, "fox")


def test_a_header_that_the_keys_do_not_show_is_refused(sdxl, save):
    """As where a program kept only the parts that it knew."""
    stem = f"lora_unet_{LAYER.removeprefix('unet.').replace('.', '_')}"
    shape = sdxl.layers.target(*LAYER.split(".", 1)).shape
    plain = {f"{stem}.lora_down.weight": rand(2, shape[1]), f"{stem}.lora_up.weight": rand(shape[0], 2)}
    path = save(plain, {"lora_studio.kind": "BoRA"})
    with pytest.raises(AdapterFormatError, match="BoRA"):
        read_adapter(path, sdxl.layers, "fox")
    assert "BoRA" in inspect_file(path).refused


def test_a_layer_may_be_of_a_paper_and_have_a_bias_of_its_own(sdxl, save):
    _, _, tensors = one_layer("MoSLoRA", sdxl)
    tensors[f"{LAYER}.diff_b"] = torch.ones(8)
    factors = read_adapter(save(tensors, {"lora_studio.kind": "MoSLoRA"}), sdxl.layers, "fox").layers[LAYER]
    assert factors.shift is not None
    assert factors.low_rank


def test_what_two_forms_of_one_type_say_together_is_refused(sdxl, save):
    for one, other in (("SURM, Toeplitz", "SURM, circulant"), ("MoRA, sharing", "MoRA, turning")):
        tensors = one_layer(one, sdxl)[2] | one_layer(other, sdxl)[2]
        with pytest.raises(AdapterError):
            read_adapter(save(tensors), sdxl.layers, "fox")


def test_a_file_without_frames_for_a_norm_is_refused(sdxl, save):
    tensors = {"unet.conv_norm_out.lora_xs.core": torch.ones(2, 2)}
    with pytest.raises(AdapterFormatError, match="norm"):
        read_adapter(save(tensors), sdxl.layers, "fox")


@cases(60, data=st.data())
def test_any_shapes_are_read_or_refused(sdxl, tmp_path_factory, data):
    kind = data.draw(st.sampled_from([kind for kind in APPLIED if isinstance(kind, Paper)]))
    own = data.draw(st.sets(st.sampled_from(sorted(kind.parts)), min_size=1))
    length = st.sampled_from([0, 1, 2, 4, 8, 40, 47])
    tensors = {}
    for key in [*(f"{LAYER}.{kind.word}.{part}" for part in sorted(own)), *sorted(kind.shared)]:
        shape = data.draw(st.lists(length, min_size=0, max_size=3))
        whole = key.rsplit(".", 1)[-1] in kind.indices and data.draw(st.booleans())
        tensors[key] = torch.randint(-1, 9, shape) if whole else torch.randn(shape)
    path = tmp_path_factory.mktemp("odd") / "fox.safetensors"
    save_file(tensors, path)
    with contextlib.suppress(AdapterError):
        read = read_adapter(path, sdxl.layers, "fox")
        weight = sdxl.layers.target(*LAYER.split(".", 1)).weight()
        assert read.layers[LAYER].change(weight).shape == weight.shape


def test_reading_leaves_the_base_as_it_is(sdxl, save):
    before = copy.deepcopy(sdxl.unet.state_dict())
    for name in CASES:
        read_adapter(save(one_layer(name, sdxl)[2]), sdxl.layers, "fox")
    assert all(torch.equal(before[key], value) for key, value in sdxl.unet.state_dict().items())
