"""For every naming scheme: a file that names every layer in that scheme, with its own rank and alpha per
layer, is applied exactly on every layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.adapters import read_adapter
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
    Scheme("diffusers attention processors", lambda m, _: f"unet.{processor(m)}", lambda c, m: f"{c}.{old_text(m)}",
           "_lora.up.weight", "_lora.down.weight", trained=attention),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.label}{s.up}")
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
