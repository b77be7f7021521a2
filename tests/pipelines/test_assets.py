"""The shipped data is found from a checkout and from a wheel; the card of a model is read or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import assets
from pipelines.checkpoints.card import CARD_FILE, ModelCard, read_card, resolve_defaults
from pipelines.errors import ModelError, SetupError
from pipelines.families.family import SD1, SDXL, Defaults


def test_root_is_the_wheels_folder_else_the_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pipelines"
    package.mkdir()
    monkeypatch.setattr(assets, "PACKAGE", package)
    with pytest.raises(SetupError, match=r"missing .* install the program again"):
        assets.root()
    (tmp_path / "assets").mkdir()
    assert assets.root() == tmp_path / "assets"
    (package / "_assets").mkdir()
    assert assets.root() == package / "_assets"


def test_embedded_models_and_loras_are_listed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "root", lambda: tmp_path)
    for name in ("tiny-b", "tiny-a"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model_index.json").touch()
    (tmp_path / "models" / "notes").mkdir()
    (tmp_path / "loras" / "tiny-a").mkdir(parents=True)
    (tmp_path / "loras" / "tiny-a" / "fox.safetensors").touch()
    assert [model.name for model in assets.embedded_models()] == ["tiny-a", "tiny-b"]
    assert [(lora.name, lora.model) for lora in assets.embedded_loras()] == [("fox", "tiny-a")]


CARD = {
    "family": "sdxl",
    "width": 128,
    "height": 96,
    "scheduler": "euler",
    "steps": 20,
    "guidance_scale": 3.5,
    "examples": ["a fox in a red hat"],
    "vocabulary": {"animals": {"fox": ["vixen"], "owl": []}},
    "block_map": {"content": ["up_blocks.0"], "style": ["up_blocks.1"]},
    "description": "A small model.",
}


def write(folder: Path, content: object) -> Path:
    (folder / CARD_FILE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_card_is_read(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    card = read_card(write(tmp_path, CARD))
    assert card is not None
    assert (card.scheduler, card.steps, card.examples) == ("Euler", 20, ("a fox in a red hat",))
    assert card.vocabulary["animals"]["fox"] == ("vixen",)
    assert card.block_map["style"] == ("up_blocks.1",)
    assert read_card(write(tmp_path, {})) == ModelCard()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidence_scale": 3}, "unknown key 'guidence_scale'; did you mean 'guidance_scale'"),
        ({"family": "sd3"}, "\"family\" is 'sd3'; it must be one of sd1, sd2, sdxl"),
        ({"width": "128"}, "\"width\" is '128'; it must be a whole number"),
        ({"steps": True}, '"steps" is True'),
        ({"guidance_scale": "high"}, "\"guidance_scale\" is 'high'"),
        ({"scheduler": "Eular"}, "did you mean Euler"),
        ({"examples": "one"}, "\"examples\" is 'one'; it must be a list of texts"),
        ({"vocabulary": ["fox"]}, r"studio\.json"),
        ({"vocabulary": {"animals": {"fox": "vixen"}}}, "\"fox\" is 'vixen'; it must be a list"),
    ],
)
def test_a_faulty_card_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_card(write(tmp_path, CARD | change))


def test_an_unreadable_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds a list where an object belongs"):
        read_card(write(tmp_path, []))
    (tmp_path / CARD_FILE).write_text("{")
    with pytest.raises(ModelError, match=r"studio\.json is not valid JSON"):
        read_card(tmp_path)


def test_defaults_come_from_the_card_else_the_folder_else_the_family() -> None:
    card = ModelCard(width=128, scheduler="Euler", guidance_scale=0.0)
    assert resolve_defaults(SDXL, card, scheduler="DDIM", size=(256, 256)) == Defaults(
        128, 256, "Euler", 28, 0.0
    )
    assert resolve_defaults(SD1, None, scheduler="DDIM", size=(256, 320)) == Defaults(
        256, 320, "DDIM", 25, 7.0
    )
    assert resolve_defaults(SD1, None, scheduler=None, size=None) == SD1.defaults
