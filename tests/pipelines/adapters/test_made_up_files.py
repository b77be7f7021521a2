"""Made-up adapter files: each is read or refused, with nothing but an error for people, within bounds of time and
memory."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from pipelines.adapters import Adapter, inspect_file, read_adapter
from pipelines.adapters.keys import LEAVES
from pipelines.adapters.peft_settings import peft_settings
from pipelines.adapters.structure import Structures
from pipelines.errors import AdapterError, AdapterFileError, StudioError
from pipelines.home.headers import LONGEST_HEADER

from ...fuzzing import cases
from ..memory_peaks import peak

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = f"lora_unet_{LAYER.replace('.', '_')}"
KEYS = (f"{FLAT}.lora_down.weight", f"{FLAT}.lora_up.weight", f"{FLAT}.alpha")


def written(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(shape: str = "[0]") -> str:
    return f'{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}'


# -- bombs -------------------------------------------------------------------------------------------------

ROOM = LONGEST_HEADER - 1000
FEW = 19_000  # tensors; as many as are read
LONG = ROOM // FEW - 100  # characters of their names

BOMBS: dict[str, Callable[[], str]] = {
    "a million entries": lambda: "{" + ",".join(f'"{n}":1' for n in range(1_000_000)) + "}",
    "tensors of no size": lambda: "{" + ",".join(f'"{n}":{entry()}' for n in range(150_000)) + "}",
    "prefixes": lambda: names("unet." * (LONG // 5)),
    "parts of a type": lambda: names("unet" + ".oft_a" * (LONG // 6)),
    "prefixes without dots": lambda: names("lora_te_" * (LONG // 8)),
    "embeddings": lambda: names("bundle_emb." + "a." * (LONG // 2 - 9)),
    "names of another family": lambda: names("lora_unet_" + "blocks.1_transformer_blocks_" * (LONG // 30)),
    "a million notes": lambda: noted(",".join(f'"{n}":""' for n in range(1_000_000))),
    "as many notes as are read": lambda: noted(",".join(f'"{n}":"{"x" * 1000}"' for n in range(9_999))),
    "one note": lambda: noted('"modelspec.title":"\N{FOX FACE}\\ud83d' + "a" * (ROOM - 1000) + '"'),
    "tags": lambda: noted('"modelspec.tags":"' + "a,b\\n" * (ROOM // 6) + '"'),
    "a frequency of tags": lambda: noted('"ss_tag_frequency":"[' + "{}," * (ROOM // 4) + '1]"'),
    "nested lists": lambda: '{"a":' + "[" * (ROOM // 2) + "]" * (ROOM // 2) + "}",
    "nested objects": lambda: '{"a":' * (ROOM // 6),
    "a name": lambda: '{"' + "a." * (ROOM // 2) + f'":{entry()}}}',
    "one name again and again": lambda: "{" + ",".join('"a":1' for _ in range(200_000)) + "}",
    "quotes": lambda: noted('"a":"' + '\\"' * (ROOM // 2 - 200) + '"'),
    "backslashes": lambda: noted('"a":"' + "\\\\" * (ROOM // 2 - 200) + '"'),
    "whole numbers": lambda: '{"a":[' + ",".join(["9" * 4299] * (ROOM // 4300 - 1)) + "]}",
    "empty lists": lambda: '{"a":[' + "[]," * (ROOM // 3 - 9) + "1]}",
    "a shape": lambda: f'{{"a":{entry("[" + "1," * 200_000 + "1]")}}}',
    "a dtype": lambda: f'{{"a":{entry().replace("F32", "x" * (ROOM - 100))}}}',
    "what is not ended": lambda: '{"' + "a" * (ROOM - 9),
}


def names(start: str) -> str:
    return "{" + ",".join(f'"{start}{n:06d}.lora_down.weight":{entry()}' for n in range(FEW)) + "}"


def noted(notes: str) -> str:
    return f'{{"__metadata__":{{{notes}}},"{KEYS[0]}":{entry()}}}'


@pytest.mark.parametrize("bomb", BOMBS)
def test_every_header_is_read_or_refused_in_little_time_and_memory(
    bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = BOMBS[bomb]().encode()
    path = written(tmp_path / "fox.safetensors", header)
    assert len(header) <= LONGEST_HEADER
    monkeypatch.setattr("pipelines.adapters.inspection.read_structure", Structures().read)

    def look() -> None:
        with suppress(AdapterFileError):
            assert len(str(inspect_file(path))) < 1_000_000

    began = time.process_time()
    taken = peak(look)
    assert time.process_time() - began < 5
    assert taken < 200 * 2**20


# -- headers -----------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-2, 9),
    st.sampled_from(
        [2**31, 2**40, 2**62, 2**63, 10**400, 1.0, 0.5, float("nan"), float("inf"), True, None, "1", []]
    ),
)
odd = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=4), st.just("\ud83d"), st.just("9" * 400)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
dtypes = st.sampled_from(
    ["F32", "F16", "BF16", "F64", "F8_E4M3", "I64", "U8", "BOOL", "C64", "F8_E8M0", "F4", "", "f32"]
)
stems = st.sampled_from(
    [
        *(
            FLAT,
            f"unet.{LAYER}",
            f"base_model.model.{LAYER}",
            LAYER,
            "unet.unet",
            "lora_unet_",
            "",
            "bundle_emb.a",
        ),
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    ]
)
key_texts = st.one_of(
    st.builds(lambda stem, leaf: f"{stem}.{leaf}", stems, st.sampled_from(sorted(LEAVES))),
    st.text(max_size=12),
    st.sampled_from([*KEYS, "__metadata__", "position_ids", "lora_unet." * 200]),
)
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": dtypes,
            "shape": st.lists(numbers, max_size=5),
            "data_offsets": st.lists(numbers, max_size=3),
        }
    ),
    odd,
)
notes = st.dictionaries(
    st.one_of(
        st.sampled_from(
            [
                "modelspec.title",
                "modelspec.tags",
                "modelspec.trigger_phrase",
                "ss_tag_frequency",
                "ss_base_model_version",
                "ss_v2",
                "ss_clip_skip",
                "lora_studio.category",
                "lora_studio.preferred_weight",
                "lora_adapter_metadata",
                "flora.version",
                "flora.reduction",
                "sshs_model_hash",
                "modelspec.architecture",
                "lora_alpha",
                "r",
                "alpha_pattern",
                "use_rslora",
                "unet.lora_alpha",
                "peft_config",
                "peft_type",
                "ss_network_alpha",
                "ss_network_dim",
            ]
        ),
        st.text(max_size=4),
    ),
    st.one_of(
        odd,
        st.text(max_size=8),
        odd.map(json.dumps),
        st.sampled_from(
            ["1e999", "nan", "[" * 2000, '{"unet.lora_alpha": 1e999}', '{"unet.use_dora": []}', "sdxl"]
        ),
    ),
    max_size=4,
)
headers = st.builds(
    lambda metadata, tensors: json.dumps({"__metadata__": metadata, **tensors}).encode(),
    st.one_of(notes, odd),
    st.dictionaries(key_texts, entries, max_size=4),
)
mangled = st.builds(
    lambda header, at, byte: (
        header[: at % (len(header) + 1)] + byte + header[at % (len(header) + 1) + len(byte) :]
    ),
    headers,
    st.integers(0, 2000),
    st.binary(max_size=3),
)


@cases(header=st.one_of(headers, mangled, st.binary(max_size=80)), data=st.binary(max_size=16))
def test_any_header_is_read_or_refused(header: bytes, data: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "fox.safetensors", header, data)
    with suppress(AdapterError):
        seen = inspect_file(path)
        json.dumps(seen.to_dict(), ensure_ascii=False).encode()
        str(seen).encode()


# -- whole files: sound containers whose content is not -------------------------------------------------------

sizes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 40]), max_size=4)
values = st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 6e4, 3e38, 1e-40])
kinds = st.sampled_from(
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.bool,
        torch.uint8,
        torch.float8_e4m3fn,
        torch.complex64,
    ]
)
tensors = st.one_of(
    st.builds(lambda shape, value, kind: torch.full(shape, value).to(kind), sizes, values, kinds),
    st.sampled_from(
        [torch.zeros(2, 40), torch.zeros(8, 2), torch.tensor(1e9), torch.tensor(1e308, dtype=torch.float64)]
    ),
)
fitting = st.fixed_dictionaries({KEYS[0]: st.just(torch.ones(2, 40)), KEYS[1]: st.just(torch.ones(8, 2))})
files = st.builds(
    lambda sound, own: {**sound, **own},
    st.one_of(st.just({}), fitting),
    st.dictionaries(key_texts.filter(lambda key: key != "__metadata__"), tensors, max_size=4),
)


SCALES = ["lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora", "unet.lora_alpha", "unet.r", "peft_config",
          "init_lora_weights", "ss_network_alpha", "ss_network_dim", "lora_adapter_metadata"]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@cases(
    ci=150,
    content=files,
    metadata=st.dictionaries(
        st.one_of(st.text(max_size=4), st.sampled_from(SCALES)),
        st.one_of(st.text(max_size=4), odd.map(json.dumps), st.sampled_from(["8", "1e999", "pissa", "True"])),
        max_size=3,
    ),
    cut=st.integers(0, 9),
)
def test_any_file_is_loaded_or_refused(
    content: dict[str, torch.Tensor], metadata: dict[str, str], cut: int, tmp_path: Path, sdxl: Any
) -> None:
    path = tmp_path / "fox.safetensors"
    whole = save({name: one.clone().contiguous() for name, one in content.items()}, metadata)
    path.write_bytes(whole[:-cut] if cut > 7 else whole)
    adapter: Adapter | None = None
    with suppress(AdapterError):
        adapter = read_adapter(path, sdxl.layers, "fox")
    if adapter is not None:
        str(adapter.report).encode()
        assert all(
            torch.isfinite(torch.tensor(one.scale, dtype=torch.float32)) for one in adapter.layers.values()
        )


# -- what stands beside them -----------------------------------------------------------------------------------

settings = st.dictionaries(
    st.sampled_from(
        ["lora_alpha", "alpha_pattern", "r", "use_rslora", "use_dora", "peft_type", "init_lora_weights"]
    ),
    st.one_of(
        odd,
        st.sampled_from(
            ["LORA", "pissa", {"to_k": 4}, {".*.*.*x": 1}, {"(a+)+$": 1}, {"[": 1}, {"to_k": 10**300}]
        ),
    ),
    max_size=4,
)


@cases(fields=st.one_of(settings, odd), raw=st.one_of(st.none(), st.binary(max_size=40)))
def test_any_settings_of_peft_are_understood_or_refused(
    fields: object, raw: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "adapter_model.safetensors"
    (tmp_path / "adapter_config.json").write_bytes(json.dumps(fields).encode() if raw is None else raw)
    with suppress(StudioError):
        for own in peft_settings(path, {}).values():
            own.scale_of(LAYER, 4)


said = st.dictionaries(
    st.sampled_from(
        [
            "preferred weight",
            "activation text",
            "notes",
            "description",
            "category",
            "sd version",
            "negative text",
            "model",
            "trainedWords",
            "files",
            "usage_tips",
            "tags",
            "civitai",
            "sha256",
            "model_name",
        ]
    ),
    st.one_of(
        odd,
        st.sampled_from(
            [{"strength": 10**400, "strength_min": "1e999"}, '{"strength": [' * 50, [{"hashes": {"a": []}}]]
        ),
    ),
    max_size=5,
)


@cases(ci=150, note=st.one_of(said, odd), raw=st.one_of(st.none(), st.binary(max_size=40)))
def test_any_notes_beside_a_file_leave_it_readable(note: object, raw: bytes | None, tmp_path: Path) -> None:
    path = written(tmp_path / "fox.safetensors", f'{{"{KEYS[0]}":{entry("[0,40]")}}}'.encode())
    for ending in (".json", ".civitai.info", ".metadata.json", ".txt"):
        path.with_name(f"fox{ending}").write_bytes(json.dumps(note).encode() if raw is None else raw)
    json.dumps(inspect_file(path).to_dict(), allow_nan=False, ensure_ascii=False).encode()
