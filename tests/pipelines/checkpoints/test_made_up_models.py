"""Made-up checkpoints, as far as headers and JSON files go: each is understood or refused, with an error for people."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st

from pipelines.checkpoints.card import read_card
from pipelines.checkpoints.components import make_model_scheduler, read_json
from pipelines.checkpoints.folders import folder_family
from pipelines.checkpoints.single_file import FIRST_CONV, examine
from pipelines.errors import ModelError
from pipelines.families.family import SD1, SDXL
from pipelines.home import Entry
from studio.library.fit import fit_of_entry
from studio.library.models import _look

from ...fuzzing import cases

odd = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 9),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from([10**400, 2**63, "\ud83d", 4, 2048, "v_prediction", 10**12]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
whole = st.one_of(
    odd.map(json.dumps), st.sampled_from(["[" * 5000, "9" * 5000, "", "{", '{"a": 1e999}', "\0"])
)


def objects(*keys: str, values: st.SearchStrategy[object] = odd) -> st.SearchStrategy[str]:
    """JSON objects with some of these keys; or something else."""
    return st.one_of(
        st.dictionaries(st.sampled_from(keys), values, max_size=len(keys)).map(json.dumps), whole
    )


part = st.one_of(
    odd, st.sampled_from([["diffusers", "UNet2DConditionModel"], ["transformers", "CLIPTextModel"]])
)
sizes = st.one_of(st.integers(-1, 9), st.sampled_from([2**62, 2**63, 10**400, 1.5, None, "4"]))
entry = st.one_of(
    st.fixed_dictionaries(
        {"dtype": odd, "shape": st.lists(sizes, max_size=9), "data_offsets": st.lists(sizes, max_size=3)}
    ),
    st.just({"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 4]}),
    odd,
)
keys = st.sampled_from(
    [
        FIRST_CONV,
        "conditioner.embedders.1.model.x",
        "model.diffusion_model.label_emb.x",
        "cond_stage_model.model.x",
        "v_pred",
        "cond_stage_model.transformer.text_model.x",
        "first_stage_model.x",
        "x.absmax",
        "lora_up.",
        "",
        "__metadata__",
    ]
)


@cases(
    ci=150,
    header=st.one_of(
        st.dictionaries(keys, entry, max_size=6).map(json.dumps).map(str.encode), st.binary(max_size=60)
    ),
    note=st.one_of(
        st.none(),
        st.text(max_size=30),
        st.sampled_from(["model: {params: {parameterization: v}}", "[" * 999]),
    ),
)
def test_any_single_file_is_understood_or_refused(header: bytes, note: str | None, tmp_path: Path) -> None:
    file = tmp_path / "odd.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    file.with_suffix(".yaml").unlink(missing_ok=True)
    if note is not None:
        file.with_suffix(".yaml").write_text(note, encoding="utf-8")
    with suppress(ModelError):
        examine(file)
    _look(file)[0].encode()


@cases(
    ci=150,
    index=objects(
        "_class_name",
        "unet",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        values=part,
    ),
    unet=objects(
        "cross_attention_dim", "in_channels", "addition_embed_type", "class_embed_type", "sample_size"
    ),
    card=objects(
        "family",
        "width",
        "steps",
        "scheduler",
        "guidance_scale",
        "examples",
        "vocabulary",
        "block_map",
        "description",
        "x",
    ),
)
def test_any_folder_is_understood_or_refused(index: str, unet: str, card: str, tmp_path: Path) -> None:
    for name, text in (("model_index.json", index), ("unet/config.json", unet), ("studio.json", card)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for read in (
        lambda: folder_family(tmp_path, read_json(tmp_path / "model_index.json")),
        lambda: fit_of_entry(Entry("odd", tmp_path)),
        lambda: read_card(tmp_path),
    ):
        with suppress(ModelError):
            read()


@cases(
    ci=150,
    config=st.dictionaries(
        st.sampled_from(
            [
                "_class_name",
                "num_train_timesteps",
                "beta_schedule",
                "beta_start",
                "beta_end",
                "trained_betas",
                "clip_sample",
                "prediction_type",
                "timestep_spacing",
                "steps_offset",
                "rescale_betas_zero_snr",
                "use_beta_sigmas",
                "use_karras_sigmas",
                "algorithm_type",
                "solver_type",
            ]
        ),
        st.one_of(odd, st.sampled_from(["linear", "scaled_linear", "epsilon", 0.00085, 1000])),
    ),
    name=st.one_of(
        st.sampled_from(
            [
                "PNDMScheduler",
                "DDIMScheduler",
                "EulerDiscreteScheduler",
                "UniPCMultistepScheduler",
                "FlaxDDIMScheduler",
            ]
        ),
        odd,
    ),
)
def test_any_scheduler_is_made_or_refused(config: dict[str, object], name: object) -> None:
    for family in (SD1, SDXL):
        with suppress(ModelError):
            make_model_scheduler({"_class_name": name, **config}, family)


@pytest.mark.parametrize("said", ["flow", "v", "flow_prediction", "", ["epsilon"], {"a": 1}, None])
def test_a_scheduler_that_predicts_something_else_is_refused_before_a_picture_is_drawn(said: object) -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "prediction_type": said}
    with pytest.raises(ModelError, match=r"prediction_type .*, which is not supported"):
        make_model_scheduler(config, SD1)
