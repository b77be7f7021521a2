"""Names of pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipelines.errors import SetupError
from pipelines.home.files import check_name
from studio.pictures.files import Sheet, plan_files

TWO = [Sheet(7, "a fox, red", "merge", "tiny-sdxl"), Sheet(8, "../../etc/passwd", "switch", "a/b")]


def test_a_folder_goes_on_counting(tmp_path: Path) -> None:
    assert [file.name for file in plan_files(None, tmp_path / "new", TWO, force=False)] == [
        "00001_7.png",
        "00002_8.png",
    ]
    (tmp_path / "00041_3.png").touch()
    assert [file.name for file in plan_files(str(tmp_path), tmp_path, TWO, force=False)] == [
        "00042_7.png",
        "00043_8.png",
    ]


def test_a_template(tmp_path: Path) -> None:
    files = plan_files(f"{tmp_path}/{{index:02d}}-{{prompt}}-{{composer}}.png", tmp_path, TWO, force=False)
    assert files == [tmp_path / "01-a-fox-red-merge.png", tmp_path / "02-etc-passwd-switch.png"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("fox.png", "names one file for 2 pictures"),
        ("{prompt:.0}.png", "gives several pictures one name"),
        ("{sead}.png", "no field {sead}"),
        ("{index.png", "brace"),
        ("{index.real}.png", "no field"),
        ("{}.png", "no field"),
        ("{seed}.jpg", "written as PNG"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, out: str, said: str) -> None:
    with pytest.raises(SetupError, match=said.replace("{", r"\{").replace("}", r"\}")):
        plan_files(f"{tmp_path}/{out}", tmp_path, TWO, force=False)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    file = tmp_path / "fox.png"
    file.write_text("precious")
    with pytest.raises(SetupError, match="--force"):
        plan_files(str(file), tmp_path, TWO[:1], force=False)
    assert plan_files(str(file), tmp_path, TWO[:1], force=True) == [file]


def test_names_that_differ_in_case_alone_are_one(tmp_path: Path) -> None:
    """On Windows and macOS the second picture would overwrite the first."""
    two = [Sheet(7, "Fox", "merge", "tiny-sdxl"), Sheet(8, "fox", "merge", "tiny-sdxl")]
    with pytest.raises(SetupError, match="gives several pictures one name"):
        plan_files(f"{tmp_path}/{{prompt}}.png", tmp_path, two, force=True)


def test_a_name_that_windows_does_not_take_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.pictures.files.check_name", partial(check_name, windows=True))
    with pytest.raises(SetupError, match="no file can have this name on Windows; choose another one"):
        plan_files(f"{tmp_path}/fox:red.png", tmp_path, TWO[:1], force=True)
    assert plan_files(f"{tmp_path}/fox.png", tmp_path, TWO[:1], force=True) == [tmp_path / "fox.png"]
