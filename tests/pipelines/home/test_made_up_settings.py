"""Made-up settings, and other programs' lists of folders: each is understood or refused, with an error for people."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st

from pipelines.errors import SetupError
from pipelines.home import Home
from pipelines.home.foreign_folders import import_paths
from pipelines.home.settings import Roots, read_settings, write_folders

from ...fuzzing import cases

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.sampled_from(["~nosuch/x", "~", "$HOME", "a\0b", "x" * 300, "..", "cuda:0", "fp16", "auto"]),
)
values = st.one_of(
    texts.map(json.dumps),
    st.sampled_from(
        [
            "1",
            "0.5",
            "nan",
            "inf",
            "1e400",
            "true",
            "0x" + "f" * 5000,
            "9" * 5000,
            "1979-05-27",
            "[[[]]]",
            "{a = 1}",
            "[",
            '"""',
        ]
    ),
    st.lists(texts, max_size=3).map(json.dumps),
)
keys = st.sampled_from(
    [
        "model",
        "device",
        "dtype",
        "lora_ram",
        "lora_vram",
        "folders",
        "folders.loras",
        "folders.models",
        "[folders]",
        "loras",
        "x",
        "a.a.a.a.a",
        "[[folders]]",
        "k" * 1000,
    ]
)
lines = st.one_of(st.builds(lambda key, value: f"{key} = {value}", keys, values), keys, texts)


@cases(text=st.lists(lines, max_size=5).map("\n".join))
def test_any_settings_are_read_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with suppress(SetupError):
        read_settings(tmp_path)
        Home.resolve(tmp_path).loras()
    with suppress(SetupError):
        write_folders(tmp_path, Roots(loras=(tmp_path,)))


yaml_lines = st.builds(
    lambda indent, key, value: f"{' ' * indent}{key}{value}",
    st.integers(0, 4),
    st.one_of(
        st.sampled_from(
            ["base_path: ", "checkpoints: ", "loras: ", "vae: ", "a: ", "- ", "<<: ", "? ", "", "&a ", "*a"]
        ),
        texts,
    ),
    st.one_of(
        texts,
        st.sampled_from(
            [
                "|",
                "&a",
                "*a",
                "!!int x",
                "!!python/object:x {}",
                "[",
                "{",
                "1:1:1:1",
                "2001-99-99",
                "~nosuch",
                "~",
                "'",
                "\t",
            ]
        ),
    ),
)


@cases(text=st.lists(yaml_lines, max_size=8).map("\n".join))
def test_any_list_of_folders_is_read_or_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir(exist_ok=True)
    file = tmp_path / "extra_model_paths.yaml"
    file.write_text(text, encoding="utf-8")
    with suppress(SetupError):
        assert import_paths(file)
