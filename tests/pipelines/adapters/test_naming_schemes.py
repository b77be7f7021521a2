"""For every naming scheme: a file that names every layer in that scheme, with its own rank and alpha per
layer, is applied exactly on every layer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pipelines.adapters import read_adapter
from pipelines.errors import AdapterFormatError
from pipelines.families.unet_names import sgm_names


def any_layer(module: str) -> bool:
    return True


def attention(module: str) -> bool:
    return re.search(r"attn\d?\.(to_|[qkvout]+_proj)", module) is not None


def in_file(module: str) -> str:
    """A text encoder layer as files name it, with `text_model.`, which transformers 5 sometimes drops."""
    return module if module.startswith("text_") else f"text_model.{module}"


def processor(module: str) -> str:
    """…attn1.to_out.0 -> …attn1.processor.to_out, the `_lora` coming with the leaf."""
    head, _, projection = module.removesuffix(".0").rpartition(".")
    return f"{head}.processor.{projection}"


def old_text(module: str) -> str:
    """…self_attn.q_proj -> …self_attn.to_q, the `_lora` coming with the leaf."""
    head, _, projection = in_file(module).rpartition(".")
    return f"{head}.to_{projection.removesuffix('_proj')}"


@dataclass(frozen=True)
class Scheme:
    """How one habit writes keys. unet, text: layer name -> what stands before the leaf.

    text None: the habit knows no text encoders (or cannot tell two of them apart).
    """

    label: str
    unet: Callable[[str, dict[str, str]], str]
    text: Callable[[str, str], str] | None
    up: str
    down: str
    alpha: str | None = None
    trained: Callable[[str], bool] = any_layer


NUMBER = {"text_encoder": "1", "text_encoder_2": "2"}
KOHYA = {"up": ".lora_up.weight", "down": ".lora_down.weight", "alpha": ".alpha"}
PEFT = {"up": ".lora_B.weight", "down": ".lora_A.weight"}


def flat(prefix: str, module: str) -> str:
    return prefix + module.replace(".", "_")


def kohya_text(component: str, module: str) -> str:
    return flat(f"lora_te{NUMBER[component]}_", in_file(module))


def dotted_text(component: str, module: str) -> str:
    return f"{component}.{in_file(module)}"


SCHEMES = [
    Scheme("kohya (diffusers names)", lambda m, _: flat("lora_unet_", m), kohya_text, **KOHYA),
    Scheme("kohya (SGM names)", lambda m, sgm: flat("lora_unet_", sgm[m]), kohya_text, **KOHYA),
    Scheme("LyCORIS (diffusers names)", lambda m, _: flat("lycoris_", m), None, **KOHYA),
    Scheme("diffusers/PEFT", lambda m, _: f"unet.{m}", dotted_text, **PEFT),
    Scheme("diffusers/PEFT", lambda m, _: f"unet.{m}", dotted_text, ".lora_B.default.weight", ".lora_A.default.weight"),
    Scheme("diffusers/PEFT", lambda m, _: f"unet.{m}", dotted_text, ".lora_B.fox-1.weight", ".lora_A.fox-1.weight"),
    Scheme("diffusers/PEFT", lambda m, _: f"unet.unet.{m}", dotted_text, **PEFT),
    Scheme("PEFT (base_model.model)", lambda m, _: f"base_model.model.unet.{m}",
           lambda c, m: f"base_model.model.{c}.{in_file(m)}", **PEFT),
    Scheme("PEFT (base_model.model)", lambda m, _: f"base_model.model.{m}", None, **PEFT),
    Scheme("bare (diffusers names)", lambda m, _: m, None, **PEFT),
    Scheme("native (SGM names)", lambda m, sgm: f"diffusion_model.{sgm[m]}",
           lambda c, m: f"text_encoders.clip_{'lg'[int(NUMBER[c]) - 1]}.transformer.{in_file(m)}", **PEFT),
    Scheme("native (SGM names)", lambda m, sgm: f"diffusion_model.{sgm[m]}", None, **KOHYA),
    Scheme("OneTrainer-like", lambda m, _: f"unet.{m}", dotted_text, **KOHYA),
    Scheme("old diffusers", lambda m, _: f"unet.{m}", dotted_text,
           ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight", ".lora_linear_layer.alpha"),
    Scheme("old diffusers", lambda m, _: f"unet.{m}", dotted_text, ".lora.up.weight", ".lora.down.weight", ".alpha"),
    Scheme("LyCORIS (diffusers names)", lambda m, _: flat("lycoris_unet_", m),
           lambda c, m: flat(f"lycoris_te{NUMBER[c]}_", in_file(m)), **KOHYA),
    Scheme("kohya (SGM names)", lambda m, sgm: flat("lora_unet_model_diffusion_model_", sgm[m]),
           lambda c, m: flat(f"lora_unet_lora_te{NUMBER[c]}_", in_file(m)), **KOHYA),
    Scheme("OneTrainer-like", lambda m, _: f"lora_unet.{m}", lambda c, m: f"lora_te{NUMBER[c]}.{in_file(m)}", **KOHYA),
    Scheme("OneTrainer-like", lambda m, sgm: f"unet.{sgm[m]}",
           lambda c, m: f"clip_{'lg'[int(NUMBER[c]) - 1]}.{in_file(m)}", **KOHYA),
    Scheme("native (SGM names)", lambda m, sgm: f"model.diffusion_model.{sgm[m]}",
           lambda c, m: f"conditioner.embedders.{int(NUMBER[c]) - 1}.transformer.{in_file(m)}", **PEFT),
    Scheme("native (SGM names)", lambda m, sgm: f"diffusion_model.{sgm[m]}",
           lambda c, m: f"cond_stage_model.clip_{'lg'[int(NUMBER[c]) - 1]}.transformer.{in_file(m)}",
           ".lora_up.weight", ".lora_down.weight", ".alpha"),
    Scheme("OneTrainer-like", lambda m, sgm: sgm[m], lambda c, m: f"te{NUMBER[c]}.{in_file(m)}", **KOHYA),
    Scheme("diffusers/PEFT", lambda m, _: f"unet.{m}", dotted_text, ".lora_B", ".lora_A", ".alpha"),
    Scheme("OneTrainer-like", lambda m, _: f"unet.{m}", dotted_text, ".up.weight", ".down.weight", ".alpha"),
    Scheme("old diffusers", lambda m, _: f"unet.{m}", dotted_text, ".lora.up", ".lora.down", ".alpha"),
    Scheme("OneTrainer-like", lambda m, _: f"unet.{m}", dotted_text,
           ".lora_up.default.weight", ".lora_down.default.weight", ".alpha"),
    Scheme("diffusers attention processors", lambda m, _: f"unet.{processor(m)}", lambda c, m: f"{c}.{old_text(m)}",
           "_lora.up.weight", "_lora.down.weight", trained=attention),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.label}{s.up} {s.unet('', {'': ''})}")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_layer_is_applied_exactly(scheme, family, request, trainer, save, assert_applied):
    model = request.getfixturevalue(family)
    sgm = sgm_names(model.modules("unet"))
    tensors, learned = {}, {}
    for component in model.layers.components:
        if component != "unet" and scheme.text is None:
            continue
        modules = {m: s for m, s in model.modules(component).items() if scheme.trained(m)}
        learned[component] = trainer.layers(modules, alpha=scheme.alpha is not None)
        for module, factors in learned[component].items():
            stem = scheme.unet(module, sgm) if component == "unet" else scheme.text(component, module)
            tensors[stem + scheme.up], tensors[stem + scheme.down] = factors.up, factors.down
            if scheme.alpha is not None:
                tensors[stem + scheme.alpha] = trainer.tensor().fill_(factors.alpha)

    adapter = read_adapter(save(tensors), model.layers, "fox")

    for component, factors in learned.items():
        assert_applied(adapter, model, component, factors)
    assert len(adapter.layers) == sum(map(len, learned.values()))
    assert scheme.label in adapter.report.naming
    assert adapter.report.applied == {c: len(learned.get(c, ())) for c in model.layers.components}


def test_both_kohya_spellings_may_stand_in_one_file(sdxl, trainer, save, assert_applied):
    sgm = sgm_names(sdxl.modules("unet"))
    learned = trainer.layers(sdxl.modules("unet"))
    tensors = {}
    for place, (module, factors) in enumerate(learned.items()):
        stem = flat("lora_unet_", sgm[module] if place % 2 else module)
        tensors |= {f"{stem}.lora_up.weight": factors.up, f"{stem}.lora_down.weight": factors.down}
        tensors[f"{stem}.alpha"] = trainer.tensor().fill_(factors.alpha)
    adapter = read_adapter(save(tensors), sdxl.layers, "fox")
    assert_applied(adapter, sdxl, "unet", learned)
    assert set(adapter.report.naming.split(" + ")) == {"kohya (diffusers names)", "kohya (SGM names)"}


def test_a_single_text_encoder_is_named_without_a_number(sd1, trainer, save, assert_applied):
    learned = trainer.layers(sd1.modules("text_encoder"))
    tensors = {}
    for module, factors in learned.items():
        stem = flat("lora_te_", in_file(module))
        tensors |= {f"{stem}.lora_up.weight": factors.up, f"{stem}.lora_down.weight": factors.down}
        tensors[f"{stem}.alpha"] = trainer.tensor().fill_(factors.alpha)
    adapter = read_adapter(save(tensors), sd1.layers, "fox")
    assert_applied(adapter, sd1, "text_encoder", learned)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_text_layers_without_an_owner_go_where_they_fit(component, sdxl, trainer, save, assert_applied):
    learned = trainer.layers(sdxl.modules(component), alpha=False)
    tensors: dict[str, Any] = {}
    for module, factors in learned.items():
        stem = f"base_model.model.{in_file(module)}"
        tensors |= {f"{stem}.lora_B.weight": factors.up, f"{stem}.lora_A.weight": factors.down}
    adapter = read_adapter(save(tensors), sdxl.layers, "fox")
    assert_applied(adapter, sdxl, component, learned)
    assert len(adapter.layers) == len(learned)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["without text_model.", "with text_model."])
def test_text_layers_match_whether_or_not_they_stand_under_text_model(
    component, wrapped, sdxl, trainer, save, assert_applied
):
    learned = trainer.layers(sdxl.modules(component), alpha=False)
    tensors = {}
    for module, factors in learned.items():
        stem = f"{component}.{in_file(module) if wrapped else module.removeprefix('text_model.')}"
        tensors |= {f"{stem}.lora_B.weight": factors.up, f"{stem}.lora_A.weight": factors.down}
    adapter = read_adapter(save(tensors), sdxl.layers, "fox")
    assert_applied(adapter, sdxl, component, learned)


# Prefixes of any writer, before any other --------------------------------------------------------------------

UNETS = ("unet", "lora_unet", "lycoris_unet", "lycoris", "diffusion_model", "model.diffusion_model", "base_model.model",
         "base_model.model.unet", "unet.base_model.model", "lora_unet.unet", "module.unet", "", "pipe.unet",
         "pipeline.unet", "network.unet", "state_dict.unet", "_fsdp_wrapped_module.unet", "adapter.unet")  # fmt: skip
TEXTS = {
    "text_encoder": ("text_encoder", "text_encoder_1", "lora_te1", "lora_te", "te1", "te", "lycoris_te1", "clip_l",
                     "clip_l.transformer", "text_encoders.clip_l.transformer", "cond_stage_model.transformer",
                     "cond_stage_model.clip_l", "conditioner.embedders.0.transformer", "base_model.model.text_encoder",
                     "lora_te_0_transformer", "lora_unet_lora_te1", "text_encoder.base_model.model",
                     "text_encoder1", "textencoder", "pipe.text_encoder", "state_dict.text_encoder"),
    "text_encoder_2": ("text_encoder_2", "lora_te2", "te2", "lycoris_te2", "clip_g", "text_encoders.clip_g.transformer",
                       "clip_g.transformer", "cond_stage_model.clip_g.transformer", "lora_text_encoder_2",
                       "conditioner.embedders.1.model", "lora_te_1_model", "base_model.model.text_encoder_2", "te_2",
                       "lora_te_2", "text_encoder2", "textencoder_2", "pipeline.text_encoder_2"),
}  # fmt: skip
ENDS = [
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
    (".lora_B", ".lora_A"),
    (".lora_up", ".lora_down"),
    (".up.weight", ".down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
]


def open_clip(module: str) -> str:
    """A text encoder layer as OpenCLIP names it; its query, key and value are joined elsewhere."""
    names = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    layer = re.fullmatch(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)", module)
    return f"transformer.resblocks.{layer[1]}.{names.get(layer[2], layer[2].replace('self_attn', 'attn'))}"


@pytest.mark.parametrize("seed", range(36))
def test_no_layer_is_lost_whatever_stands_before_and_after_its_name(
    seed, sdxl, trainer, save, assert_applied
):
    """Three dozen made-up writers: a prefix for each component, dots or underscores, old or new names, an ending."""
    choose = random.Random(seed)
    sgm = sgm_names(sdxl.modules("unet"))
    up, down = choose.choice(ENDS)
    underscores = choose.random() < 0.4
    tensors, learned = {}, {}
    for component in sdxl.layers.components:
        prefix = choose.choice(UNETS if component == "unet" else TEXTS[component])
        names = choose.choice(("old", "new"))
        modules = {m: s for m, s in sdxl.modules(component).items() if m != "text_projection"}
        learned[component] = trainer.layers(modules)
        for module, factors in learned[component].items():
            old = sgm[module] if component == "unet" else open_clip(module)
            name = old if names == "old" else module if component == "unet" else in_file(module)
            stem = f"{prefix}.{name}".lstrip(".")
            stem = stem.replace(".", "_") if underscores else stem
            tensors |= {stem + up: factors.up, stem + down: factors.down}
            tensors[f"{stem}.alpha"] = trainer.tensor().fill_(factors.alpha)

    adapter = read_adapter(save(tensors), sdxl.layers, "fox")

    for component, factors in learned.items():
        assert_applied(adapter, sdxl, component, factors)
    assert len(adapter.layers) == sum(map(len, learned.values()))
    assert not any("left out" in note for note in adapter.report.notes)


@pytest.mark.parametrize(
    "prefix", ["conditioner.embedders.1.model.", "lora_te2_", "text_encoder_2.", "1_model_"]
)
@pytest.mark.parametrize("layer", ["attn.in_proj", "attn.in_proj_weight"])
def test_open_clips_joined_query_key_and_value_become_three(prefix, layer, sdxl, trainer, save):
    """One down for three ups: their rows follow one another."""
    width = 24
    down, up = trainer.tensor(2, width), trainer.tensor(3 * width, 2)
    stem = f"{prefix}transformer.resblocks.1.{layer}"
    stem = stem if prefix.endswith(".") else stem.replace(".", "_")
    path = save(
        {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down, f"{stem}.alpha": torch.tensor(3.0)}
    )
    adapter = read_adapter(path, sdxl.layers, "fox")
    layers = [next(n for n in adapter.layers if n.endswith(f"1.self_attn.{one}_proj")) for one in "qkv"]
    torch.testing.assert_close(torch.cat([adapter.delta(name) for name in layers]), up @ down * 1.5)
    assert len(adapter.layers) == 3


def test_joined_rows_that_are_not_three_times_as_many_are_refused(sdxl, save, refused):
    stem = "lora_te2_transformer_resblocks_1_attn_in_proj"
    path = save({f"{stem}.lora_up.weight": torch.ones(50, 2), f"{stem}.lora_down.weight": torch.ones(2, 24)})
    assert "three times" in refused(AdapterFormatError, path, sdxl)


def test_a_text_encoder_that_is_named_twice_over_and_differently_is_not_guessed(sdxl, save, refused):
    stem = "lora_te1_text_encoder_2_text_model_encoder_layers_0_mlp_fc1"
    path = save({f"{stem}.lora_up.weight": torch.ones(32, 2), f"{stem}.lora_down.weight": torch.ones(2, 16)})
    assert "follow no adapter format" in refused(AdapterFormatError, path, sdxl)


@pytest.mark.parametrize("prefix", ["conditioner.embedders.1.model.", "1_model_", "lora_te2_model_"])
def test_open_clips_projection_is_refused_for_it_lies_the_other_way_round(prefix, sdxl, save, refused):
    stem = f"{prefix}text_projection"
    path = save({f"{stem}.lora_up.weight": torch.ones(20, 2), f"{stem}.lora_down.weight": torch.ones(2, 24)})
    assert "text_projection" in refused(AdapterFormatError, path, sdxl)


@pytest.mark.parametrize(("first", "second"), [("te_1", "te_2"), ("lora_te_1", "lora_te_2")])
def test_text_encoders_may_be_counted_from_1(first, second, sdxl, trainer, save, assert_applied):
    learned = {part: trainer.layers(sdxl.modules(part)) for part in ("text_encoder", "text_encoder_2")}
    tensors = {}
    for part, prefix in (("text_encoder", first), ("text_encoder_2", second)):
        for module, factors in learned[part].items():
            stem = f"{prefix}.{in_file(module)}"
            tensors |= {f"{stem}.lora_up.weight": factors.up, f"{stem}.lora_down.weight": factors.down}
            tensors[f"{stem}.alpha"] = torch.tensor(factors.alpha)
    adapter = read_adapter(save(tensors), sdxl.layers, "fox")
    for part, factors in learned.items():
        assert_applied(adapter, sdxl, part, factors)


def test_sd_scripts_oft_is_read_under_its_own_prefix(sdxl, trainer, save):
    module = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    width = sdxl.modules("unet")[module][0]
    blocks, alpha = trainer.tensor(2, width // 2, width // 2), 0.01
    path = save({f"oft_{flat('unet_', module)}.oft_blocks": blocks,
                 f"oft_{flat('unet_', module)}.alpha": torch.tensor(alpha)})  # fmt: skip
    weight = sdxl.unet.get_submodule(module).weight.detach()
    skew = blocks - blocks.mT
    skew = skew * min(1, alpha * width / float(skew.norm()))  # its bound is alpha times the outputs
    eye = torch.eye(width // 2)
    turns = (eye + skew) @ torch.linalg.inv(eye - skew)
    rows = weight.view(2, width // 2, -1)
    meant = torch.einsum("knm,kni->kmi", turns, rows).reshape(weight.shape) - weight
    change = read_adapter(path, sdxl.layers, "fox").layers[f"unet.{module}"].change(weight)
    torch.testing.assert_close(change, meant, rtol=1e-4, atol=1e-6)
